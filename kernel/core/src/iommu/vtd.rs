//! Intel's: legacy mode and queued invalidation (Intel Virtualization Technology for Directed I/O, revision 4.1; numbers in
//! parentheses are its sections).

use super::{Fault, Limits, Record, Space};
use crate::addr::PhysAddr;
use crate::paging::PageSize;

/// In the low word of a context entry: it gives a space.
pub const PRESENT: u64 = 1 << 0;
/// In the low word of a context entry, also without a space: faults of the device are not recorded.
pub const SILENT: u64 = 1 << 1;
/// Invalidates all cached context entries (6.5.2.1).
pub const INVALIDATE_CONTEXTS: Record = [1 | 1 << 4, 0];

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

/// Writes `value` to `status` when everything before it is done (6.5.2.8).
pub fn wait(status: PhysAddr, value: u32) -> Record {
    [5 | 1 << 5 | u64::from(value) << 32, status.0]
}

/// What a fault record says, if there is something in it (11.4.14).
pub fn fault([low, high]: Record) -> Option<Fault> {
    (high >> 63 != 0).then_some(Fault {
        device: high as u16,
        address: low & !0xfff,
        is_write: high >> 62 & 1 == 0,
        reason: (high >> 32) as u8,
    })
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
    fn a_fault_record_is_decoded() {
        assert_eq!(fault([0x1000, 0x40]), None);
        let found = Fault { device: 0x40, address: 0xbad_f000, is_write: true, reason: 5 };
        assert_eq!(fault([0xbad_f000, 1 << 63 | 5 << 32 | 0x40]), Some(found));
        assert_eq!(fault([0xbad_f000, 3 << 62 | 5 << 32 | 0x40]), Some(Fault { is_write: false, ..found }));
    }
}
