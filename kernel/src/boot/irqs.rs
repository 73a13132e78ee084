//! Where ISA interrupts are among the global system interrupts.

use kcore::boot::acpi::{AcpiInfo, IrqOverride};
use khw::irq::ioapic::Trigger;
use khw::sync::Lock;

static OVERRIDES: Lock<[Option<IrqOverride>; 16]> = Lock::new([None; 16]);

/// Takes the overrides of the MADT.
pub fn set_overrides(acpi: &AcpiInfo) {
    let mut overrides = OVERRIDES.lock();
    for entry in acpi.overrides.iter() {
        if let Some(slot) = overrides.get_mut(entry.irq as usize) {
            *slot = Some(*entry);
        }
    }
}

/// The GSI and trigger mode of interrupt `index`: for 0 to 15 the ISA interrupt of that number, else the GSI itself.
pub fn resolve(index: u32, trigger: Trigger) -> (u32, Trigger) {
    match OVERRIDES.lock().get(index as usize) {
        Some(Some(entry)) => (entry.gsi, Trigger { is_level: entry.level, is_low: entry.active_low }),
        // ISA: edge, active high.
        Some(None) => (index, Trigger { is_level: false, is_low: false }),
        None => (index, trigger),
    }
}
