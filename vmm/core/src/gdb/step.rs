//! Single steps, by RFLAGS.TF.
//!
//! The flag must not be seen by the guest. PUSHF shows it, so the copy that it made is corrected. Interrupts are
//! held back from the entry of a step, else the step would end behind their handlers; an exception that the instruction
//! raises does take it there, as the handler's IRET restores the flag.

use gdbstub::stub::SingleThreadStopReason;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{ACTIVITY_HALTED, CS, Event, Groups, Interruptibility, SS, gpr};

use super::{Debugger, Inferior, StopReason, memory};
use crate::fault::DEBUG_EXCEPTION;
use crate::vcpu::{MODE, RFLAGS_TF, Vcpu};

/// DR6: single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// A step that has not ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The guest steps itself, too.
    had_trap: bool,
    /// Where it began.
    from: u64,
    /// The instruction there is PUSHF.
    pushes_flags: bool,
    /// The guest has not been entered yet.
    is_first: bool,
}

impl<I: Inferior> Debugger<'_, I> {
    /// The next entry is to end behind one instruction.
    pub(super) fn begin_step(&mut self) {
        let (vcpu, guest) = self.inferior.parts();
        let page = vcpu.state(MODE);
        let had_trap = page.rflags & RFLAGS_TF != 0;
        let from = page.rip;
        let linear = page.segments[CS].base.wrapping_add(from);
        let mut bytes = [0; 2];
        memory::read(vcpu, guest, linear, &mut bytes);
        self.stepping = Some(Step {
            had_trap,
            from,
            pushes_flags: matches!(bytes, [0x9c, _] | [0x66 | 0x48, 0x9c]),
            is_first: true,
        });
    }

    /// Sets the flag. Returns whether interrupts must wait.
    pub(super) fn prepare_step(&mut self) -> bool {
        let Some(step) = &mut self.stepping else {
            return false;
        };
        let page = self.inferior.parts().0.page();
        // A halted CPU steps when an interrupt has woken it.
        let is_quiet = core::mem::take(&mut step.is_first)
            && page.activity != ACTIVITY_HALTED
            && !page.inject.is_valid();
        if is_quiet {
            page.interruptibility &= !(Interruptibility::STI | Interruptibility::MOV_SS).bits();
        }
        page.rflags |= RFLAGS_TF;
        page.dirty |= Groups::RIP.bits();
        is_quiet
    }

    /// Whether a #DB with these causes ends the step.
    pub(super) fn is_own_step(&self, causes: u64) -> bool {
        self.stepping.is_some() && causes & DR6_SINGLE_STEP != 0
    }

    /// Takes back the trap behind an instruction that was emulated.
    pub(super) fn emulated_step(&mut self) -> Option<StopReason> {
        self.stepping?;
        let page = self.inferior.parts().0.page();
        let is_done = page.inject.is_valid()
            && page.inject.kind() == Event::EXCEPTION
            && page.inject.vector() == DEBUG_EXCEPTION;
        if !is_done {
            return None;
        }
        page.inject = Event::NONE;
        page.dirty |= Groups::INJECT.bits();
        if page.exit() == Some(ExitKind::Hlt) {
            page.activity = ACTIVITY_HALTED;
            page.dirty |= Groups::RIP.bits();
        }
        self.forget_causes(DR6_SINGLE_STEP);
        Some(SingleThreadStopReason::DoneStep)
    }

    /// The guest does not learn why the debugger stopped it.
    pub(super) fn forget_causes(&mut self, causes: u64) {
        let page = self.inferior.parts().0.state(Groups::DEBUG);
        page.dr6 &= !(causes & (DR6_SINGLE_STEP | 0xf));
        page.dirty |= Groups::DEBUG.bits();
    }

    /// Ends the step, if there is one: the guest has its flag as it was.
    pub(super) fn end_step(&mut self) {
        let Some(step) = self.stepping.take().filter(|step| !step.had_trap) else {
            return;
        };
        let (vcpu, guest) = self.inferior.parts();
        let page = vcpu.page();
        page.rflags &= !RFLAGS_TF;
        page.dirty |= Groups::RIP.bits();
        if step.pushes_flags && page.rip != step.from {
            let page = vcpu.state(Groups::CS_SS);
            let second = page.segments[SS].base.wrapping_add(page.gpr[gpr::RSP]).wrapping_add(1);
            let mut flags = [0];
            if memory::read(vcpu, guest, second, &mut flags) == 1 {
                flags[0] &= !((RFLAGS_TF >> 8) as u8);
                memory::write(vcpu, guest, second, &flags);
            }
        }
    }
}
