//! Groups of guest state: from the vCPU page into the hardware, and back.

use super::insn::CurrentVmcs;
use super::vcpu::{Chores, Vcpu};
use crate::cpu::msr;
use crate::virt::GuestCpu;
use crate::virt::page::{Page, get, put};
use hypercall_abi::exit::EntryRule;
use hypercall_abi::vcpu::{CS, DS, ES, FS, GS, Groups, Intercepts, Interruptibility, NO_CODE_ROOT, SS, gpr};
use kcore::virt::vmx::checks::{self, Mode, RFLAGS_TF, RFLAGS_VM};
use kcore::virt::vmx::control_registers::{CR0_PE, ControlRegisters, EFER_LMA};
use kcore::virt::vmx::controls::{entry, primary};
use kcore::virt::vmx::exit::ALWAYS_EXITING_EXCEPTIONS;
use kcore::virt::vmx::fields;
use kcore::virt::vmx::syscall_msrs::SyscallMsrs;

/// The shadows of STI and MOV SS.
pub(super) const SHADOW: u32 = Interruptibility::SHADOW.bits();

/// Calls `$step` for each group of `$groups`, in the order of their bits.
macro_rules! for_each_group {
    ($groups:expr, $group:ident => $step:expr) => {
        let mut left = $groups.bits();
        while left != 0 {
            let $group = Groups::from_bits_truncate(1 << left.trailing_zeros());
            left &= left - 1;
            $step;
        }
    };
}

impl Vcpu {
    /// Takes over groups of the page. After a refusal the hardware may have some of it.
    #[inline(never)]
    pub(super) fn take_groups(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        dirty: Groups,
    ) -> Result<(), EntryRule> {
        // The mode, which other groups are checked against, comes first.
        if dirty.contains(Groups::CONTROL) {
            self.take_control(vmcs, page)?;
        }
        for_each_group!(dirty.difference(Groups::CONTROL), group => match group {
            Groups::RIP => self.take_rip(vmcs, page)?,
            Groups::CS_SS => self.take_code_and_stack(vmcs, page)?,
            Groups::DATA_SEGMENTS => self.take_data_segments(vmcs, page)?,
            Groups::TABLES => self.take_tables(vmcs, page)?,
            Groups::DEBUG => self.take_debug(vmcs, page)?,
            Groups::SYSENTER => take_sysenter(vmcs, page)?,
            Groups::SYSCALL => self.take_syscall(page)?,
            Groups::PAT => take_pat(vmcs, page)?,
            Groups::INTERCEPTS => self.take_intercepts(vmcs, page),
            Groups::TSC_OFFSET => vmcs.write(fields::TSC_OFFSET, get!(page, tsc_offset)),
            _ => {}
        });
        Ok(())
    }

    /// The mode that the hardware's state amounts to.
    fn mode(&self, vmcs: CurrentVmcs, rflags: u64) -> Mode {
        Mode {
            is_protected: self.is_protected(vmcs),
            is_long: self.is_long(vmcs),
            is_v86: rflags & RFLAGS_VM != 0,
        }
    }

    /// Whether the guest is not in real mode.
    pub(super) fn is_protected(&self, vmcs: CurrentVmcs) -> bool {
        vmcs.read(fields::GUEST_CR0) & CR0_PE != 0
    }

    /// Whether the guest is in long mode.
    pub(super) fn is_long(&self, vmcs: CurrentVmcs) -> bool {
        vmcs.read(fields::GUEST_EFER) & EFER_LMA != 0
    }

    fn take_control(&mut self, vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
        let view = ControlRegisters {
            cr0: get!(page, cr0),
            cr3: get!(page, cr3),
            cr4: get!(page, cr4),
            efer: get!(page, efer),
            pdpte: get!(page, pdpte),
        };
        let rules = &self.machine.rules;
        rules.check(&view)?;
        vmcs.write(fields::GUEST_CR0, rules.real_cr0(view.cr0));
        vmcs.write(fields::CR0_SHADOW, view.cr0);
        vmcs.write(fields::GUEST_CR3, view.cr3);
        vmcs.write(fields::GUEST_CR4, rules.real_cr4(view.cr4));
        vmcs.write(fields::CR4_SHADOW, view.cr4);
        vmcs.write(fields::GUEST_EFER, view.efer);
        let long_mode = if view.efer & EFER_LMA != 0 { entry::IA32E_MODE_GUEST } else { 0 };
        vmcs.write(fields::ENTRY_CONTROLS, self.machine.controls.entry | long_mode);
        if view.uses_pdptes() {
            for (field, value) in fields::GUEST_PDPTES.into_iter().zip(view.pdpte) {
                vmcs.write(field, value);
            }
        }
        (self.shadow_cr0, self.shadow_cr4) = (view.cr0, view.cr4);
        // With VPIDs no entry flushes, and these registers decide what cached translations mean (SDM 3C 28.3.3.3).
        self.chores |= Chores::FLUSH_VPID;
        Ok(())
    }

