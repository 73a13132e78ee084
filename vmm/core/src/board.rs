//! The board `reduced`: its devices, what connects them, and where the guest finds them.
//!
//! Data goes one way: the guest's access reaches a device by port or address; that device's interrupt line is sampled
//! behind it and goes through the I/O APIC to the local APIC; the next entry asks the local APIC what to inject.
//!
//! There is no PIC, PIT or PCI: as on a PC without a device, ports that nobody claims read as ones and ignore writes.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use hypercall_abi::vcpu::VcpuPage;
use vdev::acpi_pm::{self, AcpiPm};
use vdev::bus::Bus;
use vdev::debug::{self, DebugEvent, DebugPorts};
use vdev::guest_mem::GuestMemory;
use vdev::i8042::{self, I8042};
use vdev::ioapic::{self, IoApic};
use vdev::lapic::{self, Effect, Lapic};
use vdev::rtc::{self, Rtc};
use vdev::uart16550::{self, Uart};
use vdev::{Request, pvclock::PvClock, pvclock::VcpuClock};

use crate::acpi::SERIAL_PORTS;
use crate::interrupt_path::InterruptPath;
use crate::layout::{self, Layout};
use crate::pv::{PvBus, Wires};
use crate::steal::StealTime;
use crate::virtio::{Settling, VirtioBus};

/// System control port A of the PS/2: fast reset and address line 20.
const CONTROL_PORT_A: u16 = 0x92;
const CONTROL_RESET: u8 = 1 << 0;
const CONTROL_A20: u8 = 1 << 1;
/// The serial port that the guest's console is.
const CONSOLE_PORT: usize = 0;
/// Console input of a port that waits for the guest's FIFO, in bytes. More waits in the ring that it comes from.
const INPUT_MAX: usize = 4 << 10;
/// What can wait, as that frames were sent, waits for 2 ms after the last of it: an answer is there by then, and with it an interrupt.
const SETTLES_PER_SECOND: u64 = 500;
/// So many times as long at most, from the first of it on.
const MOST_PUT_OFF: u64 = 8;

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time {
    /// Host TSC: what the board's own clocks count, whatever the guest does to its TSC.
    pub(crate) host: u64,
    /// Guest TSC: what the local APIC's timer counts.
    pub(crate) guest: u64,
}

