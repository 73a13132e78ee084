//! Intel's: legacy mode and queued invalidation (Intel Virtualization Technology for Directed I/O, revision 4.1; numbers in
//! parentheses are its sections).

use super::{Access, Delivery, Fault, Limits, Record, Request, Space};
use crate::addr::PhysAddr;
use crate::paging::PageSize;

/// In the low word of a context entry: it gives a space.
pub const PRESENT: u64 = 1 << 0;
/// In the low word of a context entry, also without a space: faults of the device are not recorded.
pub const SILENT: u64 = 1 << 1;
/// Invalidates all cached context entries (6.5.2.1).
pub const INVALIDATE_CONTEXTS: Record = [1 | 1 << 4, 0];
/// Invalidates all cached interrupts (6.5.2.7).
pub const INVALIDATE_INTERRUPTS: Record = [4, 0];
/// Faults from this to [`LAST_INTERRUPT_FAULT`] are about interrupts (chapter 7).
const FIRST_INTERRUPT_FAULT: u8 = 0x20;
const LAST_INTERRUPT_FAULT: u8 = 0x27;

/// The capability registers of a unit (11.4.2, 11.4.3).
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// CAP_REG.
    pub cap: u64,
    /// ECAP_REG.
    pub ecap: u64,
}

impl Capabilities {
    /// What the unit lacks, if it cannot be used.
    pub fn obstacle(self) -> Option<&'static str> {
        let Capabilities { cap, ecap } = self;
        let (first, count) = self.fault_records();
        if ecap & 1 << 1 == 0 {
            Some("it has no queued invalidation")
        } else if cap & 1 << 4 != 0 {
            Some("it has write buffers that must be flushed")
        } else if first + 16 * count > 4096 {
            Some("its fault records are too far from its other registers")
        } else {
            None
        }
    }

    /// What it can do.
    pub fn limits(self) -> Limits {
        let Capabilities { cap, ecap } = self;
        let has = |bit: u32| cap >> bit & 1 != 0;
        Limits {
            has_3_levels: has(9),
            has_4_levels: has(10),
            largest: match (has(34), has(35)) {
                (true, true) => PageSize::G1,
                (true, false) => PageSize::M2,
                _ => PageSize::K4,
            },
            domains: 1 << (4 + 2 * (cap & 7)).min(16),
            is_coherent: ecap & 1 != 0,
            remaps_interrupts: ecap & 1 << 3 != 0,
            has_wide_apic_ids: ecap & 1 << 4 != 0,
        }
    }

    /// Offset of the fault records of 16 bytes among the registers, and their number.
    pub fn fault_records(self) -> (usize, usize) {
        ((self.cap >> 24 & 0x3ff) as usize * 16, (self.cap >> 40 & 0xff) as usize + 1)
    }

    /// Invalidates all cached translations, and waits for accesses that used them where the unit can (6.5.2.3).
    pub fn invalidate_translations(self) -> Record {
        [2 | 1 << 4 | (self.cap >> 54 & 3) << 6, 0]
    }
}

/// The root-table entry of a bus (9.1).
pub fn root_entry(contexts: PhysAddr) -> Record {
    [contexts.0 | 1, 0]
}

/// The context entry of a device with a space of `levels` levels: untranslated requests only (9.3).
pub fn context_entry(space: Space, levels: usize) -> Record {
    [space.root.0 | PRESENT, (levels as u64 - 2) | u64::from(space.domain) << 8]
}

/// The entry of an interrupt (9.10): one that nobody waits for is dropped, and that is no fault. Devices are not told apart.
pub fn interrupt_entry(delivery: Option<Delivery>, has_wide_apic_ids: bool) -> Record {
    const FAULTS_OFF: u64 = 1 << 1;
    let Some(Delivery { vector, apic_id, is_level }) = delivery else { return [FAULTS_OFF, 0] };
    let destination = if has_wide_apic_ids { apic_id } else { apic_id << 8 };
    [PRESENT | u64::from(is_level) << 4 | u64::from(vector) << 16 | u64::from(destination) << 32, 0]
}

/// What the interrupt table's register says: a page of 256 entries (11.4, IRTA_REG).
pub fn interrupt_table(table: PhysAddr, has_wide_apic_ids: bool) -> u64 {
    table.0 | u64::from(has_wide_apic_ids) << 11 | 7
}

/// In the remappable format (5.1.2.2, 5.1.5.1).
pub fn request(delivery: Delivery) -> Request {
    let index = u32::from(delivery.vector);
    Request { redirection: index << 17 | 1 << 16, address: Request::BASE | index << 5 | 1 << 4, data: 0 }
}

