//! What the kernel refuses before VMRUN sees it (APM 15.5.1, "canonicalization and consistency checks").
//!
//! The checks look at the VMCB, which no VMM can write, so what was checked is what runs. QEMU makes few of them and
//! hardware all; some are ours alone, so that both vendors refuse the same states.

use super::processor::{Processor, SvmFeatures};
use super::vmcb::SaveArea;
use hypercall_abi::exit::EntryRule;

/// EFER.SVME: VMRUN demands it in the VMCB.
pub const EFER_SVME: u64 = 1 << 12;
/// CR0.ET: hardwired.
pub const CR0_ET: u64 = 1 << 4;

/// CR0.CD and CR0.NW. The guest's view may have them, the VMCB never: as on VMX, what the VMM loads does not switch
/// caching off, which would cost the sibling thread its cache as well. While the view has them, accesses of CR0 exit.
pub const HIDDEN_CR0: u64 = CR0_CD | CR0_NW;

const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// PE MP EM TS ET NE WP AM NW CD PG.
const CR0_DEFINED: u64 = 0xe005_003f;
const CR4_PAE: u64 = 1 << 5;
/// CR4.MCE. The VMCB always has it: without it a machine check in the guest is a shutdown, not one of the host's. While the guest's view
/// lacks it, reads of CR4 exit; writes do anyway.
pub const CR4_MCE: u64 = 1 << 6;
const CR4_PCIDE: u64 = 1 << 17;
/// EFER: long mode, once paging is on.
pub const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_FIXED: u64 = 2;
const RFLAGS_VM: u64 = 1 << 17;
/// Bits of RFLAGS that are always clear: 3, 5, 15, and from 22 on.
const RFLAGS_RESERVED: u64 = !0x3f_7fd7;
/// [`super::vmcb::VmcbSegment::attributes`]: P, L, D.
const PRESENT: u16 = 1 << 7;
const LONG: u16 = 1 << 9;
const DEFAULT: u16 = 1 << 10;

/// Checks the guest in the save area. `hidden_cr0` are the bits of the guest's CR0 that the VMCB does not have.
///
/// # Errors
/// The first rule that is broken.
pub fn check(save: &SaveArea, hidden_cr0: u64, processor: &Processor) -> Result<(), EntryRule> {
    check_control_registers(save, hidden_cr0, processor)?;
    check_efer(save, processor)?;
    check_rflags(save)?;
    check_code_segment(save)?;
    check_canonical(save)?;
    check_msrs(save, processor)
}

/// Checks what a VMM changes with [`hypercall_abi::vcpu::Groups::RIP`] alone, as after most exits.
///
/// # Errors
/// The first rule that is broken.
pub fn check_rip(save: &SaveArea) -> Result<(), EntryRule> {
    check_rflags(save)?;
    require(is_rip_valid(save, save.rip), EntryRule::Canonical)
}

fn require(condition: bool, rule: EntryRule) -> Result<(), EntryRule> {
    if condition { Ok(()) } else { Err(rule) }
}

fn is_long_mode(save: &SaveArea) -> bool {
    save.efer & EFER_LMA != 0
}

fn is_64_bit(save: &SaveArea) -> bool {
    is_long_mode(save) && save.cs.attributes & LONG != 0
}

fn check_control_registers(save: &SaveArea, hidden_cr0: u64, processor: &Processor) -> Result<(), EntryRule> {
    let cr0 = save.cr0 | hidden_cr0;
    let has = |value: u64, bit: u64| value & bit != 0;
    let is_valid = cr0 & !CR0_DEFINED == 0
        && (!has(cr0, CR0_NW) || has(cr0, CR0_CD))
        // SVM has paged real mode, VMX has not.
        && (!has(cr0, CR0_PG) || has(cr0, CR0_PE))
        && save.cr4 & !processor.cr4 == 0
        && (!has(save.cr4, CR4_PCIDE) || is_long_mode(save))
        && save.cr3 >> processor.physical_bits == 0;
    require(is_valid, EntryRule::ControlRegister)
}

fn check_efer(save: &SaveArea, processor: &Processor) -> Result<(), EntryRule> {
    let paging = save.cr0 & CR0_PG != 0;
    let long_mode = save.efer & EFER_LME != 0 && paging;
    let is_valid = save.efer & !processor.efer == 0
        && save.efer & EFER_SVME != 0
        && is_long_mode(save) == long_mode
        && (!long_mode || save.cr4 & CR4_PAE != 0);
    require(is_valid, EntryRule::Efer)
}

