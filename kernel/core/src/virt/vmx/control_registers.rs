//! CR0, CR3, CR4 and EFER: what the guest sees, and what the hardware gets (SDM 3C 23.8, 24.6.6, 26.3.1.1).
//!
//! A bit is the guest's own, which it reads and writes without an exit, or the host's: the guest reads it from the
//! shadow, and an attempt to change it exits.

use hypercall_abi::exit::EntryRule;

/// CR0.PE.
pub const CR0_PE: u64 = 1 << 0;
/// CR0.ET.
pub const CR0_ET: u64 = 1 << 4;
/// CR0.NE.
pub const CR0_NE: u64 = 1 << 5;
/// CR0.NW.
pub const CR0_NW: u64 = 1 << 29;
/// CR0.CD.
pub const CR0_CD: u64 = 1 << 30;
/// CR0.PG.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.MCE.
pub const CR4_MCE: u64 = 1 << 6;
/// CR4.VMXE.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR4.PCIDE.
pub const CR4_PCIDE: u64 = 1 << 17;
/// EFER.LME.
pub const EFER_LME: u64 = 1 << 8;
/// EFER.LMA.
pub const EFER_LMA: u64 = 1 << 10;

/// PE, MP, EM, TS, WP, AM, PG. VM entry and exit do not switch CD and NW (SDM 3C 26.3.2.1): a guest's CD would slow down
/// the host, so these two are never the guest's own.
const CR0_GUEST: u64 = 0x8005_000f;

/// CR0 bits that a guest may see set.
const CR0_VISIBLE: u64 = CR0_GUEST | CR0_ET | CR0_NE | CR0_NW | CR0_CD;

/// CR4 bits that a guest may have where the CPU has them: VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT,
/// UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE. Not VMXE and SMXE, nor what needs state that nobody switches (CET, PKS,
/// user interrupts) or wider addresses than the checks here assume (LA57).
const CR4_GUEST: u64 = 0x0077_0fff;

/// SCE, LME, LMA, NXE.
const EFER_GUEST: u64 = 0xd01;

/// What VMX operation demands of CR0 and CR4: `fixed0` has the bits that must be 1, `fixed1` those that may be (SDM 3D
/// A.7, A.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBits {
    /// IA32_VMX_CR0_FIXED0.
    pub cr0_fixed0: u64,
    /// IA32_VMX_CR0_FIXED1.
    pub cr0_fixed1: u64,
    /// IA32_VMX_CR4_FIXED0.
    pub cr4_fixed0: u64,
    /// IA32_VMX_CR4_FIXED1.
    pub cr4_fixed1: u64,
}

/// The control registers of a guest, as it sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// PDPTEs, looked at under PAE paging only.
    pub pdpte: [u64; 4],
}

impl ControlRegisters {
    /// PAE paging, as opposed to 4-level and 32-bit paging: the PDPTEs count.
    pub const fn uses_pdptes(&self) -> bool {
        self.cr0 & CR0_PG != 0 && self.cr4 & CR4_PAE != 0 && self.efer & EFER_LMA == 0
    }
}

/// Splits the bits of CR0 and CR4 between guest and host on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlRules {
    /// CR0 bits that are the guest's own.
    cr0_own: u64,
    /// CR0 bits that are always 1.
    cr0_set: u64,
    /// CR4 bits that are the guest's own.
    cr4_own: u64,
    /// CR4 bits that are always 1.
    cr4_set: u64,
    /// CR4 bits that the guest may see set.
    cr4_visible: u64,
    /// Bits of a physical address.
    phys_bits: u8,
}

impl ControlRules {
    /// The rules on a CPU with these fixed bits and this physical-address width.
    pub const fn new(fixed: &FixedBits, phys_bits: u8) -> Self {
        // With "unrestricted guest", PE and PG are not fixed (SDM 3C 23.8).
        let cr0_set = fixed.cr0_fixed0 & !(CR0_PE | CR0_PG) | CR0_ET;
        // A machine check with MCE clear shuts the CPU down instead of exiting (SDM 3A 6.15, vector 18): it is the host's.
        let cr4_set = fixed.cr4_fixed0 | CR4_MCE;
        ControlRules {
            cr0_own: CR0_GUEST & fixed.cr0_fixed1 & !cr0_set,
            cr0_set,
            cr4_own: CR4_GUEST & fixed.cr4_fixed1 & !cr4_set,
            cr4_set,
            cr4_visible: CR4_GUEST & fixed.cr4_fixed1,
            phys_bits,
        }
    }

