//! PCI configuration space, by mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2), and what a virtio device says there
//! (Virtual I/O Device Version 1.2, 4.1).

use alloc::vec::Vec;
use usys::port::PortRange;
use usys::power::open;

/// First of the eight ports: address, then data.
const PORTS: u16 = 0xcf8;
/// Registers of the header (6.1).
mod register {
    pub(super) const ID: u8 = 0x00;
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const HEADER_TYPE: u8 = 0x0c;
    pub(super) const BARS: u8 = 0x10;
    pub(super) const CAPABILITIES: u8 = 0x34;
    pub(super) const INTERRUPT: u8 = 0x3c;
}
/// Bits of the command and status register.
mod command {
    pub(super) const PORTS: u32 = 1 << 0;
    pub(super) const MEMORY: u32 = 1 << 1;
    pub(super) const BUS_MASTER: u32 = 1 << 2;
    pub(super) const NO_INTX: u32 = 1 << 10;
    pub(super) const HAS_CAPABILITIES: u32 = 1 << 20;
}
/// Capability IDs.
const VENDOR: u8 = 0x09;
const MSIX: u8 = 0x11;
/// MSI-X is on; no entry is usable yet.
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASKED: u32 = 1 << 30;
/// A virtio block device: the device of virtio 1.0, and the one that drivers of older versions know too.
pub const VIRTIO_BLOCK: &[u32] = &[0x1042_1af4, 0x1001_1af4];
/// A virtio network device, in the same way.
pub const VIRTIO_NET: &[u32] = &[0x1041_1af4, 0x1000_1af4];
/// An NE2000: Realtek's RTL8029.
pub const NE2000: &[u32] = &[0x8029_10ec];
/// A header of 256 bytes has no more capabilities.
const MAX_CAPABILITIES: usize = 48;

/// A function of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Function {
    /// What its accesses to memory are known by.
    pub const fn requester_id(self) -> u16 {
        (self.bus as u16) << 8 | (self.device as u16 & 31) << 3 | self.function as u16 & 7
    }
}

/// Configuration space.
pub trait Configuration {
    /// Reads the register at `offset`, a multiple of 4.
    fn read(&mut self, function: Function, offset: u8) -> u32;
    /// Writes it.
    fn write(&mut self, function: Function, offset: u8, value: u32);
}

/// The configuration space of the machine.
#[derive(Debug)]
pub struct Ports(PortRange);

impl Ports {
    /// Takes the ports, if they are to be had.
    pub fn new() -> Option<Self> {
        open(PORTS, 8).map(Ports)
    }

    fn select(&self, function: Function, offset: u8) {
        let Function { bus, device, function } = function;
        let address = 1 << 31
            | u32::from(bus) << 16
            | u32::from(device & 31) << 11
            | u32::from(function & 7) << 8
            | u32::from(offset & !3);
        self.0.write32(0, address);
    }
}

impl Configuration for Ports {
    fn read(&mut self, function: Function, offset: u8) -> u32 {
        self.select(function, offset);
        self.0.read32(4)
    }

    fn write(&mut self, function: Function, offset: u8, value: u32) {
        self.select(function, offset);
        self.0.write32(4, value);
    }
}

/// A range of a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Where the registers of a virtio device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioDevice {
    /// The function.
    pub function: Function,
    /// Common configuration.
    pub common: Range,
    /// Notifications.
    pub notify: Range,
    /// Bytes between the notifications of two queues.
    pub notify_multiplier: u32,
    /// Configuration of its kind.
    pub config: Range,
    /// MSI-X table.
    pub messages: Range,
    /// Offset of its MSI-X capability.
    msix: u8,
}

/// The functions whose vendor and device are one of `ids`, by address.
pub fn functions(configuration: &mut impl Configuration, ids: &[u32]) -> Vec<Function> {
    let mut found = Vec::new();
    for bus in 0..=255 {
        for device in 0..32 {
            let first = Function { bus, device, function: 0 };
            if configuration.read(first, register::ID) == u32::MAX {
                continue;
            }
            let is_multiple = configuration.read(first, register::HEADER_TYPE) >> 23 & 1 != 0;
            for function in 0..if is_multiple { 8 } else { 1 } {
                let function = Function { function, ..first };
                if ids.contains(&configuration.read(function, register::ID)) {
                    found.push(function);
                }
            }
        }
    }
    found
}

