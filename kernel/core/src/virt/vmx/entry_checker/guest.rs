//! Guest state (SDM 3C 26.3.1), segments apart.

use super::super::control_registers::{
    CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_MCE, CR4_PAE, CR4_PCIDE, EFER_LMA, EFER_LME,
};
use super::super::controls::{entry, secondary};
use super::super::fields;
use super::segments::{self, long_code};
use super::{Broken, Fields, Machine, fits, holds, is_canonical, is_pat};

const CONTROL: &str = "26.3.1.1";
const TABLES: &str = "26.3.1.3";
const RIP: &str = "26.3.1.4";
const NON_REGISTER: &str = "26.3.1.5";
const PDPTES: &str = "26.3.1.6";

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_VM: u64 = 1 << 17;

/// What kind of guest it is.
pub(super) struct Guest {
    pub(super) is_long: bool,
    pub(super) is_protected: bool,
    pub(super) is_v86: bool,
    pub(super) is_unrestricted: bool,
    has_paging: bool,
    rflags: u64,
    /// VM-entry interruption information.
    event: u32,
}

impl Guest {
    /// The event is valid and of this type.
    fn injects(&self, kind: u32) -> bool {
        self.event >> 31 != 0 && self.event >> 8 & 7 == kind
    }
}

pub(super) fn check(vmcs: &impl Fields, machine: &Machine<'_>) -> Result<(), Broken> {
    let cr0 = vmcs.read(fields::GUEST_CR0);
    let rflags = vmcs.read(fields::GUEST_RFLAGS);
    let guest = Guest {
        is_long: vmcs.read(fields::ENTRY_CONTROLS) & entry::IA32E_MODE_GUEST != 0,
        is_protected: cr0 & CR0_PE != 0,
        is_v86: rflags & RFLAGS_VM != 0,
        is_unrestricted: vmcs.read(fields::SECONDARY_CONTROLS) & secondary::UNRESTRICTED_GUEST != 0,
        has_paging: cr0 & CR0_PG != 0,
        rflags,
        event: vmcs.read(fields::ENTRY_INTERRUPTION_INFO),
    };
    check_control_registers(vmcs, machine, &guest)?;
    check_msrs(vmcs, &guest)?;
    segments::check(vmcs, &guest)?;
    check_tables(vmcs)?;
    check_rip(vmcs, &guest)?;
    check_interruptibility(vmcs, &guest)?;
    check_pending_debug(vmcs, &guest)?;
    check_link(vmcs)?;
    check_pdptes(vmcs, machine, &guest)
}

fn check_control_registers(vmcs: &impl Fields, machine: &Machine<'_>, guest: &Guest) -> Result<(), Broken> {
    let fixed = &machine.capabilities.fixed;
    let (cr0, cr4) = (vmcs.read(fields::GUEST_CR0), vmcs.read(fields::GUEST_CR4));
    let unfixed = if guest.is_unrestricted { CR0_PE | CR0_PG } else { 0 };
    // VM entry does not change CD and NW.
    let unchecked = CR0_CD | CR0_NW;
    let must = fixed.cr0_fixed0 & !unfixed & !unchecked;
    holds(
        cr0 & must == must && cr0 & !fixed.cr0_fixed1 & !unchecked == 0,
        CONTROL,
        "fixed bits of guest CR0",
    )?;
    holds(!guest.has_paging || guest.is_protected, CONTROL, "guest CR0.PG needs PE")?;
    holds(
        cr4 & fixed.cr4_fixed0 == fixed.cr4_fixed0 && cr4 & !fixed.cr4_fixed1 == 0,
        CONTROL,
        "fixed bits of guest CR4",
    )?;
    // No rule of VM entry: without it a machine check is a shutdown of the host, not an exit.
    holds(cr4 & CR4_MCE != 0, CONTROL, "guest CR4.MCE is the host's, and set")?;
    holds(
        !guest.is_long || guest.has_paging && cr4 & CR4_PAE != 0,
        CONTROL,
        "a guest in IA-32e mode has PAE paging",
    )?;
    holds(guest.is_long || cr4 & CR4_PCIDE == 0, CONTROL, "guest CR4.PCIDE needs IA-32e mode")?;
    holds(
        vmcs.read(fields::GUEST_CR3) >> machine.physical_bits == 0,
        CONTROL,
        "guest CR3 is a physical address",
    )
}

