//! Intel's (Intel Virtualization Technology for Directed I/O, revision 4.1; numbers in parentheses are its sections).

use super::{PATIENCE, Shared, tables};
use crate::irq::vector;
use crate::mem::phys_to_virt;
use core::sync::atomic::{Ordering, fence};
use kcore::addr::PhysAddr;
use kcore::boot::iommu::IommuUnit;
use kcore::iommu::vtd::{self, Capabilities, PRESENT, SILENT};
use kcore::iommu::{Access, Delivery, Fault, Limits, Record, Request, Space};

/// Offsets of registers (11.4).
mod register {
    pub(super) const CAP: usize = 0x08;
    pub(super) const ECAP: usize = 0x10;
    pub(super) const GLOBAL_COMMAND: usize = 0x18;
    pub(super) const GLOBAL_STATUS: usize = 0x1c;
    pub(super) const ROOT_TABLE: usize = 0x20;
    pub(super) const FAULT_STATUS: usize = 0x34;
    pub(super) const FAULT_CONTROL: usize = 0x38;
    pub(super) const FAULT_DATA: usize = 0x3c;
    pub(super) const FAULT_ADDRESS: usize = 0x40;
    pub(super) const PROTECTED_MEMORY: usize = 0x64;
    pub(super) const QUEUE_TAIL: usize = 0x88;
    pub(super) const QUEUE_ADDRESS: usize = 0x90;
    pub(super) const INTERRUPT_TABLE: usize = 0xb8;
}
/// Bits of the global command and status registers.
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT_TABLE: u32 = 1 << 30;
const QUEUE: u32 = 1 << 26;
const INTERRUPTS: u32 = 1 << 25;
const SET_INTERRUPT_TABLE: u32 = 1 << 24;
/// In the fault control register: faults raise no interrupt.
const FAULTS_MASKED: u32 = 1 << 31;
/// Forbidden interrupts that are told. Of those in the format that names no place in the table, nothing but this ends the faults.
const REFUSALS: u32 = 64;
/// Commands in the queue's page.
const QUEUE_ENTRIES: u64 = 256;
/// Buses; each has a table of context entries behind the root table.
const BUSES: u64 = 256;
const TABLE_PAGES: u64 = 1 + BUSES;

#[derive(Debug)]
pub(super) struct Unit {
    base: PhysAddr,
    capabilities: Capabilities,
    queue: PhysAddr,
    /// Where the next command goes.
    tail: u64,
    /// Of the last command that waits.
    sequence: u32,
    /// Interrupts that were refused.
    refusals: u32,
}

impl Unit {
    /// Reads what a unit can do, or says why it cannot be used.
    ///
    /// # Safety
    /// The unit's registers are mapped uncached in the direct map, and nobody else uses them.
    pub(super) unsafe fn probe(unit: &IommuUnit) -> Result<(Self, Limits), &'static str> {
        let nothing = Capabilities { cap: 0, ecap: 0 };
        let mut unit = Unit {
            base: unit.address,
            capabilities: nothing,
            queue: PhysAddr(0),
            tail: 0,
            sequence: 0,
            refusals: 0,
        };
        let capabilities =
            Capabilities { cap: unit.read64(register::CAP), ecap: unit.read64(register::ECAP) };
        unit.capabilities = capabilities;
        capabilities.obstacle().map_or(Ok((unit, capabilities.limits())), Err)
    }

    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: `probe` was told that the registers are mapped; offsets are inside their page.
        unsafe { phys_to_virt(self.base).add(offset).cast::<u32>().read_volatile() }
    }

    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as in `read32`. The unit reaches only memory that this file gives it.
        unsafe { phys_to_virt(self.base).add(offset).cast::<u32>().write_volatile(value) }
    }

    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: as in `read32`.
        unsafe { phys_to_virt(self.base).add(offset).cast::<u64>().read_volatile() }
    }

    fn write64(&self, offset: usize, value: u64) {
        // SAFETY: as in `write32`.
        unsafe { phys_to_virt(self.base).add(offset).cast::<u64>().write_volatile(value) }
    }

    /// Writes the global command register, and waits until the status shows `bit` (11.4.4).
    fn command(&self, command: u32, bit: u32) {
        self.write32(register::GLOBAL_COMMAND, command);
        self.wait_until(|| self.read32(register::GLOBAL_STATUS) & bit == command & bit);
    }

    fn wait_until(&self, is_done: impl Fn() -> bool) {
        if !(0..PATIENCE).any(|_| is_done()) {
            panic!("the IOMMU at {:#x} does not answer", self.base.0);
        }
    }

    fn push(&mut self, record: Record) {
        // SAFETY: the queue is a page of the unit's; the place is inside, and free: `flush` waits for all before it.
        unsafe { phys_to_virt(self.queue).cast::<Record>().add(self.tail as usize).write_volatile(record) };
        self.tail = (self.tail + 1) % QUEUE_ENTRIES;
    }

    /// Address of the word that commands to wait write to.
    fn answer(&self) -> PhysAddr {
        self.queue.offset(4096)
    }
}

/// The context entry of a device, behind the root table.
fn context(table: PhysAddr, device: u16) -> *mut u64 {
    phys_to_virt(table.offset(4096 + u64::from(device) * 16)).cast()
}

fn write_back_context(table: PhysAddr, device: u16) {
    // SAFETY: the table is in the direct map, by the contracts of the callers.
    unsafe { tables::write_back(table.offset(4096 + u64::from(device) * 16), 16) };
}