impl VirtioDevice {
    /// Reads what a function says about itself.
    ///
    /// # Errors
    /// What it lacks.
    pub fn read(configuration: &mut impl Configuration, function: Function) -> Result<Self, &'static str> {
        let mut device = VirtioDevice {
            function,
            common: Range::default(),
            notify: Range::default(),
            notify_multiplier: 0,
            config: Range::default(),
            messages: Range::default(),
            msix: 0,
        };
        for offset in capabilities(configuration, function) {
            device.add_capability(configuration, offset)?;
        }
        let Self { common, notify, config, messages, .. } = device;
        if [common, notify, config].contains(&Range::default()) {
            return Err("it has no registers of virtio 1.0");
        }
        if messages == Range::default() {
            return Err("it cannot interrupt by message (MSI-X)");
        }
        Ok(device)
    }

    fn add_capability(
        &mut self,
        configuration: &mut impl Configuration,
        offset: u8,
    ) -> Result<(), &'static str> {
        let function = self.function;
        let mut word = |index: u8| configuration.read(function, offset.wrapping_add(4 * index));
        let header = word(0);
        match header as u8 {
            VENDOR => {
                let (kind, bar) = ((header >> 24) as u8, word(1) as u8);
                let (start, bytes, last) = (word(2), word(3), word(4));
                let mut range = || -> Result<Range, &'static str> {
                    let address = bar_address(configuration, function, bar)? + u64::from(start);
                    Ok(Range { address, bytes: bytes.into() })
                };
                // The first of each kind is the preferred one (4.1.4.1).
                match kind {
                    1 if self.common.bytes == 0 => self.common = range()?,
                    2 if self.notify.bytes == 0 => {
                        self.notify = range()?;
                        self.notify_multiplier = last;
                    }
                    4 if self.config.bytes == 0 => self.config = range()?,
                    _ => {}
                }
            }
            MSIX => {
                const ENTRY_BYTES: u64 = 16;
                let entries = u64::from(header >> 16 & 0x7ff) + 1;
                let table = word(1);
                let base = bar_address(configuration, function, (table & 7) as u8)?;
                self.messages = Range { address: base + u64::from(table & !7), bytes: entries * ENTRY_BYTES };
                self.msix = offset;
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets the device answer to its memory's addresses, reach memory itself, and interrupt by message. Its messages are masked one
    /// by one until its driver says what they are.
    pub fn enable(&self, configuration: &mut impl Configuration) {
        let msix = configuration.read(self.function, self.msix);
        configuration.write(self.function, self.msix, msix & !MSIX_MASKED | MSIX_ENABLE);
        let set = command::MEMORY | command::BUS_MASTER | command::NO_INTX;
        change_command(configuration, self.function, set, 0);
    }

    /// Keeps the device from reaching memory and from interrupting.
    pub fn quiesce(&self, configuration: &mut impl Configuration) {
        let msix = configuration.read(self.function, self.msix);
        configuration.write(self.function, self.msix, msix & !MSIX_ENABLE);
        change_command(configuration, self.function, 0, command::BUS_MASTER);
    }
}

fn change_command(configuration: &mut impl Configuration, function: Function, set: u32, clear: u32) {
    // Writing 0 to the status half leaves it as it is.
    let value = configuration.read(function, register::COMMAND) & 0xffff;
    configuration.write(function, register::COMMAND, value & !clear | set);
}

/// A device whose registers are ports, and that interrupts by a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortDevice {
    function: Function,
    /// First port.
    pub ports: u16,
    /// The ISA interrupt that the firmware routed its line to.
    pub line: u8,
}

impl PortDevice {
    /// Reads what a function says about itself.
    ///
    /// # Errors
    /// What it lacks.
    pub fn read(configuration: &mut impl Configuration, function: Function) -> Result<Self, &'static str> {
        let base = configuration.read(function, register::BARS);
        let line = configuration.read(function, register::INTERRUPT) as u8;
        match u16::try_from(base & !3) {
            _ if base & 1 == 0 => Err("its registers are no ports"),
            Err(_) | Ok(0) => Err("the firmware gave it no ports"),
            // 6.2.4: on a PC, the inputs of the two 8259s.
            Ok(_) if !(1..16).contains(&line) => Err("the firmware routed its interrupt nowhere"),
            Ok(ports) => Ok(PortDevice { function, ports, line }),
        }
    }

    /// Lets the device answer to its ports and interrupt; it never reaches memory itself.
    pub fn enable(&self, configuration: &mut impl Configuration) {
        let clear = command::BUS_MASTER | command::NO_INTX;
        change_command(configuration, self.function, command::PORTS, clear);
    }
}

/// Offsets of a function's capabilities.
fn capabilities(configuration: &mut impl Configuration, function: Function) -> Vec<u8> {
    let mut offsets = Vec::new();
    if configuration.read(function, register::COMMAND) & command::HAS_CAPABILITIES == 0 {
        return offsets;
    }
    let mut next = configuration.read(function, register::CAPABILITIES) as u8 & !3;
    while next >= 0x40 && offsets.len() < MAX_CAPABILITIES {
        offsets.push(next);
        next = (configuration.read(function, next) >> 8) as u8 & !3;
    }
    offsets
}

