//! Groups of guest state between the vCPU page and the VMCB.

use crate::cpu::tsc;
use crate::virt::breakpoints::Breakpoints;
use crate::virt::page::{Page, get, put};
use hypercall_abi::exit::EntryRule;
use hypercall_abi::vcpu::gpr::RSP;
use hypercall_abi::vcpu::{
    ACTIVITY_ACTIVE, ACTIVITY_HALTED, CS, DS, ES, FS, GS, Groups, Interruptibility, NO_CODE_ROOT, SS,
};
use kcore::virt::svm::checks::{CR0_ET, CR0_PG, CR4_MCE, EFER_LME, EFER_SVME, HIDDEN_CR0};
use kcore::virt::svm::event::NmiMask;
use kcore::virt::svm::segment;
use kcore::virt::svm::vmcb::{Clean, INTERRUPT_SHADOW, LBR_ENABLE, SaveArea, Vmcb};

/// Groups that most exits do without.
const BEYOND_RIP: Groups = Groups::CS_SS
    .union(Groups::DATA_SEGMENTS)
    .union(Groups::TABLES)
    .union(Groups::CONTROL)
    .union(Groups::DEBUG)
    .union(Groups::SYSENTER)
    .union(Groups::SYSCALL)
    .union(Groups::PAT)
    .union(Groups::TSC_OFFSET);

/// RFLAGS.IF.
pub(super) const RFLAGS_IF: u64 = 1 << 9;

/// Guest state that the VMCB has no place for.
#[derive(Debug)]
pub(super) struct Extra {
    /// CR0.CD and NW of the guest's view.
    pub(super) hidden_cr0: u64,
    /// CR4.MCE, if the guest's view lacks it.
    pub(super) hidden_cr4: u64,
    /// EFER.LME of the guest's view while paging is off.
    pub(super) hidden_efer: u64,
    /// DR0 to DR3.
    pub(super) breakpoints: Breakpoints,
    /// TSC_AUX.
    pub(super) tsc_aux: u32,
    /// NMI blocking.
    pub(super) nmi: NmiMask,
}

impl Extra {
    /// As after reset.
    pub(super) fn new() -> Self {
        Extra {
            hidden_cr0: HIDDEN_CR0,
            hidden_cr4: CR4_MCE,
            hidden_efer: 0,
            breakpoints: Breakpoints::default(),
            tsc_aux: 0,
            nmi: NmiMask::Open,
        }
    }

    /// Whether CR0 and EFER are not in the CPU what the guest takes them to be, so that accesses of CR0 have to exit. With
    /// a hidden LME, the guest's MOV that switches paging on would end in the wrong mode.
    pub(super) const fn hides(&self) -> bool {
        self.hidden_cr0 | self.hidden_efer != 0
    }
}

/// The VMCB fields that a VMM changes with these groups.
pub(super) fn written_by(groups: Groups) -> Clean {
    let mut written = Clean::empty();
    for (group, clean) in [
        (Groups::CS_SS, Clean::SEGMENTS),
        (Groups::DATA_SEGMENTS, Clean::SEGMENTS),
        (Groups::TABLES, Clean::DESCRIPTOR_TABLES),
        (Groups::CONTROL, Clean::CONTROL_REGISTERS),
        (Groups::DEBUG, Clean::DEBUG_REGISTERS),
        (Groups::PAT, Clean::NESTED_PAGING.union(Clean::LAST_BRANCH)),
        (Groups::TSC_OFFSET, Clean::INTERCEPTS),
    ] {
        if groups.contains(group) {
            written |= clean;
        }
    }
    written
}

/// Copies groups from the page, each value read once. What the VMCB can hold is checked there, by
/// [`kcore::virt::svm::checks`]; what it cannot, here.
///
/// # Errors
/// The rule that a value breaks; some groups are copied then.
pub(super) fn take(
    page: Page,
    groups: Groups,
    vmcb: &mut Vmcb,
    extra: &mut Extra,
    clean: &mut Clean,
) -> Result<(), EntryRule> {
    let mode_before = mode(&vmcb.save);
    if groups.contains(Groups::RIP) {
        take_rip(page, vmcb, extra)?;
    }
    if groups.intersects(BEYOND_RIP) {
        *clean -= written_by(groups);
        take_registers(page, groups, &mut vmcb.save, extra)?;
        take_msrs(page, groups, vmcb, extra)?;
    }
    // Without these, CPL stays the hardware's: after SYSRET the DPL of SS may differ from it.
    if groups.contains(Groups::CS_SS) || mode(&vmcb.save) != mode_before {
        vmcb.save.cpl = segment::cpl(&vmcb.save);
        *clean -= Clean::SEGMENTS;
    }
    Ok(())
}