fn check_rflags(save: &SaveArea) -> Result<(), EntryRule> {
    let is_virtual_8086 = save.rflags & RFLAGS_VM != 0;
    let is_valid = save.rflags & RFLAGS_FIXED != 0
        && save.rflags & RFLAGS_RESERVED == 0
        && (!is_virtual_8086 || save.cr0 & CR0_PE != 0 && !is_long_mode(save));
    require(is_valid, EntryRule::Rflags)
}

fn check_code_segment(save: &SaveArea) -> Result<(), EntryRule> {
    let attributes = save.cs.attributes;
    let is_valid =
        attributes & PRESENT != 0 && (!is_long_mode(save) || attributes & (LONG | DEFAULT) != LONG | DEFAULT);
    require(is_valid, EntryRule::Segment)
}

/// 48 bits: nested tables have four levels, and guests are not given LA57.
fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// Whether the guest in the save area may go on at `rip`.
#[inline]
pub fn is_rip_valid(save: &SaveArea, rip: u64) -> bool {
    // The lower 4 GiB are valid in every mode.
    rip >> 32 == 0 || is_64_bit(save) && is_canonical(rip)
}

fn check_canonical(save: &SaveArea) -> Result<(), EntryRule> {
    let addresses = [
        save.fs.base,
        save.gs.base,
        save.ldtr.base,
        save.tr.base,
        save.gdtr.base,
        save.idtr.base,
        save.kernel_gs_base,
        save.lstar,
        save.cstar,
        save.sysenter_esp,
        save.sysenter_eip,
    ];
    let flat = [save.cs.base, save.ss.base, save.ds.base, save.es.base];
    let is_valid = is_rip_valid(save, save.rip)
        && addresses.iter().all(|&address| is_canonical(address))
        && flat.iter().all(|base| base >> 32 == 0);
    require(is_valid, EntryRule::Canonical)
}

fn check_msrs(save: &SaveArea, processor: &Processor) -> Result<(), EntryRule> {
    // LBR and BTF; without LBR virtualization the register is not switched.
    let debugctl = if processor.svm.contains(SvmFeatures::LBR_VIRT) { 3 } else { 0 };
    let is_valid = save.dr6 >> 32 == 0
        && save.dr7 >> 32 == 0
        && save.debugctl & !debugctl == 0
        && save.g_pat.to_le_bytes().iter().all(|&entry| matches!(entry, 0 | 1 | 4..=7));
    require(is_valid, EntryRule::Msr)
}

#[cfg(test)]
mod tests {
    use super::super::processor::tests::{hardware, tcg};
    use super::super::vmcb::{Vmcb, VmcbSegment};
    use super::*;

    /// A guest in 64-bit mode.
    fn long_mode() -> SaveArea {
        let mut save = Vmcb::after_reset().save;
        save.cr0 |= CR0_PE | CR0_PG;
        save.cr4 = CR4_PAE;
        save.efer |= EFER_LME | EFER_LMA;
        save.cs = VmcbSegment { selector: 0x10, attributes: 0xa9b, limit: u32::MAX, base: 0 };
        save
    }

    fn refused(change: impl FnOnce(&mut SaveArea)) -> Result<(), EntryRule> {
        let mut save = long_mode();
        change(&mut save);
        check(&save, 0, &hardware())
    }

    #[test]
    fn reset_and_long_mode_are_accepted() {
        let reset = Vmcb::after_reset().save;
        assert_eq!(check(&reset, HIDDEN_CR0, &hardware()), Ok(()));
        assert_eq!(check(&reset, HIDDEN_CR0, &tcg()), Ok(()));
        assert_eq!(refused(|_| ()), Ok(()));
    }

    #[test]
    fn control_registers_that_the_processor_refuses_are_refused() {
        let rule = Err(EntryRule::ControlRegister);
        assert_eq!(refused(|save| save.cr0 |= 1 << 32), rule);
        assert_eq!(refused(|save| save.cr0 |= 1 << 6), rule);
        assert_eq!(refused(|save| save.cr0 &= !CR0_PE), rule);
        assert_eq!(refused(|save| save.cr3 = 1 << 48), rule);
        assert_eq!(refused(|save| save.cr3 = 1 << 63), rule);
        for bit in [12, 13, 14, 23, 24, 32, 63] {
            assert_eq!(refused(|save| save.cr4 |= 1 << bit), rule, "CR4 bit {bit}");
        }
    }