    /// Checks what a VMM wants its guest to see.
    ///
    /// # Errors
    /// The rule that is broken: control registers, or EFER.
    pub const fn check(&self, view: &ControlRegisters) -> Result<(), EntryRule> {
        let has_paging = view.cr0 & CR0_PG != 0;
        let is_long = view.efer & EFER_LMA != 0;
        if view.cr0 & !CR0_VISIBLE != 0
            || has_paging && view.cr0 & CR0_PE == 0
            || view.cr0 & CR0_NW != 0 && view.cr0 & CR0_CD == 0
            || view.cr4 & !self.cr4_visible != 0
            || view.cr4 & CR4_PCIDE != 0 && !is_long
            || !self.is_physical(view.cr3)
            || view.uses_pdptes() && !self.are_pdptes(&view.pdpte)
        {
            return Err(EntryRule::ControlRegister);
        }
        if view.efer & !EFER_GUEST != 0
            || is_long != (has_paging && view.efer & EFER_LME != 0)
            || is_long && view.cr4 & CR4_PAE == 0
        {
            return Err(EntryRule::Efer);
        }
        Ok(())
    }

    const fn is_physical(&self, value: u64) -> bool {
        self.phys_bits >= 64 || value >> self.phys_bits == 0
    }

    /// Present PDPTEs have no reserved bits (SDM 3C 26.3.1.6).
    const fn are_pdptes(&self, pdpte: &[u64; 4]) -> bool {
        const PRESENT: u64 = 1;
        const RESERVED: u64 = 0b1_1110_0110;
        let mut index = 0;
        while index < pdpte.len() {
            let entry = pdpte[index];
            if entry & PRESENT != 0 && (entry & RESERVED != 0 || !self.is_physical(entry)) {
                return false;
            }
            index += 1;
        }
        true
    }

    /// CR0 for the hardware, of what the guest sees.
    pub const fn real_cr0(&self, view: u64) -> u64 {
        view & self.cr0_own | self.cr0_set
    }

    /// CR4 for the hardware, of what the guest sees.
    pub const fn real_cr4(&self, view: u64) -> u64 {
        view & self.cr4_own | self.cr4_set
    }

    /// CR0 as the guest sees it, of the hardware's and the shadow.
    pub const fn seen_cr0(&self, real: u64, shadow: u64) -> u64 {
        real & self.cr0_own | shadow & !self.cr0_own
    }

    /// CR4 as the guest sees it, of the hardware's and the shadow.
    pub const fn seen_cr4(&self, real: u64, shadow: u64) -> u64 {
        real & self.cr4_own | shadow & !self.cr4_own
    }

    /// The CR0 guest/host mask.
    pub const fn cr0_mask(&self) -> u64 {
        !self.cr0_own
    }