impl Time {
    /// The moment `now` of the host's TSC on the clocks of a vCPU with this page.
    pub(crate) fn at(now: u64, page: &VcpuPage) -> Time {
        Time { host: now, guest: now.wrapping_add(page.tsc_offset) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortDevice {
    Uart(usize),
    Rtc,
    I8042,
    Debug,
    AcpiPm,
    ControlA,
}

/// What a board is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoardSetup {
    pub(crate) layout: Layout,
    /// Rate of the local APIC's timer.
    pub(crate) crystal_hz: u32,
    pub(crate) tsc_hz: u64,
    /// Unix time in nanoseconds at `now`.
    pub(crate) unix_ns: u64,
    /// TSC ticks for which the vCPU's thread was ready and did not run.
    pub(crate) waited: fn() -> u64,
    pub(crate) now: Time,
}

/// All devices.
pub(crate) struct Board {
    ports: Bus<PortDevice>,
    uarts: [Uart; SERIAL_PORTS.len()],
    input: [VecDeque<u8>; SERIAL_PORTS.len()],
    /// Some of [`Self::input`] is not empty.
    has_input: bool,
    /// Somebody should take output.
    has_output: bool,
    rtc: Rtc,
    i8042: I8042,
    debug: DebugPorts,
    debug_output: Vec<u8>,
    acpi_pm: AcpiPm,
    control_a: u8,
    ioapic: IoApic,
    pub(crate) virtio: VirtioBus,
    pub(crate) pv: PvBus,
    pub(crate) lapic: Lapic,
    pub(crate) clock: PvClock,
    /// Guest TSC at which [`Self::clock`] was 0.
    clock_zero: u64,
    clock_unix_ns: u64,
    tsc_hz: u64,
    pub(crate) vcpu_clock: VcpuClock,
    steal_time: StealTime,
    is_nmi_pending: bool,
    request: Option<Request>,
}

impl Board {
    pub(crate) fn new(setup: &BoardSetup, virtio: VirtioBus, pv: PvBus) -> Board {
        let BoardSetup { layout, crystal_hz, tsc_hz, unix_ns, waited, now } = *setup;
        let mut rtc = Rtc::new(unix_ns / 1_000_000_000, now.host, tsc_hz);
        rtc.set_memory_size(layout.low_end(), layout.memory_bytes() - layout.low_end());
        Board {
            ports: port_map(),
            uarts: core::array::from_fn(|_| Uart::new()),
            input: Default::default(),
            has_input: false,
            has_output: false,
            rtc,
            i8042: I8042::new(),
            debug: DebugPorts::new(),
            debug_output: Vec::new(),
            acpi_pm: AcpiPm::new(tsc_hz),
            control_a: CONTROL_A20,
            ioapic: IoApic::new(0),
            virtio,
            pv,
            lapic: Lapic::new(0, true, crystal_hz.into(), tsc_hz),
            clock: PvClock::new(tsc_hz, now.guest, unix_ns, true),
            clock_zero: now.guest,
            clock_unix_ns: unix_ns,
            tsc_hz,
            vcpu_clock: VcpuClock::new(),
            steal_time: StealTime::new(waited, tsc_hz),
            is_nmi_pending: false,
            request: None,
        }
    }

    /// Reads 1, 2 or 4 bytes from a port. The device at the first port answers; ports behind it float.
    pub(crate) fn read_port(&mut self, port: u16, size: u8, now: Time) -> u32 {
        let mut value = u32::MAX;
        if let Some((device, _)) = self.ports.find(port.into()) {
            let mut bytes = value.to_le_bytes();
            for (port, byte) in owned(&self.ports, device, port, size).zip(&mut bytes) {
                *byte = match device {
                    PortDevice::Uart(index) => {
                        let offset = port.wrapping_sub(SERIAL_PORTS[index].port) as u8;
                        self.uarts[index].read(offset, now.host)
                    }
                    PortDevice::Rtc => self.rtc.read(port, now.host),
                    PortDevice::I8042 => self.i8042.read(port),
                    PortDevice::Debug => self.debug.read(port),
                    PortDevice::AcpiPm => self.acpi_pm.read(port, now.host),
                    PortDevice::ControlA => self.control_a,
                };
            }
            value = u32::from_le_bytes(bytes);
            self.update_line(device);
        }
        value & u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
    }

    /// Writes 1, 2 or 4 bytes to a port. The device at the first port takes them; bytes for ports behind it are lost.
    /// So a double word to 0xcf8, the PCI configuration address, is no reset by 0xcf9.
    pub(crate) fn write_port(&mut self, port: u16, size: u8, value: u32, now: Time) {
        let Some((device, _)) = self.ports.find(port.into()) else {
            return;
        };
        if device == PortDevice::Debug {
            // The exit device takes the whole value.
            let event = self.debug.write(port, value & u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))));
            return self.take_debug_event(event);
        }
        for (port, byte) in owned(&self.ports, device, port, size).zip(value.to_le_bytes()) {
            let request = match device {
                PortDevice::Uart(index) => {
                    self.uarts[index].write(port.wrapping_sub(SERIAL_PORTS[index].port) as u8, byte);
                    self.has_output |= self.uarts[index].has_output();
                    None
                }
                PortDevice::Rtc => {
                    self.rtc.write(port, byte, now.host);
                    None
                }
                PortDevice::I8042 => self.i8042.write(port, byte),
                PortDevice::AcpiPm => self.acpi_pm.write(port, byte),
                PortDevice::ControlA => self.write_control_a(byte),
                PortDevice::Debug => None,
            };
            self.request = self.request.or(request);
        }
        self.update_line(device);
    }

    /// Whether a device has more to do than it did at once.
    #[inline]
    pub(crate) fn is_behind(&self) -> bool {
        self.virtio.is_notified() || self.pv.is_behind()
    }

    /// Whether [`Self::read_quietly`] or [`Self::write_quietly`] may have an answer for this address.
    #[inline(always)]
    pub(crate) fn may_be_quiet(&self, address: u64) -> bool {
        address & !(ioapic::IOREGSEL ^ ioapic::IOWIN) == layout::IO_APIC && !self.lapic.is_at(layout::IO_APIC)
    }

    /// Reads a register of which nothing but its value follows; `None` from others. The address may be one
    /// ([`Self::may_be_quiet`]).
    #[inline(always)]
    pub(crate) fn read_quietly(&self, address: u64, size: u8) -> Option<u64> {
        (size == 4).then(|| self.ioapic.mmio_read(address % ioapic::MMIO_BYTES).into())
    }

    /// Writes a register if nothing follows from that; says whether it was so. The address may be one ([`Self::may_be_quiet`]).
    #[inline(always)]
    pub(crate) fn write_quietly(&mut self, address: u64, size: u8, value: u64) -> bool {
        let selects = size == 4 && address % ioapic::MMIO_BYTES == ioapic::IOREGSEL;
        if selects {
            self.ioapic.select(value as u8);
        }
        selects
    }

    /// The virtio device that is behind this address with nothing but the end of an interrupt.
    #[inline]
    pub(crate) fn acknowledged_at(&self, address: u64) -> Option<usize> {
        self.virtio.acknowledged_at(address).filter(|_| !self.lapic.is_at(address))
    }

    /// Ends an interrupt of that device, if nothing follows from that; says whether it was so.
    #[inline]
    pub(crate) fn acknowledge_quietly(&mut self, device: usize, value: u32) -> bool {
        let change = self.virtio.acknowledge_quietly(device, value);
        change.into_iter().for_each(|change| self.interrupt_path().follow(change));
        change.is_some()
    }

    /// Reads 1 to 8 bytes of device memory.
    pub(crate) fn read_memory(&mut self, address: u64, size: u8, now: Time) -> u64 {
        let Some((is_lapic, offset)) = self.find_memory(address) else {
            let from_virtio = self.virtio.read(address, size);
            let from_pv = || self.pv.read(address, size, || self.unix_ns_at_zero(now));
            return from_virtio.or_else(from_pv).unwrap_or(u64::MAX);
        };
        let mut read = |at: u64| {
            if is_lapic { self.lapic.mmio_read(at, now.guest) } else { self.ioapic.mmio_read(at) }
        };
        if size == 4 && offset % 4 == 0 {
            return read(offset).into();
        }
        let mut bytes = [0xff; 8];
        // Registers have 32 bits on 16-byte boundaries; what is wider or crosses them is split.
        let mut done = 0;
        while done < usize::from(size.min(8)) {
            let at = offset + done as u64;
            let word = read(at & !3);
            let skip = (at & 3) as usize;
            let part = &word.to_le_bytes()[skip..];
            let count = part.len().min(usize::from(size.min(8)) - done);
            bytes[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes 1 to 8 bytes of device memory. What does not start at a register is lost.
    pub(crate) fn write_memory(&mut self, address: u64, size: u8, value: u64, now: Time) {
        let Some((is_lapic, offset)) = self.find_memory(address).filter(|(_, offset)| offset % 4 == 0) else {
            if let Some(change) = self.virtio.write(address, size, value) {
                self.interrupt_path().follow(change);
            } else {
                self.pv.write(address, size, value);
                // A line may have another vector.
                self.lapic.note_change();
            }
            return;
        };
        if size > 4 {
            self.write_register(is_lapic, offset, value as u32, 4, now);
            return self.write_register(is_lapic, offset + 4, (value >> 32) as u32, size - 4, now);
        }
        self.write_register(is_lapic, offset, value as u32, size, now);
    }

    /// Writes the low `size` bytes of a register; the others become zero.
    fn write_register(&mut self, is_lapic: bool, offset: u64, value: u32, size: u8, now: Time) {
        let value = if size < 4 { value & ((1 << (8 * size)) - 1) } else { value };
        if is_lapic {
            let effect = self.lapic.mmio_write(offset, value, now.guest);
            self.apply(effect);
        } else {
            let messages = self.ioapic.mmio_write(offset, value);
            messages.iter().for_each(|message| self.interrupt_path().deliver(message));
        }
    }

    /// Lets virtio devices that were notified look at their queues; `log` gets what is to be said about their drivers.
    #[inline(never)]
    pub(crate) fn run_virtio<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        now: u64,
        mut log: impl FnMut(String),
    ) {
        let wait = self.tsc_hz / SETTLES_PER_SECOND;
        let settling = Settling { at: now + wait, by: now + MOST_PUT_OFF * wait };
        let (virtio, mut path) = self.virtio_and_path();
        virtio.run(memory, settling, |change, complaint| {
            path.follow(change);
            complaint.into_iter().for_each(&mut log);
        });
        self.has_output |= self.virtio.take_has_output();
    }

    /// Tells drivers of virtio devices what could wait, if it has waited long enough at `now`; `log` is as in [`Self::run_virtio`].
    #[inline]
    pub(crate) fn settle_virtio<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        now: u64,
        log: impl FnMut(String),
    ) {
        if now >= self.virtio.settle_at() {
            self.settle_due_virtio(memory, log);
        }
    }

    #[cold]
    fn settle_due_virtio<M: GuestMemory>(&mut self, memory: &mut M, mut log: impl FnMut(String)) {
        let (virtio, mut path) = self.virtio_and_path();
        virtio.settle(memory, |change, complaint| {
            path.follow(change);
            complaint.into_iter().for_each(&mut log);
        });
    }

    /// Lets virtio devices look for what came from behind them; `log` is as in [`Self::run_virtio`].
    #[inline]
    pub(crate) fn poll_virtio<M: GuestMemory>(&mut self, memory: &mut M, log: impl FnMut(String)) {
        if self.virtio.is_driven() {
            self.poll_driven_virtio(memory, log);
        }
    }

    #[inline(never)]
    fn poll_driven_virtio<M: GuestMemory>(&mut self, memory: &mut M, mut log: impl FnMut(String)) {
        let (virtio, mut path) = self.virtio_and_path();
        virtio.poll(memory, |change, complaint| {
            path.follow(change);
            complaint.into_iter().for_each(&mut log);
        });
    }

    /// The guest rang the doorbell of a paravirtual device; returns what is to be said about its driver.
    #[inline]
    pub(crate) fn ring_pv<M: GuestMemory>(&mut self, call: u16, memory: &mut M) -> Option<String> {
        let mut wires = Wires { lapic: &mut self.lapic, request: &mut self.request, complaint: None };
        self.has_output |= self.pv.ring(call, memory, &mut wires);
        wires.complaint
    }

    /// Lets paravirtual devices do what they left; returns what is to be said about their drivers.
    #[cold]
    pub(crate) fn catch_up_pv<M: GuestMemory>(&mut self, memory: &mut M) -> Option<String> {
        let mut wires = Wires { lapic: &mut self.lapic, request: &mut self.request, complaint: None };
        self.has_output |= self.pv.catch_up(memory, &mut wires);
        wires.complaint
    }

    /// Lets paravirtual disks end what their backends have carried out since; returns what is to be said about drivers.
    pub(crate) fn poll_pv<M: GuestMemory>(&mut self, memory: &mut M) -> Option<String> {
        let mut wires = Wires { lapic: &mut self.lapic, request: &mut self.request, complaint: None };
        self.pv.collect(memory, &mut wires);
        wires.complaint
    }

    /// Has balloons say how many pages the owner of the memory would like to have.
    pub(crate) fn set_balloon_target(&mut self, pages: u64) {
        let (virtio, mut path) = self.virtio_and_path();
        virtio.set_balloon_target(pages, |change| path.follow(change));
        let mut wires = Wires { lapic: &mut self.lapic, request: &mut self.request, complaint: None };
        self.pv.set_balloon_target(pages, &mut wires);
    }

    /// Has consoles say how large their terminal is.
    pub(crate) fn set_console_size(&mut self, columns: u16, rows: u16) {
        let (virtio, mut path) = self.virtio_and_path();
        virtio.set_console_size(columns, rows, |change| path.follow(change));
    }

    /// Unix time in nanoseconds at guest TSC 0, modulo 2^64.
    fn unix_ns_at_zero(&self, now: Time) -> u64 {
        const NANOSECONDS: u128 = 1_000_000_000;
        let since = u128::from(now.guest) * NANOSECONDS / u128::from(self.tsc_hz.max(1));
        self.clock.unix_nanoseconds(now.guest).wrapping_sub(since as u64)
    }

    /// The virtio devices, and the way of their interrupts.
    #[inline]
    fn virtio_and_path(&mut self) -> (&mut VirtioBus, InterruptPath<'_>) {
        let Board { virtio, ioapic, lapic, is_nmi_pending, request, .. } = self;
        (virtio, InterruptPath { ioapic, lapic, is_nmi_pending, request })
    }

    fn interrupt_path(&mut self) -> InterruptPath<'_> {
        self.virtio_and_path().1
    }

    /// Which device has this address: the local APIC if true, else the I/O APIC; and the offset in it.
    fn find_memory(&self, address: u64) -> Option<(bool, u64)> {
        let within = |base: u64, size: u64| Some(address.wrapping_sub(base)).filter(|offset| *offset < size);
        if let Some(offset) = self.lapic.mmio_base().and_then(|base| within(base, lapic::MMIO_BYTES)) {
            return Some((true, offset));
        }
        within(layout::IO_APIC, ioapic::MMIO_BYTES).map(|offset| (false, offset))
    }

    /// Does what a local APIC's register write asks of the board. There is one CPU: IPIs reach it or nobody.
    pub(crate) fn apply(&mut self, effect: Effect) {
        if let Some(vector) = effect.eoi_broadcast() {
            let messages = self.ioapic.eoi(vector);
            messages.iter().for_each(|message| self.interrupt_path().deliver(message));
        }
        if let Some(ipi) = effect.ipi()
            && self.lapic.is_addressed_by(ipi, self.lapic.apic_id())
        {
            self.interrupt_path().interrupt(ipi.mode, ipi.vector, false);
        }
    }

    /// Lets timers expire, and the serial ports take input.
    pub(crate) fn advance(&mut self, now: Time) {
        self.lapic.advance(now.guest);
        if self.has_input {
            (0..SERIAL_PORTS.len()).for_each(|index| self.feed(index));
            self.has_input = self.input.iter().any(|input| !input.is_empty());
        }
    }

    /// Moves input to a serial port that has none. One that still has some is left alone: only between two pieces does
    /// its line fall, and only a rise interrupts a guest whose I/O APIC pin is edge-triggered.
    fn feed(&mut self, index: usize) {
        let (uart, input) = (&mut self.uarts[index], &mut self.input[index]);
        let room = uart.room().min(input.len());
        if room > 0 && uart.is_drained() {
            let bytes: Vec<u8> = input.drain(..room).collect();
            uart.receive(&bytes);
            self.update_line(PortDevice::Uart(index));
        }
    }

    /// Samples the interrupt line of a device, if it has one.
    fn update_line(&mut self, device: PortDevice) {
        let PortDevice::Uart(index) = device else {
            return;
        };
        let level = self.uarts[index].irq_level();
        self.interrupt_path().set_line(SERIAL_PORTS[index].gsi.into(), level);
    }

    /// Tells the guest how long its CPU was kept from running.
    pub(crate) fn tell_steal_time<M: GuestMemory>(&mut self, memory: &mut M, now: Time) {
        self.steal_time.tell(&self.vcpu_clock, &self.clock, memory, now.host);
    }

    /// The guest set its TSC from `old` to `new`; clock and timer go on as if nothing had happened.
    pub(crate) fn shift_tsc(&mut self, old: u64, new: u64) {
        self.lapic.shift_tsc(old, new);
        self.clock_zero = self.clock_zero.wrapping_add(new.wrapping_sub(old));
        self.clock = PvClock::new(self.tsc_hz, self.clock_zero, self.clock_unix_ns, true);
    }

    /// Queues input for a serial port; returns how many bytes were taken.
    pub(crate) fn queue_input(&mut self, port: usize, bytes: &[u8]) -> usize {
        // The console is where the guest's driver is.
        if port == CONSOLE_PORT
            && let Some(taken) = self.pv.queue_input(bytes).or_else(|| self.virtio.queue_input(bytes))
        {
            return taken;
        }
        let Some(input) = self.input.get_mut(port) else {
            return 0;
        };
        let taken = bytes.len().min(INPUT_MAX.saturating_sub(input.len()));
        input.extend(&bytes[..taken]);
        self.has_input |= taken > 0;
        taken
    }

    /// Whether the guest sent something since this was last asked.
    pub(crate) fn take_has_output(&mut self) -> bool {
        core::mem::take(&mut self.has_output)
    }

    /// Takes what the guest sent to a serial port.
    pub(crate) fn take_output(&mut self, port: usize) -> impl Iterator<Item = u8> {
        let from_others =
            (port == CONSOLE_PORT).then(|| self.pv.take_output().chain(self.virtio.take_output()));
        let from_uart = self.uarts.get_mut(port).into_iter().flat_map(Uart::take_output);
        from_uart.chain(from_others.into_iter().flatten())
    }

    /// Takes what the guest sent to the debug consoles.
    pub(crate) fn take_debug_output(&mut self) -> impl Iterator<Item = u8> {
        self.debug_output.drain(..)
    }

    pub(crate) fn has_nmi(&self) -> bool {
        self.is_nmi_pending
    }

    pub(crate) fn raise_nmi(&mut self) {
        self.is_nmi_pending = true;
    }

    pub(crate) fn take_nmi(&mut self) {
        self.is_nmi_pending = false;
    }

    pub(crate) fn has_request(&self) -> bool {
        self.request.is_some()
    }

    pub(crate) fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    fn write_control_a(&mut self, value: u8) -> Option<Request> {
        let does_rise = value & !self.control_a & CONTROL_RESET != 0;
        self.control_a = value & (CONTROL_RESET | CONTROL_A20);
        does_rise.then_some(Request::Reset)
    }

    fn take_debug_event(&mut self, event: Option<DebugEvent>) {
        match event {
            Some(DebugEvent::Console(byte) | DebugEvent::Firmware(byte)) => {
                self.debug_output.push(byte);
                self.has_output = true;
            }
            Some(DebugEvent::Request(request)) => self.request = self.request.or(Some(request)),
            Some(DebugEvent::Post(_)) | None => {}
        }
    }
}