fn check_msrs(vmcs: &impl Fields, guest: &Guest) -> Result<(), Broken> {
    let controls = vmcs.read(fields::ENTRY_CONTROLS);
    if controls & entry::LOAD_DEBUG_CONTROLS != 0 {
        /// LBR, BTF, and 6 to 15.
        const DEFINED: u64 = 0xffc3;
        holds(
            vmcs.read(fields::GUEST_DEBUGCTL) & !DEFINED == 0,
            CONTROL,
            "reserved bits of guest IA32_DEBUGCTL",
        )?;
        holds(vmcs.read(fields::GUEST_DR7) >> 32 == 0, CONTROL, "reserved bits of guest DR7")?;
    }
    holds(
        is_canonical(vmcs.read(fields::GUEST_SYSENTER_ESP))
            && is_canonical(vmcs.read(fields::GUEST_SYSENTER_EIP)),
        CONTROL,
        "guest IA32_SYSENTER_ESP and IA32_SYSENTER_EIP are canonical",
    )?;
    holds(
        controls & entry::LOAD_PAT == 0 || is_pat(vmcs.read(fields::GUEST_PAT)),
        CONTROL,
        "guest IA32_PAT",
    )?;
    if controls & entry::LOAD_EFER == 0 {
        return Ok(());
    }
    const DEFINED: u64 = 0xd01;
    let efer = vmcs.read(fields::GUEST_EFER);
    let (has_lma, has_lme) = (efer & EFER_LMA != 0, efer & EFER_LME != 0);
    holds(efer & !DEFINED == 0, CONTROL, "reserved bits of guest IA32_EFER")?;
    holds(
        has_lma == guest.is_long && (!guest.has_paging || has_lma == has_lme),
        CONTROL,
        "guest IA32_EFER.LMA is the mode of the guest",
    )
}

fn check_tables(vmcs: &impl Fields) -> Result<(), Broken> {
    holds(
        is_canonical(vmcs.read(fields::GUEST_GDTR_BASE)) && is_canonical(vmcs.read(fields::GUEST_IDTR_BASE)),
        TABLES,
        "bases of guest GDTR and IDTR are canonical",
    )?;
    holds(
        vmcs.read(fields::GUEST_GDTR_LIMIT) >> 16 == 0 && vmcs.read(fields::GUEST_IDTR_LIMIT) >> 16 == 0,
        TABLES,
        "limits of guest GDTR and IDTR",
    )
}

fn check_rip(vmcs: &impl Fields, guest: &Guest) -> Result<(), Broken> {
    const RESERVED: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
    let rip = vmcs.read(fields::GUEST_RIP);
    holds(is_canonical(rip), RIP, "guest RIP is canonical")?;
    fits(
        rip >> 32 == 0 || guest.is_long && long_code(vmcs),
        RIP,
        "guest RIP has 32 bits outside of 64-bit mode",
    )?;
    holds(guest.rflags & RESERVED == 0 && guest.rflags & 2 != 0, RIP, "reserved bits of guest RFLAGS")?;
    fits(
        !guest.is_v86 || !guest.is_long && guest.is_protected,
        RIP,
        "virtual-8086 mode exists in protected mode only",
    )?;
    const EXTERNAL: u32 = 0;
    holds(
        !guest.injects(EXTERNAL) || guest.rflags & RFLAGS_IF != 0,
        RIP,
        "an external interrupt is injected with RFLAGS.IF set only",
    )
}

