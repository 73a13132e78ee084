//! Host state (SDM 3C 26.2.2 to 26.2.4).

use super::super::control_registers::{CR4_PAE, EFER_LMA, EFER_LME};
use super::super::controls::{entry, exit};
use super::super::fields;
use super::{Broken, Fields, Machine, holds, is_canonical, is_pat};

const REGISTERS: &str = "26.2.2";
const SEGMENTS: &str = "26.2.3";
const ADDRESS_SPACE: &str = "26.2.4";

pub(super) fn check(vmcs: &impl Fields, machine: &Machine<'_>) -> Result<(), Broken> {
    check_registers(vmcs, machine)?;
    check_segments(vmcs)?;
    let exit_controls = vmcs.read(fields::EXIT_CONTROLS);
    // The kernel runs in 64-bit mode.
    holds(
        exit_controls & exit::HOST_64_BIT != 0,
        ADDRESS_SPACE,
        "the host's address-space size is that of the CPU at VM entry",
    )?;
    holds(vmcs.read(fields::HOST_CR4) & CR4_PAE != 0, ADDRESS_SPACE, "host CR4.PAE in a 64-bit host")?;
    holds(is_canonical(vmcs.read(fields::HOST_RIP)), ADDRESS_SPACE, "host RIP is canonical")?;
    holds(
        exit_controls & exit::HOST_64_BIT != 0
            || vmcs.read(fields::ENTRY_CONTROLS) & entry::IA32E_MODE_GUEST == 0,
        ADDRESS_SPACE,
        "a guest in IA-32e mode needs a 64-bit host",
    )
}

fn check_registers(vmcs: &impl Fields, machine: &Machine<'_>) -> Result<(), Broken> {
    let fixed = &machine.capabilities.fixed;
    let (cr0, cr4) = (vmcs.read(fields::HOST_CR0), vmcs.read(fields::HOST_CR4));
    let exit_controls = vmcs.read(fields::EXIT_CONTROLS);
    holds(
        cr0 & fixed.cr0_fixed0 == fixed.cr0_fixed0 && cr0 & !fixed.cr0_fixed1 == 0,
        REGISTERS,
        "fixed bits of host CR0",
    )?;
    holds(
        cr4 & fixed.cr4_fixed0 == fixed.cr4_fixed0 && cr4 & !fixed.cr4_fixed1 == 0,
        REGISTERS,
        "fixed bits of host CR4",
    )?;
    holds(
        vmcs.read(fields::HOST_CR3) >> machine.physical_bits == 0,
        REGISTERS,
        "host CR3 is a physical address",
    )?;
    holds(
        is_canonical(vmcs.read(fields::HOST_SYSENTER_ESP))
            && is_canonical(vmcs.read(fields::HOST_SYSENTER_EIP)),
        REGISTERS,
        "host IA32_SYSENTER_ESP and IA32_SYSENTER_EIP are canonical",
    )?;
    holds(
        exit_controls & exit::LOAD_PAT == 0 || is_pat(vmcs.read(fields::HOST_PAT)),
        REGISTERS,
        "host IA32_PAT",
    )?;
    if exit_controls & exit::LOAD_EFER == 0 {
        return Ok(());
    }
    const DEFINED: u64 = 0xd01;
    let efer = vmcs.read(fields::HOST_EFER);
    let mode = if exit_controls & exit::HOST_64_BIT != 0 { EFER_LMA | EFER_LME } else { 0 };
    holds(efer & !DEFINED == 0 && efer & (EFER_LMA | EFER_LME) == mode, REGISTERS, "host IA32_EFER")
}

fn check_segments(vmcs: &impl Fields) -> Result<(), Broken> {
    let selectors = [
        fields::HOST_CS_SELECTOR,
        fields::HOST_SS_SELECTOR,
        fields::HOST_DS_SELECTOR,
        fields::HOST_ES_SELECTOR,
        fields::HOST_FS_SELECTOR,
        fields::HOST_GS_SELECTOR,
        fields::HOST_TR_SELECTOR,
    ];
    holds(
        selectors.into_iter().all(|field| vmcs.read(field) & 7 == 0),
        SEGMENTS,
        "RPL and TI of host selectors are 0",
    )?;
    holds(
        vmcs.read(fields::HOST_CS_SELECTOR) != 0 && vmcs.read(fields::HOST_TR_SELECTOR) != 0,
        SEGMENTS,
        "host CS and TR are not null",
    )?;
    let bases = [
        fields::HOST_FS_BASE,
        fields::HOST_GS_BASE,
        fields::HOST_TR_BASE,
        fields::HOST_GDTR_BASE,
        fields::HOST_IDTR_BASE,
    ];
    holds(bases.into_iter().all(|field| is_canonical(vmcs.read(field))), SEGMENTS, "host bases are canonical")
}