/// The ports of an access that belong to the device at its first port, in order.
fn owned(
    ports: &Bus<PortDevice>,
    device: PortDevice,
    port: u16,
    size: u8,
) -> impl Iterator<Item = u16> + use<> {
    let others = (1..size.min(4)).take_while(|index| {
        let next = u64::from(port) + u64::from(*index);
        ports.find(next).is_some_and(|(other, _)| other == device)
    });
    (0..=others.count()).map(move |index| port.wrapping_add(index as u16))
}

fn port_map() -> Bus<PortDevice> {
    let mut ranges = alloc::vec![
        (rtc::INDEX_PORT, 2, PortDevice::Rtc),
        (debug::EXIT_PORT, debug::EXIT_PORTS, PortDevice::Debug),
        (acpi_pm::PM_TIMER_PORT, acpi_pm::PM_TIMER_PORTS, PortDevice::AcpiPm),
    ];
    let singles = [
        (i8042::DATA_PORT, PortDevice::I8042),
        (i8042::COMMAND_PORT, PortDevice::I8042),
        (debug::POST_PORT, PortDevice::Debug),
        (debug::CONSOLE_PORT, PortDevice::Debug),
        (debug::FIRMWARE_PORT, PortDevice::Debug),
        (acpi_pm::SLEEP_PORT, PortDevice::AcpiPm),
        (acpi_pm::RESET_CONTROL_PORT, PortDevice::AcpiPm),
        (CONTROL_PORT_A, PortDevice::ControlA),
    ];
    ranges.extend(singles.map(|(port, device)| (port, 1, device)));
    for (index, serial) in SERIAL_PORTS.iter().enumerate() {
        ranges.push((serial.port, uart16550::PORTS.into(), PortDevice::Uart(index)));
    }
    let mut ports = Bus::new();
    for (port, count, device) in ranges {
        let inserted = ports.insert(port.into()..u64::from(port) + u64::from(count), device);
        debug_assert!(inserted.is_ok(), "the board's devices do not overlap");
    }
    ports
}