    #[test]
    fn not_write_through_without_cache_disable_is_refused() {
        let reset = Vmcb::after_reset().save;
        assert_eq!(check(&reset, CR0_NW, &hardware()), Err(EntryRule::ControlRegister));
        assert_eq!(check(&reset, CR0_CD, &hardware()), Ok(()));
    }

    #[test]
    fn pcids_need_long_mode() {
        assert_eq!(refused(|save| save.cr4 |= CR4_PCIDE), Ok(()));
        let mut save = Vmcb::after_reset().save;
        save.cr4 |= CR4_PCIDE;
        assert_eq!(check(&save, 0, &hardware()), Err(EntryRule::ControlRegister));
    }

    #[test]
    fn efer_has_to_agree_with_paging() {
        let rule = Err(EntryRule::Efer);
        assert_eq!(refused(|save| save.efer &= !EFER_LMA), rule);
        assert_eq!(refused(|save| save.efer &= !EFER_LME), rule);
        assert_eq!(refused(|save| save.cr0 &= !CR0_PG), rule);
        assert_eq!(refused(|save| save.cr4 &= !CR4_PAE), rule);
        assert_eq!(refused(|save| save.efer &= !EFER_SVME), rule);
        assert_eq!(refused(|save| save.efer |= 1 << 13), rule);
        assert_eq!(refused(|save| save.efer |= 1 << 40), rule);
    }

    #[test]
    fn reserved_flags_are_refused() {
        let rule = Err(EntryRule::Rflags);
        assert_eq!(refused(|save| save.rflags = 0), rule);
        for bit in [3, 5, 15, 17, 22, 40, 63] {
            assert_eq!(refused(|save| save.rflags |= 1 << bit), rule, "RFLAGS bit {bit}");
        }
        assert_eq!(refused(|save| save.rflags = 0x3f_7fd7 & !RFLAGS_VM), Ok(()));
    }

    #[test]
    fn a_code_segment_cannot_be_64_and_32_bit() {
        assert_eq!(refused(|save| save.cs.attributes |= DEFAULT), Err(EntryRule::Segment));
        assert_eq!(refused(|save| save.cs.attributes &= !PRESENT), Err(EntryRule::Segment));
    }

    #[test]
    fn addresses_have_to_be_canonical() {
        let rule = Err(EntryRule::Canonical);
        const HOLE: u64 = 1 << 47;
        assert_eq!(refused(|save| save.rip = HOLE), rule);
        assert_eq!(refused(|save| save.fs.base = HOLE), rule);
        assert_eq!(refused(|save| save.gdtr.base = HOLE), rule);
        assert_eq!(refused(|save| save.kernel_gs_base = HOLE), rule);
        assert_eq!(refused(|save| save.lstar = HOLE), rule);
        assert_eq!(refused(|save| save.sysenter_eip = HOLE), rule);
        assert_eq!(refused(|save| save.cs.base = 1 << 32), rule);
        assert_eq!(refused(|save| save.rip = HOLE.wrapping_neg()), Ok(()));
    }

    #[test]
    fn a_32_bit_guest_has_a_32_bit_rip() {
        let mut save = Vmcb::after_reset().save;
        save.rip = 1 << 32;
        assert_eq!(check(&save, 0, &hardware()), Err(EntryRule::Canonical));
    }

    #[test]
    fn the_short_check_covers_rip_and_flags() {
        let mut save = long_mode();
        assert_eq!(check_rip(&save), Ok(()));
        save.rip = 1 << 47;
        assert_eq!(check_rip(&save), Err(EntryRule::Canonical));
        save.rflags = 0;
        assert_eq!(check_rip(&save), Err(EntryRule::Rflags));
    }

    #[test]
    fn msr_and_debug_register_values_are_checked() {
        let rule = Err(EntryRule::Msr);
        assert_eq!(refused(|save| save.dr6 |= 1 << 32), rule);
        assert_eq!(refused(|save| save.dr7 |= 1 << 63), rule);
        assert_eq!(refused(|save| save.g_pat = 2), rule);
        assert_eq!(refused(|save| save.g_pat = 8 << 56), rule);
        assert_eq!(refused(|save| save.debugctl = 4), rule);
        assert_eq!(refused(|save| save.debugctl = 2), Ok(()));
        let mut save = long_mode();
        save.debugctl = 2;
        assert_eq!(check(&save, 0, &tcg()), rule);
    }
}
