//! AMD's (AMD I/O Virtualization Technology Specification, revision 3.07; numbers in parentheses are its sections).

use super::{PATIENCE, Shared};
use crate::mem::phys_to_virt;
use core::sync::atomic::{Ordering, fence};
use kcore::addr::PhysAddr;
use kcore::boot::iommu::IommuUnit;
use kcore::iommu::amdvi::{self, Entry, LIMITS, PRESENT, SILENT};
use kcore::iommu::{Delivery, Fault, Limits, Record, Request, Space};

/// Offsets of registers (3.4).
mod register {
    pub(super) const DEVICE_TABLE: usize = 0x00;
    pub(super) const COMMANDS: usize = 0x08;
    pub(super) const EVENTS: usize = 0x10;
    pub(super) const CONTROL: usize = 0x18;
    pub(super) const FEATURES: usize = 0x30;
    pub(super) const COMMAND_HEAD: usize = 0x2000;
    pub(super) const COMMAND_TAIL: usize = 0x2008;
    pub(super) const EVENT_HEAD: usize = 0x2010;
    pub(super) const EVENT_TAIL: usize = 0x2018;
    pub(super) const STATUS: usize = 0x2020;
}
/// Bits of the control register (3.4.3).
mod control {
    pub(super) const ENABLE: u64 = 1 << 0;
    pub(super) const EVENTS: u64 = 1 << 2;
    pub(super) const EVENT_INTERRUPT: u64 = 1 << 3;
    pub(super) const COHERENT: u64 = 1 << 10;
    pub(super) const COMMANDS: u64 = 1 << 12;
}
/// Bits of the status register (3.4.8): events were lost; there are events. Both are cleared by writing 1.
const OVERFLOW: u64 = 1 << 0;
const EVENT: u64 = 1 << 1;
/// Length of a buffer of 256 records, a page, in its address register (3.4.2).
const RECORDS_256: u64 = 8 << 56;
const BUFFER_BYTES: u64 = 4096;
const DEVICES: u64 = 1 << 16;
const TABLE_PAGES: u64 = DEVICES * size_of::<Entry>() as u64 / 4096;
/// Looks at an event whose code is not there yet: the unit may move the tail first.
const EVENT_PATIENCE: u32 = 1000;

#[derive(Debug)]
pub(super) struct Unit {
    base: PhysAddr,
    control: u64,
    /// Its own bus, device and function.
    function: u16,
    /// Commands; behind them the answer to those that wait, and events.
    own: PhysAddr,
    tail: u64,
    /// Of the last command that waits.
    sequence: u32,
}

impl Unit {
    /// Reads what a unit can do, or says why it cannot be used.
    ///
    /// # Safety
    /// The unit's registers are mapped uncached in the direct map, and nobody else uses them.
    pub(super) unsafe fn probe(unit: &IommuUnit) -> Result<(Self, Limits), &'static str> {
        // Attributes of the link (IVHD flags, 5.2.2.1) where the control register has them.
        let flag = |from: u32, to: u32| u64::from(unit.link_flags >> from & 1) << to;
        let link = flag(0, 1) | flag(1, 8) | flag(2, 9) | flag(3, 11);
        let control = link
            | control::ENABLE
            | control::EVENTS
            | control::EVENT_INTERRUPT
            | control::COHERENT
            | control::COMMANDS;
        let own = PhysAddr(0);
        let unit = Unit { base: unit.address, control, function: unit.function, own, tail: 0, sequence: 0 };
        amdvi::obstacle(unit.read(register::FEATURES)).map_or(Ok((unit, LIMITS)), Err)
    }

    fn read(&self, offset: usize) -> u64 {
        // SAFETY: `probe` was told that the registers are mapped; offsets are inside their four pages.
        unsafe { phys_to_virt(self.base).add(offset).cast::<u64>().read_volatile() }
    }

    fn write(&self, offset: usize, value: u64) {
        // SAFETY: as in `read`. The unit reaches only memory that this file gives it.
        unsafe { phys_to_virt(self.base).add(offset).cast::<u64>().write_volatile(value) }
    }

    fn push(&mut self, record: Record) {
        let place = phys_to_virt(self.own.offset(self.tail)).cast::<Record>();
        // SAFETY: inside the page of commands, and free: `flush` waits for all before it.
        unsafe { place.write_volatile(record) };
        self.tail = (self.tail + 16) % BUFFER_BYTES;
    }

    fn answer(&self) -> PhysAddr {
        self.own.offset(BUFFER_BYTES)
    }

    fn events(&self) -> PhysAddr {
        self.own.offset(2 * BUFFER_BYTES)
    }

    /// Begins an empty log of events, and clears what the status says of an older one (2.5.13).
    fn start_log(&self) {
        self.write(register::CONTROL, self.control & !control::EVENTS);
        self.write(register::EVENTS, self.events().0 | RECORDS_256);
        self.write(register::EVENT_HEAD, 0);
        self.write(register::EVENT_TAIL, 0);
        self.write(register::STATUS, OVERFLOW | EVENT);
        self.write(register::CONTROL, self.control);
    }
}

fn entry(table: PhysAddr, device: u16) -> *mut u64 {
    phys_to_virt(table).cast::<Entry>().wrapping_add(device.into()).cast()
}

// SAFETY: an entry without a space lets nothing through (2.2.2.1). With one, devices reach what its tables say. `flush` invalidates
// everything, and waits.
unsafe impl super::Unit for Unit {
    fn table_pages(&self) -> u64 {
        TABLE_PAGES
    }

