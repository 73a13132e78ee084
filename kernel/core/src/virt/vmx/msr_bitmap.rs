//! The MSRs that guests read and write without an exit (SDM 3C 24.6.9).

/// Bytes of a bitmap: one frame.
pub const BITMAP_BYTES: usize = 4096;

/// MSRs that the VMCS switches, on entry or on exit or both.
const SWITCHED_BY_HARDWARE: [u32; 7] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0x277,       // IA32_PAT: WRMSR refuses bad memory types by itself.
    0xc000_0080, // IA32_EFER: with "unrestricted guest" LMA and the entry control follow.
    0xc000_0100, // IA32_FS_BASE
    0xc000_0101, // IA32_GS_BASE
];

/// MSRs that the kernel switches when it loads and unloads a vCPU.
const SWITCHED_BY_KERNEL: [u32; 5] = [
    0xc000_0081, // IA32_STAR
    0xc000_0082, // IA32_LSTAR
    0xc000_0083, // IA32_CSTAR
    0xc000_0084, // IA32_FMASK
    0xc000_0102, // IA32_KERNEL_GS_BASE
];

const TSC_AUX: u32 = 0xc000_0103;

/// Where the bit of an MSR for reads is: byte and bit; that for writes is 2048 bytes further. `None` for MSRs outside
/// of the two ranges, which always exit.
const fn read_bit(msr: u32) -> Option<(usize, u8)> {
    let (base, number) = match msr {
        0..0x2000 => (0, msr),
        0xc000_0000..0xc000_2000 => (1024, msr - 0xc000_0000),
        _ => return None,
    };
    Some((base + number as usize / 8, 1 << (number % 8)))
}

/// Makes every MSR exit but those that are switched; `has_tsc_aux` if IA32_TSC_AUX is one of them.
pub fn fill(bitmap: &mut [u8; BITMAP_BYTES], has_tsc_aux: bool) {
    bitmap.fill(0xff);
    let optional = if has_tsc_aux { Some(TSC_AUX) } else { None };
    for msr in SWITCHED_BY_HARDWARE
        .into_iter()
        .chain(SWITCHED_BY_KERNEL)
        .chain(optional)
    {
        if let Some((byte, bit)) = read_bit(msr) {
            bitmap[byte] &= !bit;
            bitmap[byte + 2048] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(bitmap: &[u8; BITMAP_BYTES], msr: u32, is_write: bool) -> bool {
        let (byte, bit) = read_bit(msr).unwrap();
        bitmap[byte + if is_write { 2048 } else { 0 }] & bit != 0
    }

    #[test]
    fn switched_msrs_pass_through_in_both_directions() {
        let mut bitmap = [0; BITMAP_BYTES];
        fill(&mut bitmap, true);
        for msr in [0x174, 0x277, 0xc000_0080, 0xc000_0082, 0xc000_0102, 0xc000_0103] {
            assert!(
                !exits(&bitmap, msr, false) && !exits(&bitmap, msr, true),
                "{msr:#x}"
            );
        }
    }

    #[test]
    fn everything_else_exits() {
        let mut bitmap = [0; BITMAP_BYTES];
        fill(&mut bitmap, false);
        // TSC, APIC base, feature control, SPEC_CTRL, DEBUGCTL, x2APIC, XSS, TSC_AUX.
        for msr in [0x10, 0x1b, 0x3a, 0x48, 0x1d9, 0x830, 0xda0, 0xc000_0103] {
            assert!(
                exits(&bitmap, msr, false) && exits(&bitmap, msr, true),
                "{msr:#x}"
            );
        }
        let open: u32 = bitmap.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(open, 2 * 12);
    }
}
