//! The MSRs that guests read and write without an exit (SDM 3C 24.6.9).

use super::syscall_msrs::{CSTAR, KERNEL_GS_BASE, LSTAR, SFMASK, STAR, TSC_AUX};
use crate::virt::vapic;

/// Bytes of a bitmap: one frame.
pub const BITMAP_BYTES: usize = 4096;

/// MSRs that the VMCS switches, on entry or on exit or both; and KERNEL_GS_BASE, which SWAPGS changes anyway.
const PASSED: [u32; 8] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0x277,       // IA32_PAT: WRMSR refuses bad memory types by itself.
    0xc000_0080, // IA32_EFER: with "unrestricted guest" LMA and the entry control follow.
    0xc000_0100, // IA32_FS_BASE
    0xc000_0101, // IA32_GS_BASE
    KERNEL_GS_BASE,
];

/// MSRs that the kernel switches when it loads and unloads a vCPU: only their reads pass.
const READ_ONLY: [u32; 4] = [STAR, LSTAR, CSTAR, SFMASK];

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
    let tsc_aux = if has_tsc_aux { Some(TSC_AUX) } else { None };
    for msr in READ_ONLY.into_iter().chain(tsc_aux).chain(PASSED) {
        if let Some((byte, bit)) = read_bit(msr) {
            bitmap[byte] &= !bit;
        }
    }
    for msr in PASSED {
        if let Some((byte, bit)) = read_bit(msr) {
            bitmap[byte + 2048] &= !bit;
        }
    }
}

/// Lets the guest write the x2APIC's TPR, EOI and SELF IPI or not. Only while the controls make these the virtual-APIC page's: they
/// would be the registers of the CPU's own APIC otherwise.
pub fn open_apic(bitmap: &mut [u8; BITMAP_BYTES], is_open: bool) {
    for msr in [vapic::msr::TPR, vapic::msr::EOI, vapic::msr::SELF_IPI] {
        if let Some((byte, bit)) = read_bit(msr) {
            let byte = &mut bitmap[byte + 2048];
            *byte = if is_open { *byte & !bit } else { *byte | bit };
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
    fn msrs_that_the_hardware_switches_pass_in_both_directions() {
        let mut bitmap = [0; BITMAP_BYTES];
        fill(&mut bitmap, true);
        for msr in [0x174, 0x277, 0xc000_0080, 0xc000_0100, 0xc000_0102] {
            assert!(!exits(&bitmap, msr, false) && !exits(&bitmap, msr, true), "{msr:#x}");
        }
    }

    #[test]
    fn the_kernel_sees_writes_of_the_msrs_that_it_switches() {
        let mut bitmap = [0; BITMAP_BYTES];
        fill(&mut bitmap, true);
        for msr in [STAR, LSTAR, CSTAR, SFMASK, TSC_AUX] {
            assert!(!exits(&bitmap, msr, false) && exits(&bitmap, msr, true), "{msr:#x}");
        }
    }

    #[test]
    fn three_registers_of_the_apic_are_open_to_writes_on_demand() {
        let mut bitmap = [0; BITMAP_BYTES];
        fill(&mut bitmap, true);
        let before = bitmap;
        open_apic(&mut bitmap, true);
        for msr in 0x800..0x900 {
            let is_open = [0x808, 0x80b, 0x83f].contains(&msr);
            assert!(exits(&bitmap, msr, false) && exits(&bitmap, msr, true) != is_open, "{msr:#x}");
        }
        open_apic(&mut bitmap, false);
        assert_eq!(bitmap, before);
    }

    #[test]
    fn everything_else_exits() {
        let mut bitmap = [0; BITMAP_BYTES];
        fill(&mut bitmap, false);
        // TSC, APIC base, feature control, SPEC_CTRL, DEBUGCTL, x2APIC, XSS, TSC_AUX.
        for msr in [0x10, 0x1b, 0x3a, 0x48, 0x1d9, 0x830, 0xda0, 0xc000_0103] {
            assert!(exits(&bitmap, msr, false) && exits(&bitmap, msr, true), "{msr:#x}");
        }
        let open: u32 = bitmap.iter().map(|byte| byte.count_zeros()).sum();
        assert_eq!(open, 2 * 8 + 4);
    }
}