    #[inline(always)]
    pub(super) fn take_rip(&mut self, vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
        let (rip, rflags) = (get!(page, rip), get!(page, rflags));
        let (interruptibility, activity) = (get!(page, interruptibility), get!(page, activity));
        // After most exits RIP alone moves on. The other values are the hardware's then, and need no check.
        let is_plain = interruptibility | self.held.interruptibility | activity == 0
            && rflags == self.held.rflags
            && rflags & (RFLAGS_TF | RFLAGS_VM) == 0;
        if is_plain {
            checks::check_canonical(&[rip])?;
        } else {
            checks::check_rip_group(rip, rflags, interruptibility, activity)?;
            self.take_flags(vmcs, rflags, interruptibility)?;
        }
        if rip != self.held.rip {
            vmcs.write(fields::GUEST_RIP, rip);
            self.held.rip = rip;
        }
        Ok(())
    }

    #[inline(never)]
    fn take_flags(&mut self, vmcs: CurrentVmcs, rflags: u64, interruptibility: u32) -> Result<(), EntryRule> {
        if rflags & RFLAGS_VM != 0 {
            checks::check_v86(self.mode(vmcs, rflags))?;
        }
        let steps = (rflags | self.held.rflags) & RFLAGS_TF != 0;
        let is_in_shadow = (interruptibility | self.held.interruptibility) & SHADOW != 0;
        if steps || is_in_shadow {
            self.chores |= Chores::PENDING_DEBUG;
        }
        if rflags != self.held.rflags {
            vmcs.write(fields::GUEST_RFLAGS, rflags);
            self.held.rflags = rflags;
        }
        self.set_interruptibility(vmcs, interruptibility);
        Ok(())
    }

    fn take_code_and_stack(&mut self, vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
        let segments = get!(page, segments);
        checks::check_code_and_stack(&segments, self.mode(vmcs, self.held.rflags))?;
        for index in [CS, SS] {
            vmcs.write_segment(&fields::GUEST_SEGMENTS[index], &segments[index]);
        }
        vmcs.write(fields::GUEST_RSP, get!(page, gpr[gpr::RSP]));
        Ok(())
    }

    fn take_data_segments(&mut self, vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
        let segments = get!(page, segments);
        checks::check_data_segments(&segments, self.mode(vmcs, self.held.rflags))?;
        for index in [ES, DS, FS, GS] {
            vmcs.write_segment(&fields::GUEST_SEGMENTS[index], &segments[index]);
        }
        Ok(())
    }

    fn take_tables(&mut self, vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
        let (ldtr, tr) = (get!(page, ldtr), get!(page, tr));
        let (gdtr, idtr) = (get!(page, gdtr), get!(page, idtr));
        checks::check_tables(&ldtr, &tr, &gdtr, &idtr, self.mode(vmcs, self.held.rflags))?;
        vmcs.write_segment(&fields::GUEST_LDTR, &ldtr);
        vmcs.write_segment(&fields::GUEST_TR, &tr);
        vmcs.write(fields::GUEST_GDTR_BASE, gdtr.base);
        vmcs.write(fields::GUEST_GDTR_LIMIT, gdtr.limit);
        vmcs.write(fields::GUEST_IDTR_BASE, idtr.base);
        vmcs.write(fields::GUEST_IDTR_LIMIT, idtr.limit);
        Ok(())
    }

    /// CR2 needs nothing: like the general-purpose registers it goes from the page into the CPU at every entry.
    fn take_debug(&mut self, vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
        let (dr, dr6, dr7) = (get!(page, dr), get!(page, dr6), get!(page, dr7));
        checks::check_debug(dr6, dr7)?;
        self.breakpoints.write(dr);
        self.set_dr6(dr6);
        self.set_dr7(dr7);
        vmcs.write(fields::GUEST_DR7, dr7);
        Ok(())
    }