fn take_registers(
    page: Page,
    groups: Groups,
    save: &mut SaveArea,
    extra: &mut Extra,
) -> Result<(), EntryRule> {
    if groups.contains(Groups::CS_SS) {
        save.cs = segment::to_vmcb(&get!(page, segments[CS]))?;
        save.ss = segment::to_vmcb(&get!(page, segments[SS]))?;
        save.rsp = get!(page, gpr[RSP]);
    }
    if groups.contains(Groups::DATA_SEGMENTS) {
        save.ds = segment::to_vmcb(&get!(page, segments[DS]))?;
        save.es = segment::to_vmcb(&get!(page, segments[ES]))?;
        save.fs = segment::to_vmcb(&get!(page, segments[FS]))?;
        save.gs = segment::to_vmcb(&get!(page, segments[GS]))?;
    }
    if groups.contains(Groups::TABLES) {
        save.ldtr = segment::to_vmcb(&get!(page, ldtr))?;
        save.tr = segment::to_vmcb(&get!(page, tr))?;
        save.gdtr = segment::table_to_vmcb(&get!(page, gdtr))?;
        save.idtr = segment::table_to_vmcb(&get!(page, idtr))?;
    }
    if groups.contains(Groups::CONTROL) {
        take_control(page, save, extra)?;
    }
    if groups.contains(Groups::DEBUG) {
        (save.dr6, save.dr7) = (get!(page, dr6), get!(page, dr7));
        extra.breakpoints.write(get!(page, dr));
    }
    Ok(())
}

/// What CPL depends on besides SS: CR0.PE and RFLAGS.VM.
fn mode(save: &SaveArea) -> (u64, u64) {
    (save.cr0 & 1, save.rflags & 1 << 17)
}

fn take_rip(page: Page, vmcb: &mut Vmcb, extra: &mut Extra) -> Result<(), EntryRule> {
    let rflags = get!(page, rflags);
    let bits = Interruptibility::from_bits(get!(page, interruptibility)).ok_or(EntryRule::Activity)?;
    let (sti, mov_ss) = (bits.contains(Interruptibility::STI), bits.contains(Interruptibility::MOV_SS));
    if sti && (mov_ss || rflags & RFLAGS_IF == 0) {
        return Err(EntryRule::Activity);
    }
    if !matches!(get!(page, activity), ACTIVITY_ACTIVE | ACTIVITY_HALTED) {
        return Err(EntryRule::Activity);
    }
    vmcb.save.rip = get!(page, rip);
    vmcb.save.rflags = rflags;
    vmcb.control.interrupt_shadow = if sti || mov_ss { INTERRUPT_SHADOW } else { 0 };
    if bits.contains(Interruptibility::NMI) != extra.nmi.is_masked() {
        extra.nmi = if extra.nmi.is_masked() { NmiMask::Open } else { NmiMask::Masked };
    }
    Ok(())
}

/// The PDPTEs are not taken: with nested paging the CPU reads them from memory when it needs them (APM 15.25.10). SVME is set in
/// every VMCB; in the page it would claim that the guest has SVM.
fn take_control(page: Page, save: &mut SaveArea, extra: &mut Extra) -> Result<(), EntryRule> {
    let (cr0, efer) = (get!(page, cr0), get!(page, efer));
    if efer & EFER_SVME != 0 {
        return Err(EntryRule::Efer);
    }
    extra.hidden_cr0 = cr0 & HIDDEN_CR0;
    save.cr0 = cr0 & !HIDDEN_CR0 | CR0_ET;
    save.cr3 = get!(page, cr3);
    let cr4 = get!(page, cr4);
    extra.hidden_cr4 = !cr4 & CR4_MCE;
    save.cr4 = cr4 | CR4_MCE;
    // Without paging LME means nothing until CR0.PG is written, which exits. QEMU's TCG, however, does not restore the host's
    // CR0 at an exit of a guest that has LME and neither PG nor CR4.PAE.
    extra.hidden_efer = if cr0 & CR0_PG == 0 { efer & EFER_LME } else { 0 };
    save.efer = efer & !extra.hidden_efer | EFER_SVME;
    Ok(())
}

