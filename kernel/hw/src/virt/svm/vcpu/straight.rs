//! The straight path: a run that changes RIP and nothing else, as after most exits, without the work of [`Vcpu::run_any`].

use super::{Vcpu, WINDOWS, vmcb_at};
use crate::virt::page::{Page, get, put, wanted};
use crate::virt::svm::{entry, entry_checker, state};
use crate::virt::{Returned, RunArgs};
use hypercall_abi::exit::ExitKind;
use hypercall_abi::guest::{DOORBELL_CALL, DOORBELL_CALL_LENGTH};
use hypercall_abi::vcpu::gpr::RAX;
use hypercall_abi::vcpu::{ACTIVITY_ACTIVE, Event, Groups, RunFlags};
use kcore::virt::svm::asid::TlbControl;
use kcore::virt::svm::checks;
use kcore::virt::svm::event::{self, NmiMask, Plan};
use kcore::virt::svm::exit;
use kcore::virt::svm::segment;
use kcore::virt::svm::vmcb::{Clean, INTERRUPT_SHADOW, V_INTR_MASKING, V_IRQ};

impl Vcpu {
    /// Whether a run changes RIP and nothing else, as after most exits: for everything that may be otherwise there is a
    /// condition. Takes RIP over then.
    #[inline(always)]
    pub(super) fn is_plain(&mut self, page: Page, args: &RunArgs) -> bool {
        let asks_for_more =
            args.dirty.difference(Groups::RIP).bits() | args.flags.intersection(WINDOWS).bits();
        if asks_for_more != 0
            || !self.is_settled
            || self.nested_generation != args.nested_generation
            || get!(page, inject).is_valid()
        {
            return false;
        }
        args.dirty.is_empty() || self.takes_rip(page)
    }

    /// Takes RIP over if the rest of its group is as the hardware left it, without shadow or blocking by NMI; that needs no check.
    #[inline(always)]
    pub(super) fn takes_rip(&mut self, page: Page) -> bool {
        let vmcb = vmcb_at(self.vmcb);
        let (rip, rflags) = (get!(page, rip), get!(page, rflags));
        if get!(page, interruptibility) | get!(page, activity) != 0
            || rflags != vmcb.save.rflags
            || !checks::is_rip_valid(&vmcb.save, rip)
        {
            return false;
        }
        vmcb.save.rip = rip;
        vmcb.control.interrupt_shadow = 0;
        put!(page, Groups::empty().bits() => dirty);
        true
    }

    /// A run of which [`Self::is_plain`] said that it is one. The VMCB is as the last run left it, but for RIP and the registers
    /// below; its control area says what it said then ([`Self::settle`]).
    #[inline(always)]
    pub(super) fn run_plain(
        &mut self,
        page: Page,
        args: &RunArgs,
        call: impl Fn(u16) -> Option<bool>,
    ) -> Returned {
        let cr2 = get!(page, cr2);
        let vmcb = vmcb_at(self.vmcb);
        vmcb.control.clean = self.all_clean;
        if vmcb.save.cr2 != cr2 {
            vmcb.save.cr2 = cr2;
            vmcb.control.clean &= !Clean::CR2.bits();
        }
        vmcb.save.rax = get!(page, gpr[RAX]);
        loop {
            let vmcb = vmcb_at(self.vmcb);
            if crate::CHECKERS {
                let clean = Clean::from_bits_retain(vmcb.control.clean);
                entry_checker::check(self.vmcb, vmcb, clean, &self.processor);
            }
            // SAFETY: as in `enter`; the VMCB passed `accept` in an earlier run, and the change since then is checked.
            unsafe { entry::enter(page.as_ptr().cast(), self.vmcb.0, self.host.0) };
            match self.answers_call(&call) {
                None => break,
                Some(true) => {}
                Some(false) => {
                    put!(page, vmcb_at(self.vmcb).save.rax => gpr[RAX]);
                    put!(page, vmcb_at(self.vmcb).save.cr2 => cr2);
                    return self.interrupted(page);
                }
            }
        }
        match self.report_quick(page) {
            Some(returned) => returned,
            None => self.after_plain(page, args.flags),
        }
    }

    /// Lets `call` answer a VMMCALL, as [`crate::virt::GuestCpu::run`] says, and moves the guest behind it. Only where nothing but
    /// RIP is to be changed for the next VMRUN.
    #[inline(always)]
    fn answers_call(&mut self, call: &impl Fn(u16) -> Option<bool>) -> Option<bool> {
        const TF_AND_RF: u64 = 1 << 8 | 1 << 16;
        let vmcb = vmcb_at(self.vmcb);
        if !exit::is_call(vmcb) {
            return None;
        }
        let (rax, rip) = (vmcb.save.rax, vmcb.save.rip);
        let next = rip.wrapping_add(DOORBELL_CALL_LENGTH as u64);
        if rax & !0xffff != DOORBELL_CALL
            || vmcb.save.rflags & TF_AND_RF != 0
            || (rip ^ next) >> 32 != 0
            || event::is_delivering(vmcb.control.exit_int_info)
            || vmcb.control.interrupt_shadow & INTERRUPT_SHADOW != 0
            || segment::cpl(&vmcb.save) != 0
        {
            return None;
        }
        let goes_on = call(rax as u16)?;
        if crate::CHECKERS {
            entry_checker::after_exit(self.vmcb, vmcb);
        }
        vmcb.save.rip = next;
        Some(goes_on)
    }