fn check_interruptibility(vmcs: &impl Fields, guest: &Guest) -> Result<(), Broken> {
    const STI: u32 = 1;
    const MOV_SS: u32 = 2;
    const SMI: u32 = 4;
    const NMI: u32 = 8;
    const ENCLAVE: u32 = 16;
    const EXTERNAL_EVENT: u32 = 0;
    const NMI_EVENT: u32 = 2;
    let state = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
    let activity = vmcs.read(fields::GUEST_ACTIVITY);
    // The kernel never enters a guest that is halted: only "active" has to be known.
    holds(activity == 0, NON_REGISTER, "guest activity state")?;
    holds(
        state & !(STI | MOV_SS | SMI | NMI | ENCLAVE) == 0,
        NON_REGISTER,
        "reserved bits of the interruptibility state",
    )?;
    holds(
        state & (STI | MOV_SS) != STI | MOV_SS,
        NON_REGISTER,
        "blocking by STI and by MOV SS exclude each other",
    )?;
    holds(
        state & STI == 0 || guest.rflags & RFLAGS_IF != 0,
        NON_REGISTER,
        "blocking by STI needs RFLAGS.IF",
    )?;
    holds(
        !guest.injects(EXTERNAL_EVENT) || state & (STI | MOV_SS) == 0,
        NON_REGISTER,
        "no external interrupt is injected in a shadow",
    )?;
    holds(
        !guest.injects(NMI_EVENT) || state & (STI | MOV_SS) == 0,
        NON_REGISTER,
        "no NMI is injected in a shadow",
    )?;
    holds(
        !guest.injects(NMI_EVENT) || state & NMI == 0,
        NON_REGISTER,
        "no NMI is injected while virtual NMIs are blocked",
    )?;
    holds(
        state & (SMI | ENCLAVE) == 0,
        NON_REGISTER,
        "neither SMM nor enclaves in the interruptibility state",
    )
}

fn check_pending_debug(vmcs: &impl Fields, guest: &Guest) -> Result<(), Broken> {
    const SHADOW: u32 = 3;
    /// B0 to B3, enabled breakpoint, BS.
    const DEFINED: u64 = 0x500f;
    const SINGLE_STEP: u64 = 1 << 14;
    const BTF: u64 = 2;
    let pending = vmcs.read(fields::GUEST_PENDING_DEBUG);
    holds(pending & !DEFINED == 0, NON_REGISTER, "reserved bits of the pending debug exceptions")?;
    if vmcs.read(fields::GUEST_INTERRUPTIBILITY) & SHADOW != 0 {
        let steps = guest.rflags & RFLAGS_TF != 0 && vmcs.read(fields::GUEST_DEBUGCTL) & BTF == 0;
        fits(
            (pending & SINGLE_STEP != 0) == steps,
            NON_REGISTER,
            "in a shadow a single-step trap is pending exactly if TF is set and BTF is not",
        )?;
    }
    Ok(())
}

fn check_link(vmcs: &impl Fields) -> Result<(), Broken> {
    holds(vmcs.read(fields::VMCS_LINK_POINTER) == u64::MAX, NON_REGISTER, "there is no linked VMCS")
}

fn check_pdptes(vmcs: &impl Fields, machine: &Machine<'_>, guest: &Guest) -> Result<(), Broken> {
    const RESERVED: u64 = 0x1e6;
    if !guest.has_paging || guest.is_long || vmcs.read(fields::GUEST_CR4) & CR4_PAE == 0 {
        return Ok(());
    }
    let is_valid =
        |entry: u64| entry & 1 == 0 || entry & RESERVED == 0 && entry >> machine.physical_bits == 0;
    holds(
        fields::GUEST_PDPTES.into_iter().all(|field| is_valid(vmcs.read(field))),
        PDPTES,
        "reserved bits of the guest's PDPTEs",
    )
}