    /// The CR4 guest/host mask.
    pub const fn cr4_mask(&self) -> u64 {
        !self.cr4_own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKYLAKE: FixedBits = FixedBits {
        cr0_fixed0: 0x8000_0021,
        cr0_fixed1: 0xffff_ffff,
        cr4_fixed0: 0x2000,
        cr4_fixed1: 0x0037_67ff,
    };
    const RULES: ControlRules = ControlRules::new(&SKYLAKE, 40);
    const RESET: ControlRegisters =
        ControlRegisters { cr0: 0x6000_0010, cr3: 0, cr4: 0, efer: 0, pdpte: [0; 4] };
    const LONG: ControlRegisters =
        ControlRegisters { cr0: 0x8005_0033, cr3: 0x1000, cr4: 0x20, efer: 0xd01, pdpte: [0; 4] };

    #[test]
    fn reset_state_is_accepted_and_seen_as_it_was_given() {
        assert_eq!(RULES.check(&RESET), Ok(()));
        let real = RULES.real_cr0(RESET.cr0);
        assert_eq!(real, CR0_NE | CR0_ET, "caches stay on, NE is what VMX demands");
        assert_eq!(RULES.seen_cr0(real, RESET.cr0), RESET.cr0);
        let real = RULES.real_cr4(RESET.cr4);
        assert_eq!(real, CR4_VMXE | CR4_MCE);
        assert_eq!(RULES.seen_cr4(real, RESET.cr4), 0);
    }

    #[test]
    fn what_the_guest_changes_by_itself_is_seen() {
        let shadow = RESET.cr0;
        let real = RULES.real_cr0(shadow) | CR0_PE | CR0_PG;
        assert_eq!(RULES.seen_cr0(real, shadow), shadow | CR0_PE | CR0_PG);
    }

    #[test]
    fn a_guest_sees_machine_checks_as_it_set_them_and_the_cpu_has_them_on() {
        for view in [LONG.cr4, LONG.cr4 | CR4_MCE] {
            assert_eq!(RULES.check(&ControlRegisters { cr4: view, ..LONG }), Ok(()));
            let real = RULES.real_cr4(view);
            assert_eq!(real & CR4_MCE, CR4_MCE);
            assert_eq!(RULES.seen_cr4(real, view), view);
        }
    }

    #[test]
    fn cache_control_vmxe_and_machine_checks_are_never_the_guests_own() {
        assert_eq!(RULES.cr0_mask() & (CR0_CD | CR0_NW | CR0_NE), CR0_CD | CR0_NW | CR0_NE);
        assert_eq!(RULES.cr0_mask() & (CR0_PE | CR0_PG), 0);
        assert_eq!(RULES.cr4_mask() & (CR4_VMXE | CR4_MCE), CR4_VMXE | CR4_MCE);
        assert_eq!(RULES.cr4_mask() & CR4_PAE, 0);
    }

    #[test]
    fn bits_that_the_cpu_or_the_kernel_does_not_offer_are_refused() {
        for cr4 in [CR4_VMXE, 1 << 11, 1 << 12, 1 << 14, 1 << 22, 1 << 23, 1 << 63] {
            let view = ControlRegisters { cr4: LONG.cr4 | cr4, ..LONG };
            assert_eq!(RULES.check(&view), Err(EntryRule::ControlRegister), "{cr4:#x}");
        }
        for cr0 in [1 << 6, 1 << 32, CR0_NW] {
            let view = ControlRegisters { cr0: LONG.cr0 | cr0, ..LONG };
            assert_eq!(RULES.check(&view), Err(EntryRule::ControlRegister), "{cr0:#x}");
        }
    }

    #[test]
    fn paging_needs_protection_and_pcids_need_long_mode() {
        let view = ControlRegisters { cr0: LONG.cr0 & !CR0_PE, ..LONG };
        assert_eq!(RULES.check(&view), Err(EntryRule::ControlRegister));
        let view = ControlRegisters { cr4: CR4_PCIDE, ..RESET };
        assert_eq!(RULES.check(&view), Err(EntryRule::ControlRegister));
        let view = ControlRegisters { cr4: LONG.cr4 | CR4_PCIDE, ..LONG };
        assert_eq!(RULES.check(&view), Ok(()));
    }

    #[test]
    fn lma_is_lme_with_paging() {
        assert_eq!(RULES.check(&LONG), Ok(()));
        for efer in [EFER_LMA, EFER_LME, 1 << 12, 1 << 14] {
            assert_eq!(RULES.check(&ControlRegisters { efer, ..LONG }), Err(EntryRule::Efer), "{efer:#x}");
        }
        assert_eq!(RULES.check(&ControlRegisters { cr4: 0, ..LONG }), Err(EntryRule::Efer));
        assert_eq!(RULES.check(&ControlRegisters { efer: EFER_LME, ..RESET }), Ok(()));
        assert_eq!(
            RULES.check(&ControlRegisters { efer: EFER_LME | EFER_LMA, ..RESET }),
            Err(EntryRule::Efer)
        );
    }

    #[test]
    fn cr3_and_pdptes_stay_below_the_physical_address_width() {
        let view = ControlRegisters { cr3: 1 << 40, ..LONG };
        assert_eq!(RULES.check(&view), Err(EntryRule::ControlRegister));
        let pae = ControlRegisters { efer: 0, pdpte: [0x1001, 0, 0x1e6, 0], ..LONG };
        assert_eq!(RULES.check(&pae), Ok(()), "reserved bits of an absent entry do not count");
        for entry in [0x1003, 0x1021, 1 << 63 | 1, 1 << 40 | 1] {
            let view = ControlRegisters { pdpte: [0, 0, 0, entry], ..pae };
            assert_eq!(RULES.check(&view), Err(EntryRule::ControlRegister), "{entry:#x}");
        }
    }
}