// SAFETY: without a context entry there is no translation (6.2.1): devices reach nothing. With one, they reach what its tables say.
// `flush` invalidates contexts before translations (6.5.3.3), and waits.
unsafe impl super::Unit for Unit {
    fn table_pages(&self) -> u64 {
        TABLE_PAGES
    }

    unsafe fn prepare(&self, shared: Shared) {
        for bus in 0..BUSES {
            let entry = vtd::root_entry(shared.devices.offset(4096 * (1 + bus)));
            // SAFETY: the first page of the table.
            unsafe { phys_to_virt(shared.devices).cast::<Record>().add(bus as usize).write(entry) };
        }
    }

    unsafe fn is_assigned(&self, table: PhysAddr, device: u16) -> bool {
        // SAFETY: an entry of the table.
        unsafe { context(table, device).read_volatile() & PRESENT != 0 }
    }

    unsafe fn assign(&self, table: PhysAddr, device: u16, space: Option<Space>, levels: usize) {
        let entry = context(table, device);
        let [low, high] = space.map_or([0, 0], |space| vtd::context_entry(space, levels));
        // SAFETY: an entry of the table. While the other word changes, the one with the present bit says that there is none (9.3).
        unsafe {
            entry.write_volatile(0);
            entry.add(1).write_volatile(high);
            entry.write_volatile(low);
        }
        write_back_context(table, device);
    }

    unsafe fn silence(&self, table: PhysAddr, device: u16) -> bool {
        let entry = context(table, device);
        // SAFETY: an entry of the table.
        let low = unsafe { entry.read_volatile() };
        // SAFETY: as above.
        unsafe { entry.write_volatile(low | SILENT) };
        write_back_context(table, device);
        low & SILENT == 0
    }

    unsafe fn route(&self, shared: Shared, index: u8, delivery: Option<Delivery>) {
        let place = shared.interrupts.offset(16 * u64::from(index));
        let [low, _] = vtd::interrupt_entry(delivery, shared.limits.has_wide_apic_ids);
        // SAFETY: an entry of the table, whose other word is always 0.
        unsafe {
            phys_to_virt(place).cast::<u64>().write_volatile(low);
            tables::write_back(place, 16);
        }
    }

    fn request(&self, delivery: Delivery) -> Request {
        vtd::request(delivery)
    }

    unsafe fn enable(&mut self, shared: Shared, own: PhysAddr, apic_id: u32) {
        // What the firmware left: everything off, protected memory (11.4.16) too.
        self.command(0, TRANSLATION | QUEUE | INTERRUPTS);
        if self.capabilities.cap >> 5 & 3 != 0 {
            self.write32(register::PROTECTED_MEMORY, 0);
            self.wait_until(|| self.read32(register::PROTECTED_MEMORY) & 1 == 0);
        }
        self.queue = own;
        self.write64(register::QUEUE_TAIL, 0);
        self.write64(register::QUEUE_ADDRESS, own.0);
        self.command(QUEUE, QUEUE);
        self.write64(register::ROOT_TABLE, shared.devices.0);
        self.command(QUEUE | SET_ROOT_TABLE, SET_ROOT_TABLE);
        let Limits { remaps_interrupts, has_wide_apic_ids, .. } = shared.limits;
        if remaps_interrupts {
            let table = vtd::interrupt_table(shared.interrupts, has_wide_apic_ids);
            self.write64(register::INTERRUPT_TABLE, table);
            self.command(QUEUE | SET_INTERRUPT_TABLE, SET_INTERRUPT_TABLE);
        }
        super::Unit::flush(self);
        while super::Unit::next_fault(self).is_some() {}
        let told = Delivery { vector: vector::DMA_FAULT, apic_id, is_level: false };
        self.write32(register::FAULT_DATA, told.vector.into());
        self.write64(register::FAULT_ADDRESS, Request::direct(told).address.into());
        self.write32(register::FAULT_CONTROL, 0);
        // Interrupts in the format that is not remapped are refused from here on (5.1.4): the bit for them is clear.
        let on = if remaps_interrupts { QUEUE | INTERRUPTS } else { QUEUE };
        self.command(on, INTERRUPTS);
        self.command(on | TRANSLATION, TRANSLATION);
    }

    fn flush(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.push(vtd::INVALIDATE_CONTEXTS);
        self.push(self.capabilities.invalidate_translations());
        if self.capabilities.limits().remaps_interrupts {
            self.push(vtd::INVALIDATE_INTERRUPTS);
        }
        self.push(vtd::wait(self.answer(), self.sequence));
        // Everything is seen before the unit is told.
        fence(Ordering::SeqCst);
        self.write64(register::QUEUE_TAIL, self.tail << 4);
        let answer: *const u32 = phys_to_virt(self.answer()).cast();
        // SAFETY: the second page of the unit's own.
        self.wait_until(|| unsafe { answer.read_volatile() } == self.sequence);
    }

    fn next_fault(&mut self) -> Option<Fault> {
        let (first, count) = self.capabilities.fault_records();
        for at in (0..count).map(|index| first + 16 * index) {
            let high = self.read64(at + 8);
            if let Some(fault) = vtd::fault([self.read64(at), high]) {
                // Bit 127 is cleared by writing 1.
                self.write32(at + 12, 1 << 31);
                if fault.access == Access::Interrupt {
                    self.refusals = self.refusals.saturating_add(1);
                    if self.refusals == REFUSALS {
                        self.write32(register::FAULT_CONTROL, FAULTS_MASKED);
                    }
                }
                return Some(fault);
            }
        }
        // An overflow, too, or there would be no other interrupt (11.4.9).
        self.write32(register::FAULT_STATUS, 1);
        None
    }
}