    fn take_syscall(&mut self, page: Page) -> Result<(), EntryRule> {
        let new = SyscallMsrs {
            star: get!(page, star),
            lstar: get!(page, lstar),
            cstar: get!(page, cstar),
            sfmask: get!(page, sfmask),
            kernel_gs_base: get!(page, kernel_gs_base),
            tsc_aux: if self.has_tsc_aux() { get!(page, tsc_aux) } else { 0 },
        };
        checks::check_syscall([new.lstar, new.cstar], new.sfmask, new.kernel_gs_base, new.tsc_aux)?;
        // SAFETY: this is within `run`, on the vCPU's CPU, and the values were checked. The next entry loads those that `leave`
        // takes out.
        unsafe {
            self.leave();
            self.guest_msrs = new;
            self.take_over();
        }
        Ok(())
    }

    /// The guest's MSRs as they are now.
    fn current_msrs(&self) -> SyscallMsrs {
        let mut msrs = self.guest_msrs;
        if self.is_loaded {
            // SAFETY: long mode has this MSR.
            msrs.kernel_gs_base = unsafe { msr::read(msr::KERNEL_GS_BASE) };
        }
        msrs
    }

    fn take_intercepts(&mut self, vmcs: CurrentVmcs, page: Page) {
        let bitmap = get!(page, exception_bitmap);
        vmcs.write(fields::EXCEPTION_BITMAP, bitmap | ALWAYS_EXITING_EXCEPTIONS);
        self.wanted_exceptions = bitmap;
        self.chores |= Chores::CONTROLS;
        let intercepts = Intercepts::from_bits_truncate(get!(page, intercepts));
        self.wanted_controls = [
            (Intercepts::PAUSE, primary::PAUSE_EXITING),
            (Intercepts::DEBUG_REGISTERS, primary::MOV_DR_EXITING),
            (Intercepts::RDTSC, primary::RDTSC_EXITING),
            (Intercepts::PAGING, primary::INVLPG_EXITING | primary::CR3_LOAD_EXITING),
        ]
        .into_iter()
        .filter(|(intercept, _)| intercepts.contains(*intercept))
        .fold(0, |controls, (_, control)| controls | control);
    }

    /// Writes the interruptibility state, if it is another than the hardware's.
    pub(super) fn set_interruptibility(&mut self, vmcs: CurrentVmcs, interruptibility: u32) {
        if interruptibility != self.held.interruptibility {
            vmcs.write(fields::GUEST_INTERRUPTIBILITY, interruptibility);
            self.held.interruptibility = interruptibility;
        }
    }

    /// Writes `groups` of the guest's state into the page. Groups that only a VMM writes have nothing to tell.
    #[cold]
    #[inline(never)]
    pub(super) fn fill(&self, vmcs: CurrentVmcs, page: Page, groups: Groups) {
        for_each_group!(groups, group => match group {
            Groups::RIP => self.fill_rip(page, get!(page, activity)),
            Groups::CS_SS => {
                put!(page, vmcs.read(fields::GUEST_RSP) => gpr[gpr::RSP]);
                fill_segments(vmcs, page, &[CS, SS]);
            }
            Groups::DATA_SEGMENTS => fill_segments(vmcs, page, &[ES, DS, FS, GS]),
            Groups::TABLES => fill_tables(vmcs, page),
            Groups::CONTROL => self.fill_control(vmcs, page),
            Groups::DEBUG => self.fill_debug(vmcs, page),
            Groups::SYSENTER => {
                put!(page, vmcs.read(fields::GUEST_SYSENTER_CS) as u64 => sysenter_cs);
                put!(page, vmcs.read(fields::GUEST_SYSENTER_ESP) => sysenter_esp);
                put!(page, vmcs.read(fields::GUEST_SYSENTER_EIP) => sysenter_eip);
            }
            Groups::SYSCALL => self.fill_syscall(page),
            Groups::CODE => self.fill_code(vmcs, page),
            Groups::PAT => {
                put!(page, vmcs.read(fields::GUEST_PAT) => pat);
                put!(page, vmcs.read(fields::GUEST_DEBUGCTL) => debugctl);
            }
            _ => {}
        });
    }