    /// Reports an exit that is for the VMM and on an instruction, as most are, if it interrupted no event and left no shadow;
    /// otherwise nothing is done.
    #[inline(always)]
    pub(super) fn report_quick(&mut self, page: Page) -> Option<Returned> {
        let vmcb = vmcb_at(self.vmcb);
        let (kind, length) = exit::quick(vmcb, &self.processor)?;
        let is_shadowed = vmcb.control.interrupt_shadow & INTERRUPT_SHADOW != 0;
        if event::is_delivering(vmcb.control.exit_int_info) || is_shadowed {
            return None;
        }
        if crate::CHECKERS {
            entry_checker::after_exit(self.vmcb, vmcb);
        }
        if kind == ExitKind::PortIo {
            put!(page, exit::port_access(vmcb.control.exit_info_1).encode() => exit_info[0]);
        } else if kind == ExitKind::Hypercall {
            put!(page, segment::cpl(&vmcb.save) as u64 => exit_info[0]);
        } else if kind == ExitKind::NestedFault {
            for (index, word) in exit::nested_fault_info(vmcb, &self.processor).into_iter().enumerate() {
                put!(page, word => exit_info[index]);
            }
        }
        Some(self.report_instruction(page, kind, length, 0))
    }

    /// Reports an exit on an instruction with this interruptibility, of which what is particular to its kind is in the page.
    #[inline(always)]
    fn report_instruction(
        &mut self,
        page: Page,
        kind: ExitKind,
        length: u32,
        interruptibility: u32,
    ) -> Returned {
        let vmcb = vmcb_at(self.vmcb);
        put!(page, vmcb.save.rax => gpr[RAX]);
        put!(page, vmcb.save.cr2 => cr2);
        put!(page, vmcb.save.rip => rip);
        put!(page, vmcb.save.rflags => rflags);
        put!(page, interruptibility => interruptibility);
        put!(page, ACTIVITY_ACTIVE => activity);
        put!(page, kind as u32 => exit_kind);
        put!(page, length => exit_length);
        let groups = Groups::RIP | wanted(page, length == 0);
        if groups != Groups::RIP {
            state::give(page, groups, vmcb, &self.extra);
        }
        put!(page, groups.bits() => filled);
        Returned::Exit(kind as u32)
    }

    /// As [`Self::report_quick`], after a run with this plan, which must have left nothing.
    #[inline(always)]
    pub(super) fn report_quick_after(&mut self, page: Page, plan: Plan) -> Option<Returned> {
        let is_left = vmcb_at(self.vmcb).control.interrupt_control & V_IRQ != 0;
        if is_left || self.extra.nmi != NmiMask::Open || matches!(plan, Plan::Hold(_)) {
            return None;
        }
        let returned = self.report_quick(page)?;
        (self.flush, self.clean, self.pending) = (false, Clean::all(), Event::NONE);
        put!(page, Event::NONE => inject);
        self.settle();
        Some(returned)
    }

    /// After an exit of a plain run that is not quick ([`exit::quick`]).
    #[inline(never)]
    fn after_plain(&mut self, page: Page, flags: RunFlags) -> Returned {
        let vmcb = vmcb_at(self.vmcb);
        if exit::is_bare_halt(vmcb, &self.processor) && !event::is_delivering(vmcb.control.exit_int_info) {
            if crate::CHECKERS {
                entry_checker::after_exit(self.vmcb, vmcb);
            }
            // Mostly of the STI before it.
            let shadow = state::interruptibility(vmcb, &self.extra).bits();
            return self.report_instruction(page, ExitKind::Hlt, 0, shadow);
        }
        self.is_settled = false;
        let reason = self.after_exit(page, Plan::Nothing, 0);
        self.conclude(page, flags, reason).unwrap_or_else(|| self.interrupted(page))
    }

    /// After an exit for the VMM: sees whether the next run may be a plain one. Nothing of what the last run asked of VMRUN
    /// may be left in the control area, and nothing may be left to be done. Another vCPU in between, which may end the ASID's
    /// generation or change DR0 to DR3, and the end of access to those, take it back.
    pub(super) fn settle(&mut self) {
        self.is_settled = self.extra.nmi == NmiMask::Open
            && !self.pending.is_valid()
            && self.clean == Clean::all()
            && !(self.flush || self.unchecked || self.lost || self.processor.quirks.leaves_cr2)
            && !self.extra.breakpoints.is_open()
            && self.applied.is_some_and(|choice| !choice.window && choice.debug_registers);
        let control = &mut vmcb_at(self.vmcb).control;
        // What else there is means nothing without V_IRQ.
        self.is_settled &= control.interrupt_control & (V_INTR_MASKING | V_IRQ) == V_INTR_MASKING;
        (control.event_injection, control.tlb_control) = (0, TlbControl::Nothing as u32);
    }
}