    unsafe fn prepare(&self, shared: Shared) {
        for device in 0..DEVICES {
            let nothing = amdvi::entry(None, shared.interrupts);
            // SAFETY: by the contract of this function.
            unsafe { entry(shared.devices, device as u16).cast::<Entry>().write(nothing) };
        }
    }

    unsafe fn is_assigned(&self, table: PhysAddr, device: u16) -> bool {
        // SAFETY: an entry of the table.
        unsafe { entry(table, device).read_volatile() & PRESENT != 0 }
    }

    unsafe fn assign(&self, table: PhysAddr, device: u16, space: Option<Space>, _levels: usize) {
        let entry = entry(table, device);
        // Its interrupts stay what they are.
        let [translation, domain, ..] = amdvi::entry(space, PhysAddr(0));
        // SAFETY: an entry of the table. A domain without rights, or rights that end with a domain that no device has: between the
        // two stores nothing is reached that should not be.
        unsafe {
            if space.is_none() {
                entry.write_volatile(translation);
            }
            entry.add(1).write_volatile(domain);
            entry.write_volatile(translation);
        }
    }

    unsafe fn silence(&self, table: PhysAddr, device: u16) -> bool {
        let entry = entry(table, device).wrapping_add(1);
        // SAFETY: an entry of the table.
        let old = unsafe { entry.read_volatile() };
        // SAFETY: as above.
        unsafe { entry.write_volatile(old | SILENT) };
        old & SILENT == 0
    }

    unsafe fn route(&self, shared: Shared, index: u8, delivery: Option<Delivery>) {
        let place = phys_to_virt(shared.interrupts).cast::<u32>().wrapping_add(index.into());
        // SAFETY: an entry of the table.
        unsafe { place.write_volatile(amdvi::interrupt_entry(delivery)) };
    }

    fn request(&self, delivery: Delivery) -> Request {
        Request::direct(delivery)
    }

    unsafe fn enable(&mut self, shared: Shared, own: PhysAddr, apic_id: u32) {
        self.own = own;
        // What the firmware left.
        self.write(register::CONTROL, 0);
        self.write(register::DEVICE_TABLE, shared.devices.0 | (TABLE_PAGES - 1));
        self.write(register::COMMANDS, own.0 | RECORDS_256);
        self.write(register::COMMAND_HEAD, 0);
        self.write(register::COMMAND_TAIL, 0);
        message::enable(self.function, apic_id);
        self.start_log();
        super::Unit::flush(self);
    }

    fn flush(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.push(amdvi::INVALIDATE_ALL);
        self.push(amdvi::wait(self.answer(), self.sequence));
        // Everything is seen before the unit is told.
        fence(Ordering::SeqCst);
        self.write(register::COMMAND_TAIL, self.tail);
        let answer: *const u32 = phys_to_virt(self.answer()).cast();
        // SAFETY: memory of the unit's own.
        if !(0..PATIENCE).any(|_| unsafe { answer.read_volatile() } == self.sequence) {
            panic!("the IOMMU at {:#x} does not answer", self.base.0);
        }
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let head = self.read(register::EVENT_HEAD) % BUFFER_BYTES;
        if head == self.read(register::EVENT_TAIL) % BUFFER_BYTES {
            if self.read(register::STATUS) & OVERFLOW != 0 {
                self.start_log();
            }
            self.write(register::STATUS, EVENT);
            return None;
        }
        let place = phys_to_virt(self.events().offset(head)).cast::<Record>();
        // SAFETY: inside the page of events. The second word is complete when the code in the first is.
        let event = unsafe {
            let _ = (0..EVENT_PATIENCE).any(|_| place.cast::<u64>().read_volatile() >> 60 != 0);
            let event = place.read_volatile();
            place.write_volatile([0; 2]);
            event
        };
        self.write(register::EVENT_HEAD, (head + 16) % BUFFER_BYTES);
        Some(amdvi::fault(event))
    }
}

/// The unit's interrupt: it is a PCI function with a message of its own (2.5, PCI Local Bus 3.0 6.8.1).
mod message {
    use crate::cpu::port;
    use crate::irq::vector;
    use kcore::iommu::{Delivery, Request};

    const MSI: u32 = 0x05;

    /// The register at `offset` is what port CFCH has.
    fn select(function: u16, offset: u32) {
        port::write32(0xcf8, 1 << 31 | u32::from(function) << 8 | offset & 0xfc);
    }

    fn read(function: u16, offset: u32) -> u32 {
        select(function, offset);
        port::read32(0xcfc)
    }

    fn write(function: u16, offset: u32, value: u32) {
        select(function, offset);
        port::write32(0xcfc, value);
    }

    /// Has the unit interrupt the CPU with this APIC ID. Without the capability, faults are only seen with the next one that is.
    pub(super) fn enable(function: u16, apic_id: u32) {
        let mut at = read(function, 0x34) & 0xfc;
        // More do not fit into the 256 bytes.
        for _ in 0..48 {
            let header = read(function, at);
            if header & 0xff == MSI {
                // With 64-bit addresses the data come one register later.
                let data = if header & 1 << 23 != 0 { at + 12 } else { at + 8 };
                // A unit does not remap what it raises itself.
                let told = Delivery { vector: vector::DMA_FAULT, apic_id, is_level: false };
                let request = Request::direct(told);
                write(function, at + 4, request.address);
                write(function, at + 8, 0);
                write(function, data, request.data);
                return write(function, at, header | 1 << 16);
            }
            at = header >> 8 & 0xfc;
        }
    }
}
