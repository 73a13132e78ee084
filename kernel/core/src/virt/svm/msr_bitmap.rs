//! The MSR permission map and the I/O permission map (APM 15.11, 15.10.1). One of each serves all guests.

/// Bytes of an MSR permission map.
pub const MSRPM_SIZE: usize = 0x2000;
/// Bytes of an I/O permission map: 64 Ki ports, and the access of 4 bytes at the last port.
pub const IOPM_SIZE: usize = 0x3000;

/// MSRs that the guest reads and writes itself: all of them are switched by VMLOAD and VMSAVE.
const PASSED_THROUGH: [u32; 11] = [
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
    PAT,
];

/// PAT: VMRUN switches it with nested paging (APM 15.25.4).
const PAT: u32 = 0x277;

/// A page-aligned permission map.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct PermissionMap<const SIZE: usize>(pub [u8; SIZE]);

/// Byte and bit of the read permission of an MSR; the write permission is the next bit.
fn position(msr: u32) -> Option<(usize, u32)> {
    let base = match msr & !0x1fff {
        0 => 0,
        0xc000_0000 => 0x800,
        0xc001_0000 => 0x1000,
        _ => return None,
    };
    let index = (msr & 0x1fff) as usize;
    Some((base + index / 4, (index % 4 * 2) as u32))
}

impl PermissionMap<MSRPM_SIZE> {
    /// Makes every MSR exit that the world switch does not cover; `pass_pat` is false where the machine does not switch the
    /// PAT ([`super::processor::Quirks::shares_pat`]).
    pub fn fill(&mut self, pass_pat: bool) {
        self.0.fill(0xff);
        for msr in PASSED_THROUGH {
            if let Some((byte, bit)) = position(msr)
                && (msr != PAT || pass_pat)
            {
                self.0[byte] &= !(3 << bit);
            }
        }
    }
}

impl PermissionMap<IOPM_SIZE> {
    /// Makes every port exit.
    pub fn fill(&mut self) {
        self.0.fill(0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EFER: u32 = 0xc000_0080;

    fn msr_map(pass_pat: bool) -> PermissionMap<MSRPM_SIZE> {
        let mut map = PermissionMap([0; MSRPM_SIZE]);
        map.fill(pass_pat);
        map
    }

    fn exits(map: &PermissionMap<MSRPM_SIZE>, msr: u32) -> (bool, bool) {
        let (byte, bit) = position(msr).unwrap();
        (map.0[byte] >> bit & 1 != 0, map.0[byte] >> (bit + 1) & 1 != 0)
    }

    #[test]
    fn only_the_msrs_that_the_world_switch_covers_are_passed_through() {
        let map = msr_map(true);
        for base in [0, 0xc000_0000, 0xc001_0000] {
            for msr in base..base + 0x2000 {
                let expected = !PASSED_THROUGH.contains(&msr);
                assert_eq!(exits(&map, msr), (expected, expected), "MSR {msr:#x}");
            }
        }
        assert_eq!(exits(&map, EFER), (true, true));
    }

    #[test]
    fn the_pat_exits_where_the_machine_does_not_switch_it() {
        assert_eq!(exits(&msr_map(true), PAT), (false, false));
        assert_eq!(exits(&msr_map(false), PAT), (true, true));
    }

    #[test]
    fn lstar_is_where_the_manual_puts_it() {
        // C000_0082H: third MSR of the second vector at byte 800H, bits 4 and 5.
        assert_eq!(position(0xc000_0082), Some((0x820, 4)));
        assert_eq!(position(0x4000_0000), None);
    }
}