    /// RIP, RFLAGS and interruptibility as the last exit left them, and an activity.
    pub(super) fn fill_rip(&self, page: Page, activity: u32) {
        put!(page, self.held.rip => rip);
        put!(page, self.held.rflags => rflags);
        put!(page, self.held.interruptibility => interruptibility);
        put!(page, activity => activity);
    }

    /// CR3, if the guest executes 64-bit code.
    #[inline(always)]
    pub(super) fn root_of_code(&self, vmcs: CurrentVmcs) -> Option<u64> {
        const LONG: u32 = 1 << 13;
        let is_64_bit = self.is_long(vmcs) && vmcs.read(fields::GUEST_SEGMENTS[CS].access) & LONG != 0;
        is_64_bit.then(|| vmcs.read(fields::GUEST_CR3))
    }

    #[inline(always)]
    pub(super) fn fill_code(&self, vmcs: CurrentVmcs, page: Page) {
        put!(page, self.root_of_code(vmcs).unwrap_or(NO_CODE_ROOT) => code_root);
    }

    fn fill_control(&self, vmcs: CurrentVmcs, page: Page) {
        let rules = &self.machine.rules;
        let view = ControlRegisters {
            cr0: rules.seen_cr0(vmcs.read(fields::GUEST_CR0), self.shadow_cr0),
            cr3: vmcs.read(fields::GUEST_CR3),
            cr4: rules.seen_cr4(vmcs.read(fields::GUEST_CR4), self.shadow_cr4),
            efer: vmcs.read(fields::GUEST_EFER),
            pdpte: [0; 4],
        };
        put!(page, view.cr0 => cr0);
        put!(page, view.cr3 => cr3);
        put!(page, view.cr4 => cr4);
        put!(page, view.efer => efer);
        if view.uses_pdptes() {
            put!(page, fields::GUEST_PDPTES.map(|field| vmcs.read(field)) => pdpte);
        }
    }

    fn fill_debug(&self, vmcs: CurrentVmcs, page: Page) {
        put!(page, self.breakpoints.read() => dr);
        put!(page, self.dr6() => dr6);
        put!(page, vmcs.read(fields::GUEST_DR7) => dr7);
    }

    fn fill_syscall(&self, page: Page) {
        let msrs = self.current_msrs();
        put!(page, msrs.star => star);
        put!(page, msrs.lstar => lstar);
        put!(page, msrs.cstar => cstar);
        put!(page, msrs.sfmask => sfmask);
        put!(page, msrs.kernel_gs_base => kernel_gs_base);
        put!(page, msrs.tsc_aux => tsc_aux);
    }
}

fn take_sysenter(vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
    let (cs, esp, eip) = (get!(page, sysenter_cs), get!(page, sysenter_esp), get!(page, sysenter_eip));
    checks::check_sysenter(cs, esp, eip)?;
    vmcs.write(fields::GUEST_SYSENTER_CS, cs as u32);
    vmcs.write(fields::GUEST_SYSENTER_ESP, esp);
    vmcs.write(fields::GUEST_SYSENTER_EIP, eip);
    Ok(())
}

fn take_pat(vmcs: CurrentVmcs, page: Page) -> Result<(), EntryRule> {
    let (pat, debugctl) = (get!(page, pat), get!(page, debugctl));
    checks::check_pat(pat, debugctl)?;
    vmcs.write(fields::GUEST_PAT, pat);
    vmcs.write(fields::GUEST_DEBUGCTL, debugctl);
    Ok(())
}

fn fill_segments(vmcs: CurrentVmcs, page: Page, indices: &[usize]) {
    for &index in indices {
        put!(page, vmcs.read_segment(&fields::GUEST_SEGMENTS[index]) => segments[index]);
    }
}

fn fill_tables(vmcs: CurrentVmcs, page: Page) {
    put!(page, vmcs.read_segment(&fields::GUEST_LDTR) => ldtr);
    put!(page, vmcs.read_segment(&fields::GUEST_TR) => tr);
    put!(page, vmcs.read(fields::GUEST_GDTR_BASE) => gdtr.base);
    put!(page, vmcs.read(fields::GUEST_GDTR_LIMIT) => gdtr.limit);
    put!(page, vmcs.read(fields::GUEST_IDTR_BASE) => idtr.base);
    put!(page, vmcs.read(fields::GUEST_IDTR_LIMIT) => idtr.limit);
}