fn take_msrs(page: Page, groups: Groups, vmcb: &mut Vmcb, extra: &mut Extra) -> Result<(), EntryRule> {
    let save = &mut vmcb.save;
    if groups.contains(Groups::SYSENTER) {
        save.sysenter_cs = get!(page, sysenter_cs);
        save.sysenter_esp = get!(page, sysenter_esp);
        save.sysenter_eip = get!(page, sysenter_eip);
    }
    if groups.contains(Groups::SYSCALL) {
        save.star = get!(page, star);
        save.lstar = get!(page, lstar);
        save.cstar = get!(page, cstar);
        save.sfmask = get!(page, sfmask);
        save.kernel_gs_base = get!(page, kernel_gs_base);
        let tsc_aux = get!(page, tsc_aux);
        // WRMSR of more than 32 bits would be a #GP in the kernel.
        if tsc_aux >> 32 != 0 {
            return Err(EntryRule::Msr);
        }
        extra.tsc_aux = tsc_aux as u32;
        tsc::set_aux(extra.tsc_aux);
    }
    if groups.contains(Groups::PAT) {
        save.g_pat = get!(page, pat);
        save.debugctl = get!(page, debugctl);
        vmcb.control.lbr_control = if save.debugctl != 0 { LBR_ENABLE } else { 0 };
    }
    if groups.contains(Groups::TSC_OFFSET) {
        vmcb.control.tsc_offset = get!(page, tsc_offset);
    }
    Ok(())
}

/// Copies groups to the page.
pub(super) fn give(page: Page, groups: Groups, vmcb: &Vmcb, extra: &Extra) {
    let save = &vmcb.save;
    if groups.contains(Groups::RIP) {
        put!(page, save.rip => rip);
        put!(page, save.rflags => rflags);
        put!(page, interruptibility(vmcb, extra).bits() => interruptibility);
        put!(page, ACTIVITY_ACTIVE => activity);
    }
    if groups.contains(Groups::CODE) {
        put!(page, segment::code_root(save).unwrap_or(NO_CODE_ROOT) => code_root);
    }
    if !groups.intersects(BEYOND_RIP) {
        return;
    }
    if groups.contains(Groups::CS_SS) {
        put!(page, segment::from_vmcb(&save.cs) => segments[CS]);
        put!(page, segment::ss_from_vmcb(save) => segments[SS]);
        put!(page, save.rsp => gpr[RSP]);
    }
    if groups.contains(Groups::DATA_SEGMENTS) {
        put!(page, segment::from_vmcb(&save.ds) => segments[DS]);
        put!(page, segment::from_vmcb(&save.es) => segments[ES]);
        put!(page, segment::from_vmcb(&save.fs) => segments[FS]);
        put!(page, segment::from_vmcb(&save.gs) => segments[GS]);
    }
    if groups.contains(Groups::TABLES) {
        put!(page, segment::from_vmcb(&save.ldtr) => ldtr);
        put!(page, segment::tr_from_vmcb(&save.tr) => tr);
        put!(page, segment::table_from_vmcb(&save.gdtr) => gdtr);
        put!(page, segment::table_from_vmcb(&save.idtr) => idtr);
    }
    if groups.contains(Groups::CONTROL) {
        put!(page, save.cr0 | extra.hidden_cr0 => cr0);
        put!(page, save.cr3 => cr3);
        put!(page, save.cr4 & !extra.hidden_cr4 => cr4);
        put!(page, save.efer & !EFER_SVME | extra.hidden_efer => efer);
    }
    if groups.contains(Groups::DEBUG) {
        put!(page, extra.breakpoints.read() => dr);
        put!(page, save.dr6 => dr6);
        put!(page, save.dr7 => dr7);
    }
    give_msrs(page, groups, save, extra);
}

fn give_msrs(page: Page, groups: Groups, save: &SaveArea, extra: &Extra) {
    if groups.contains(Groups::SYSENTER) {
        put!(page, save.sysenter_cs => sysenter_cs);
        put!(page, save.sysenter_esp => sysenter_esp);
        put!(page, save.sysenter_eip => sysenter_eip);
    }
    if groups.contains(Groups::SYSCALL) {
        put!(page, save.star => star);
        put!(page, save.lstar => lstar);
        put!(page, save.cstar => cstar);
        put!(page, save.sfmask => sfmask);
        put!(page, save.kernel_gs_base => kernel_gs_base);
        put!(page, extra.tsc_aux as u64 => tsc_aux);
    }
    if groups.contains(Groups::PAT) {
        put!(page, save.g_pat => pat);
        put!(page, save.debugctl => debugctl);
    }
}

/// SVM has one shadow for STI and MOV SS. With IF set it is reported as STI's; with IF clear only MOV SS can have
/// caused it, and that is what VMX accepts.
pub(super) fn interruptibility(vmcb: &Vmcb, extra: &Extra) -> Interruptibility {
    let mut bits = Interruptibility::empty();
    if vmcb.control.interrupt_shadow & INTERRUPT_SHADOW != 0 {
        let interrupt_flag = vmcb.save.rflags & RFLAGS_IF != 0;
        bits |= if interrupt_flag { Interruptibility::STI } else { Interruptibility::MOV_SS };
    }
    bits.set(Interruptibility::NMI, extra.nmi.is_masked());
    bits
}