/// Writes `value` to `status` when everything before it is done (6.5.2.8).
pub fn wait(status: PhysAddr, value: u32) -> Record {
    [5 | 1 << 5 | u64::from(value) << 32, status.0]
}

/// What a fault record says, if there is something in it (11.4.14).
pub fn fault([low, high]: Record) -> Option<Fault> {
    let reason = (high >> 32) as u8;
    let (access, address) = match reason {
        // The place in the table, as far as the request has one.
        FIRST_INTERRUPT_FAULT..=LAST_INTERRUPT_FAULT => (Access::Interrupt, low >> 48),
        _ if high >> 62 & 1 == 0 => (Access::Write, low & !0xfff),
        _ => (Access::Read, low & !0xfff),
    };
    (high >> 63 != 0).then_some(Fault { device: high as u16, address, access, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU's.
    const QEMU: Capabilities = Capabilities { cap: 0x00d2_008c_2226_0206, ecap: 0x00f0_0f4a };

    #[test]
    fn capabilities_are_decoded() {
        assert_eq!(QEMU.obstacle(), None);
        assert_eq!(QEMU.fault_records(), (0x220, 1));
        assert_eq!(QEMU.invalidate_translations(), [0xd2, 0]);
        let limits = Limits {
            has_3_levels: true,
            has_4_levels: false,
            largest: PageSize::G1,
            domains: 1 << 16,
            is_coherent: false,
            remaps_interrupts: true,
            has_wide_apic_ids: false,
        };
        assert_eq!((QEMU.limits(), limits.levels()), (limits, Some(3)));
        let better = Capabilities { cap: QEMU.cap & !7 | 1 << 10, ecap: QEMU.ecap | 1 }.limits();
        assert_eq!((better.levels(), better.domains), (Some(4), 16));
        assert_eq!(better.with(limits), Limits { domains: 16, ..limits });
        assert_eq!(Limits { has_3_levels: false, ..limits }.levels(), None);
    }

    #[test]
    fn a_unit_that_cannot_be_used_says_why() {
        for capabilities in [
            Capabilities { ecap: QEMU.ecap & !2, ..QEMU },
            Capabilities { cap: QEMU.cap | 1 << 4, ..QEMU },
            Capabilities { cap: QEMU.cap | 0x3ff << 24, ..QEMU },
            Capabilities { cap: QEMU.cap | 0xff << 40, ..QEMU },
        ] {
            assert!(capabilities.obstacle().is_some(), "{capabilities:x?}");
        }
    }

    #[test]
    fn entries_and_commands_have_the_bits_of_the_manual() {
        let space = Space { root: PhysAddr(0x12_3000), domain: 0x45 };
        assert_eq!(context_entry(space, 4), [0x12_3001, 0x4502]);
        assert_eq!(context_entry(space, 3), [0x12_3001, 0x4501]);
        assert_eq!(root_entry(PhysAddr(0x5000)), [0x5001, 0]);
        assert_eq!(wait(PhysAddr(0x7000), 9), [0x9_0000_0025, 0x7000]);
    }

    #[test]
    fn interrupts_have_the_bits_of_the_manual() {
        let message = Delivery { vector: 0x51, apic_id: 3, is_level: false };
        assert_eq!(interrupt_entry(Some(message), false), [0x300_0051_0001, 0]);
        let pin = Delivery { is_level: true, ..message };
        assert_eq!(interrupt_entry(Some(pin), true), [0x3_0051_0011, 0]);
        assert_eq!(interrupt_entry(None, true), [2, 0]);
        assert_eq!(request(message), Request { redirection: 0xa3_0000, address: 0xfee0_0a30, data: 0 });
        assert_eq!(interrupt_table(PhysAddr(0x7000), true), 0x7807);
    }

    #[test]
    fn a_fault_record_is_decoded() {
        assert_eq!(fault([0x1000, 0x40]), None);
        let found = Fault { device: 0x40, address: 0xbad_f000, access: Access::Write, reason: 5 };
        assert_eq!(fault([0xbad_f000, 1 << 63 | 5 << 32 | 0x40]), Some(found));
        assert_eq!(
            fault([0xbad_f000, 3 << 62 | 5 << 32 | 0x40]),
            Some(Fault { access: Access::Read, ..found })
        );
        let raised = Fault { address: 0x55, access: Access::Interrupt, reason: 0x22, ..found };
        assert_eq!(fault([0x55 << 48, 1 << 63 | 0x22 << 32 | 0x40]), Some(raised));
    }
}