/// The address in a base address register (6.2.5.1).
fn bar_address(
    configuration: &mut impl Configuration,
    function: Function,
    bar: u8,
) -> Result<u64, &'static str> {
    if bar > 5 {
        return Err("it names a register that there is not");
    }
    let low = configuration.read(function, register::BARS + 4 * bar);
    let is_long = low >> 1 & 3 == 2;
    let high = match is_long {
        true if bar < 5 => configuration.read(function, register::BARS + 4 * bar + 4),
        _ => 0,
    };
    match u64::from(high) << 32 | u64::from(low & !15) {
        _ if low & 1 != 0 => Err("its registers are ports"),
        0 => Err("the firmware gave it no addresses"),
        address => Ok(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    const AT: Function = Function { bus: 0, device: 3, function: 0 };

    /// Registers by function and offset; others read as ones.
    struct Fake(BTreeMap<(Function, u8), u32>);

    impl Configuration for Fake {
        fn read(&mut self, function: Function, offset: u8) -> u32 {
            self.0.get(&(function, offset)).copied().unwrap_or(u32::MAX)
        }

        fn write(&mut self, function: Function, offset: u8, value: u32) {
            self.0.insert((function, offset), value);
        }
    }

    /// As QEMU's: MSI-X in BAR 1, everything else in BAR 4, a long one.
    fn fake() -> Fake {
        let words: &[(u8, u32)] = &[
            (0x00, 0x1042_1af4),
            (0x04, 0x0010_0003),
            (0x0c, 0),
            (0x14, 0xfebd_1000),
            (0x20, 0x0000_000c),
            (0x24, 0x0000_0080),
            (0x34, 0x98),
            (0x98, 0x0001_8411),
            (0x9c, 0x0000_0001),
            (0x84, 0x0514_7009),
            (0x70, 0x0214_6009),
            (0x74, 4),
            (0x78, 0x3000),
            (0x7c, 0x1000),
            (0x80, 4),
            (0x60, 0x0410_5009),
            (0x64, 4),
            (0x68, 0x2000),
            (0x6c, 0x1000),
            (0x50, 0x0110_0009),
            (0x54, 4),
            (0x58, 0),
            (0x5c, 0x1000),
        ];
        Fake(words.iter().map(|&(offset, value)| ((AT, offset), value)).collect())
    }

    #[test]
    fn a_virtio_device_is_found_with_its_registers() {
        let mut fake = fake();
        assert_eq!(functions(&mut fake, VIRTIO_BLOCK), [AT]);
        let device = VirtioDevice::read(&mut fake, AT).unwrap();
        let range = |address, bytes| Range { address, bytes };
        assert_eq!(device.common, range(0x80_0000_0000, 0x1000));
        assert_eq!(device.config, range(0x80_0000_2000, 0x1000));
        assert_eq!((device.notify, device.notify_multiplier), (range(0x80_0000_3000, 0x1000), 4));
        assert_eq!(device.messages, range(0xfebd_1000, 32));
    }

    #[test]
    fn a_device_is_enabled_and_quiesced() {
        let mut fake = fake();
        let device = VirtioDevice::read(&mut fake, AT).unwrap();
        device.enable(&mut fake);
        assert_eq!((fake.read(AT, 4), fake.read(AT, 0x98)), (0x0407, 0x8001_8411));
        device.quiesce(&mut fake);
        assert_eq!((fake.read(AT, 4), fake.read(AT, 0x98)), (0x0403, 0x0001_8411));
    }

    #[test]
    fn a_device_with_ports_and_a_line_is_found() {
        let device = |base: u32, line: u32| {
            let words = [(0x00, 0x8029_10ec), (0x04, 0x0407), (0x0c, 0), (0x10, base), (0x3c, 0x0100 | line)];
            Fake(words.map(|(offset, value)| ((AT, offset), value)).into())
        };
        let mut fake = device(0xc101, 11);
        assert_eq!(functions(&mut fake, NE2000), [AT]);
        let card = PortDevice::read(&mut fake, AT).unwrap();
        assert_eq!((card.ports, card.line), (0xc100, 11));
        card.enable(&mut fake);
        assert_eq!(fake.read(AT, 4), 0x0003);
        for (base, line) in [(0xc100, 11), (1, 11), (0x1_c101, 11), (0xc101, 0), (0xc101, 16), (0xc101, 0xff)]
        {
            assert!(PortDevice::read(&mut device(base, line), AT).is_err(), "{base:#x} {line}");
        }
    }

    #[test]
    fn a_device_that_is_incomplete_is_refused() {
        for (offset, value) in [(0x04, 3), (0x34, 0), (0x24, 0), (0x50, 9), (0x98, 0x0000_8405), (0x54, 6)] {
            let mut fake = fake();
            fake.write(AT, offset, value);
            if offset == 0x24 {
                fake.write(AT, 0x20, 0xc);
            }
            assert!(VirtioDevice::read(&mut fake, AT).is_err(), "{offset:#x}");
        }
    }

    #[test]
    fn a_list_of_capabilities_that_loops_ends() {
        let mut fake = fake();
        fake.write(AT, 0x98, 0x0001_9811);
        assert!(VirtioDevice::read(&mut fake, AT).is_err());
    }
}
