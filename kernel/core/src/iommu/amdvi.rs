//! AMD's (AMD I/O Virtualization Technology Specification, revision 3.07; numbers in parentheses are its sections).

use super::{Access, Delivery, Fault, Limits, Record, Space};
use crate::addr::PhysAddr;
use crate::paging::PageSize;

/// An entry of the device table.
pub type Entry = [u64; 4];

/// In word 0 of an entry: it gives a space (IR).
pub const PRESENT: u64 = 1 << 61;
/// In word 1 of an entry: faults of the device are not logged (SA).
pub const SILENT: u64 = 1 << 34;
/// Invalidates everything (2.4.8).
pub const INVALIDATE_ALL: Record = [8 << 60, 0];

const VALID: u64 = 1 << 0;
const TRANSLATION_VALID: u64 = 1 << 1;
const LEVELS: u64 = 4;
const MODE: u32 = 9;
const WRITE: u64 = 1 << 62;

/// What is wrong with a unit with these extended features (3.4.9), if it cannot be used.
pub fn obstacle(features: u64) -> Option<&'static str> {
    (features & 1 << 6 == 0).then_some("it cannot invalidate everything at once")
}

/// What every unit can do.
pub const LIMITS: Limits = Limits {
    has_3_levels: true,
    has_4_levels: true,
    largest: PageSize::G1,
    domains: 1 << 16,
    is_coherent: true,
    remaps_interrupts: true,
    has_wide_apic_ids: false,
};

/// The entry of a device (2.2.2.1). Its fixed interrupts are what the table `interrupts` of 256 entries has; of the others it raises
/// none.
pub fn entry(space: Option<Space>, interrupts: PhysAddr) -> Entry {
    const NOTHING: u64 = VALID | TRANSLATION_VALID | LEVELS << MODE;
    const INTERRUPTS: u64 = 2 << 60 | 8 << 1 | VALID;
    let interrupts = INTERRUPTS | interrupts.0;
    match space {
        None => [NOTHING, 0, interrupts, 0],
        Some(Space { root, domain }) => [NOTHING | PRESENT | WRITE | root.0, domain.into(), interrupts, 0],
    }
}

/// The entry of an interrupt (2.2.5): one that nobody waits for is dropped, and that is no fault. What raises it says the vector as
/// without remapping, and that is the place in the table.
pub fn interrupt_entry(delivery: Option<Delivery>) -> u32 {
    const ENABLED: u32 = 1 << 0;
    const FAULTS_OFF: u32 = 1 << 1;
    delivery.map_or(FAULTS_OFF, |to| ENABLED | to.apic_id << 8 | u32::from(to.vector) << 16)
}

/// Writes `value` to `status` when everything before it is done (2.4.1).
pub fn wait(status: PhysAddr, value: u32) -> Record {
    [1 << 60 | status.0 | 1, value.into()]
}

/// What an event says (2.5): of those that are not about a device, device and address are what is there in their place.
pub fn fault([low, high]: Record) -> Fault {
    let access = match (low >> 51 & 1, low >> 53 & 1) {
        (1, _) => Access::Interrupt,
        (_, 1) => Access::Write,
        _ => Access::Read,
    };
    Fault { device: low as u16, address: high, access, reason: (low >> 60) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_commands_have_the_bits_of_the_manual() {
        let interrupts = PhysAddr(0x7_8000);
        assert_eq!(entry(None, interrupts), [0x803, 0, 0x2000_0000_0007_8011, 0]);
        let space = Space { root: PhysAddr(0x12_3000), domain: 0x45 };
        assert_eq!(entry(Some(space), interrupts), [0x6000_0000_0012_3803, 0x45, 0x2000_0000_0007_8011, 0]);
        assert_eq!(interrupt_entry(Some(Delivery { vector: 0x51, apic_id: 3, is_level: true })), 0x51_0301);
        assert_eq!(interrupt_entry(None), 2);
        assert_eq!(wait(PhysAddr(0x7000), 9), [0x1000_0000_0000_7001, 9]);
        assert_eq!((obstacle(0x29d3), obstacle(0).is_some()), (None, true));
    }

    #[test]
    fn an_event_is_decoded() {
        let found = Fault { device: 0x40, address: 0xbad_f000, access: Access::Write, reason: 2 };
        assert_eq!(fault([2 << 60 | 1 << 53 | 7 << 32 | 0x40, 0xbad_f000]), found);
        let raised = Fault { access: Access::Interrupt, ..found };
        assert_eq!(fault([2 << 60 | 1 << 51 | 7 << 32 | 0x40, 0xbad_f000]), raised);
    }
}
