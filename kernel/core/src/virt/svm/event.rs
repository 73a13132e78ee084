//! Events: what may be injected, how, and what of it is still pending after the exit (APM 15.20, 15.21.4, 15.7.2).
//!
//! Hardware gets every event by EVENTINJ. Under QEMU's TCG an external interrupt injected so may be delivered twice,
//! so it becomes V_IRQ, a pending virtual interrupt, instead. The two are equivalent: V_IRQ is only used when the
//! guest could take the interrupt at once, its priority is above V_TPR, and VINTR is not intercepted, so the first
//! thing that VMRUN does is to deliver it. The one difference is that a physical interrupt may come first; then V_IRQ
//! is still set after the exit, and the event goes back to the page as still pending.

use super::processor::Quirks;
use hypercall_abi::exit::EntryRule;
use hypercall_abi::vcpu::Event;

/// What the guest's state says about taking events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// RFLAGS.IF.
    pub interrupt_flag: bool,
    /// In the shadow of STI or MOV SS.
    pub shadow: bool,
    /// An NMI is being handled.
    pub nmi_masked: bool,
    /// CR0.PE.
    pub protected_mode: bool,
    /// 64-bit mode (EFER.LMA and CS.L).
    pub long_mode_64: bool,
}

/// Vector of #BP and of #OF: traps of an instruction, INT3 and INTO.
const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;
const BOUND: u8 = 5;
/// Vector of #CP, which has an error code only where the CPU has CET.
const CONTROL_PROTECTION: u8 = 21;
/// Vectors of exceptions with an error code: #DF #TS #NP #SS #GP #PF #AC.
const WITH_ERROR_CODE: u32 = 0b10_0111_1101_0000_0000;

/// Refuses events that VMRUN would refuse or mishandle, by the rules that both vendors share (SDM 3C 26.2.1.3, APM
/// 15.20).
///
/// `pending` is the event that the last run handed back: it was accepted once, and waits if the guest meanwhile
/// cannot take it. An exception has to fit the guest's mode, which the VMM may have changed.
///
/// # Errors
/// The rule that the event breaks.
pub fn check(event: Event, pending: Event, ready: &Readiness) -> Result<(), EntryRule> {
    const RESERVED: u64 = 0xffff_0000_7fff_f000;
    if !event.is_valid() || event == pending && event.kind() != Event::EXCEPTION {
        return Ok(());
    }
    if event.0 & RESERVED != 0 {
        return Err(EntryRule::Event);
    }
    let has_error_code = event.error_code().is_some();
    match event.kind() {
        Event::EXCEPTION => return check_exception(event, ready),
        _ if has_error_code => return Err(EntryRule::Event),
        Event::EXTERNAL if !ready.interrupt_flag => return Err(EntryRule::Rflags),
        Event::EXTERNAL if ready.shadow => return Err(EntryRule::Activity),
        Event::NMI if event.vector() != 2 => return Err(EntryRule::Event),
        Event::NMI if ready.nmi_masked => return Err(EntryRule::Activity),
        Event::EXTERNAL | Event::NMI | Event::SOFTWARE => {}
        _ => return Err(EntryRule::Event),
    }
    Ok(())
}

fn check_exception(event: Event, ready: &Readiness) -> Result<(), EntryRule> {
    let vector = event.vector();
    let has_error_code = event.error_code().is_some();
    let wants_error_code = ready.protected_mode && vector < 32 && WITH_ERROR_CODE >> vector & 1 != 0;
    let is_impossible =
        vector == 2 || vector > 31 || ready.long_mode_64 && matches!(vector, OVERFLOW | BOUND);
    let is_consistent =
        has_error_code == wants_error_code || vector == CONTROL_PROTECTION && ready.protected_mode;
    if is_impossible || !is_consistent { Err(EntryRule::Event) } else { Ok(()) }
}

/// Whether the event stands for an instruction, so that its return address is behind that instruction.
pub fn is_of_instruction(event: Event) -> bool {
    match event.kind() {
        Event::SOFTWARE => true,
        Event::EXCEPTION => matches!(event.vector(), BREAKPOINT | OVERFLOW),
        _ => false,
    }
}

/// How an event is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// There is none.
    Nothing,
    /// By EVENTINJ, at once.
    Inject(Event),
    /// By V_IRQ.
    VirtualInterrupt(Event),
    /// Not in this run: it stays pending.
    Hold(Event),
}

impl Plan {
    /// The plan for an event that [`check`] accepted.
    pub fn new(event: Event, ready: &Readiness, quirks: &Quirks) -> Self {
        if !event.is_valid() {
            Plan::Nothing
        } else if event.kind() != Event::EXTERNAL || !quirks.repeats_injected_interrupt {
            Plan::Inject(event)
        } else if ready.shadow && quirks.loses_shadow {
            Plan::Hold(event)
        } else {
            Plan::VirtualInterrupt(event)
        }
    }

    /// What is left of the plan after the exit. `exit_int_info` is EXITINTINFO, `virtual_interrupt` whether V_IRQ is
    /// still set.
    pub fn leftover(self, exit_int_info: u64, virtual_interrupt: bool) -> Leftover {
        let interrupted = interrupted(exit_int_info);
        match self {
            // QEMU calls the interrupted delivery of an interrupt that of an exception. If it was another event, that
            // was an exception of the guest's, which comes again with its instruction; the interrupt would be lost.
            Plan::VirtualInterrupt(event)
                if virtual_interrupt || interrupted.is_valid() && interrupted.vector() == event.vector() =>
            {
                Leftover::Pending(event)
            }
            Plan::Hold(event) => Leftover::Pending(event),
            _ if !interrupted.is_valid() => Leftover::Nothing,
            _ if !is_of_instruction(interrupted) => Leftover::Pending(interrupted),
            Plan::Inject(event) if (event.0 ^ interrupted.0) & 0x7ff == 0 => Leftover::Unwound(event),
            // The guest's own instruction: RIP is still on it, and executing it again raises the event again.
            _ => Leftover::Nothing,
        }
    }
}

/// Whether the exit interrupted the delivery of an event, by its EXITINTINFO.
#[inline]
pub fn is_delivering(exit_int_info: u64) -> bool {
    Event(exit_int_info).is_valid()
}

/// EXITINTINFO as an event.
fn interrupted(exit_int_info: u64) -> Event {
    let event = Event(exit_int_info & 0xffff_ffff_8000_0fff);
    if event.error_code().is_some() { event } else { Event(event.0 & 0xffff_ffff) }
}

/// Whether the next run is to end as soon as the guest could take an interrupt (`interrupt`) or NMI (`nmi`).
///
/// V_IRQ does it, if it is free. In a shadow that VMRUN would lose the request has to wait for the next exit of whatever
/// kind: HLT, or a host timer. So has one for NMIs at an IRET with interrupts enabled, where V_IRQ would end the run before
/// the IRET is executed, and again in the next one.
pub fn wants_window(
    interrupt: bool,
    nmi: bool,
    mask: NmiMask,
    plan: Plan,
    ready: &Readiness,
    quirks: &Quirks,
) -> bool {
    let is_free = matches!(plan, Plan::Nothing | Plan::Inject(_));
    let nmi_can_be_told = match mask {
        NmiMask::Open => true,
        NmiMask::AtIret(_) => !ready.interrupt_flag,
        NmiMask::Masked => false,
    };
    let wanted = interrupt || nmi && nmi_can_be_told;
    wanted && is_free && !(ready.shadow && quirks.loses_shadow)
}

/// What the exit left undelivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing.
    Nothing,
    /// This event.
    Pending(Event),
    /// This event of an instruction, which was injected: RIP goes back to where it was before.
    Unwound(Event),
}

impl Leftover {
    /// The event.
    pub fn event(self) -> Event {
        match self {
            Leftover::Nothing => Event::NONE,
            Leftover::Pending(event) | Leftover::Unwound(event) => event,
        }
    }
}

/// Whether the guest is handling an NMI. SVM without vNMI does not track it, so the kernel intercepts the IRET that
/// ends the handler.
///
/// The intercept comes before the IRET. An NMI injected there would use the stack that the handler is about to leave,
/// and overwrite the return frame where it has a stack of its own (IST). So NMIs stay masked until RIP is seen to
/// have left the IRET, at whatever exit comes next; a window request adds a virtual-interrupt window to make that
/// soon. Single-stepping would be prompter, but the trap flag leaks into what the guest can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NmiMask {
    /// No.
    #[default]
    Open,
    /// Yes: IRET exits.
    Masked,
    /// At the IRET at this address, which has not been executed as long as RIP is there.
    AtIret(u64),
}

impl NmiMask {
    /// Whether NMIs have to wait.
    pub fn is_masked(self) -> bool {
        self != NmiMask::Open
    }

    /// After an exit with this RIP.
    #[must_use]
    pub fn after_exit(self, rip: u64) -> Self {
        match self {
            NmiMask::AtIret(iret) if iret != rip => NmiMask::Open,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: Readiness = Readiness {
        interrupt_flag: true,
        shadow: false,
        nmi_masked: false,
        protected_mode: true,
        long_mode_64: true,
    };
    const TCG: Quirks = Quirks {
        loses_shadow: true,
        repeats_injected_interrupt: true,
        shares_pat: true,
        mistakes_control_registers: true,
        injects_without_next_rip: false,
        leaves_cr2: false,
    };
    const HARDWARE: Quirks = Quirks {
        loses_shadow: false,
        repeats_injected_interrupt: false,
        shares_pat: false,
        mistakes_control_registers: false,
        injects_without_next_rip: false,
        leaves_cr2: false,
    };
    const TIMER: Event = Event::interrupt(0x20);

    fn software(vector: u8) -> Event {
        Event(1 << 31 | (Event::SOFTWARE as u64) << 8 | vector as u64)
    }

    #[test]
    fn ordinary_events_are_accepted() {
        for event in [
            Event::NONE,
            TIMER,
            Event::nmi(),
            Event::exception(14, Some(2)),
            Event::exception(6, None),
            Event::exception(3, None),
            software(0x80),
        ] {
            assert_eq!(check(event, Event::NONE, &READY), Ok(()), "{event:x?}");
        }
    }

    #[test]
    fn an_interrupt_is_refused_when_the_guest_cannot_take_it() {
        let disabled = Readiness { interrupt_flag: false, ..READY };
        assert_eq!(check(TIMER, Event::NONE, &disabled), Err(EntryRule::Rflags));
        let shadow = Readiness { shadow: true, ..READY };
        assert_eq!(check(TIMER, Event::NONE, &shadow), Err(EntryRule::Activity));
    }

    #[test]
    fn an_interrupt_that_was_handed_back_may_wait() {
        let disabled = Readiness { interrupt_flag: false, ..READY };
        assert_eq!(check(TIMER, TIMER, &disabled), Ok(()));
    }

    #[test]
    fn an_exception_that_was_handed_back_is_refused_in_a_mode_that_has_none() {
        let compatibility_mode = Readiness { long_mode_64: false, ..READY };
        let bound = Event::exception(BOUND, None);
        assert_eq!(check(bound, bound, &compatibility_mode), Ok(()));
        assert_eq!(check(bound, bound, &READY), Err(EntryRule::Event));
    }

    #[test]
    fn an_nmi_is_refused_while_one_is_handled() {
        let masked = Readiness { nmi_masked: true, ..READY };
        assert_eq!(check(Event::nmi(), Event::NONE, &masked), Err(EntryRule::Activity));
    }

    #[test]
    fn impossible_events_are_refused() {
        for event in [
            Event(1 << 31 | 1 << 8),
            Event(1 << 31 | 7 << 8),
            Event(1 << 31 | 1 << 12 | 0x20),
            Event(1 << 31 | 1 << 11 | 0x20),
            Event(1 << 31 | 2 << 8 | 3),
            Event::exception(2, None),
            Event::exception(32, None),
            Event::exception(4, None),
            Event::exception(6, Some(0)),
            Event::exception(14, None),
            Event(Event::exception(14, Some(0)).0 | 1 << 63),
        ] {
            assert_eq!(check(event, Event::NONE, &READY), Err(EntryRule::Event), "{event:x?}");
        }
    }

    #[test]
    fn exceptions_have_no_error_code_in_real_mode() {
        let real = Readiness { protected_mode: false, long_mode_64: false, ..READY };
        assert_eq!(check(Event::exception(13, None), Event::NONE, &real), Ok(()));
        assert_eq!(check(Event::exception(13, Some(0)), Event::NONE, &real), Err(EntryRule::Event));
    }

    #[test]
    fn hardware_gets_interrupts_by_event_injection_and_tcg_by_virtual_interrupts() {
        assert_eq!(Plan::new(TIMER, &READY, &HARDWARE), Plan::Inject(TIMER));
        assert_eq!(Plan::new(TIMER, &READY, &TCG), Plan::VirtualInterrupt(TIMER));
        assert_eq!(Plan::new(Event::nmi(), &READY, &TCG), Plan::Inject(Event::nmi()));
    }

    #[test]
    fn tcg_gets_no_interrupt_in_a_shadow_that_it_would_forget() {
        let shadow = Readiness { shadow: true, ..READY };
        assert_eq!(Plan::new(TIMER, &shadow, &TCG), Plan::Hold(TIMER));
        assert_eq!(Plan::Hold(TIMER).leftover(0, false), Leftover::Pending(TIMER));
    }

    #[test]
    fn a_virtual_interrupt_that_was_not_taken_is_still_pending() {
        assert_eq!(Plan::VirtualInterrupt(TIMER).leftover(0, true), Leftover::Pending(TIMER));
        assert_eq!(Plan::VirtualInterrupt(TIMER).leftover(0, false), Leftover::Nothing);
    }

    #[test]
    fn an_interrupted_delivery_is_pending_once() {
        // QEMU leaves V_IRQ set when delivering it faults in the nested tables.
        let as_exception = TIMER.0 | (Event::EXCEPTION as u64) << 8;
        for (info, virtual_interrupt) in [(TIMER.0, true), (as_exception, true), (as_exception, false)] {
            let left = Plan::VirtualInterrupt(TIMER).leftover(info, virtual_interrupt);
            assert_eq!(left, Leftover::Pending(TIMER));
        }
        let fault = Event::exception(14, Some(7));
        assert_eq!(Plan::Nothing.leftover(fault.0, false), Leftover::Pending(fault));
    }

    #[test]
    fn a_waiting_interrupt_survives_an_exception_that_comes_again_anyway() {
        let fault = Event::exception(14, Some(7));
        assert_eq!(Plan::VirtualInterrupt(TIMER).leftover(fault.0, true), Leftover::Pending(TIMER));
        assert_eq!(Plan::Hold(TIMER).leftover(fault.0, false), Leftover::Pending(TIMER));
    }

    #[test]
    fn the_guests_own_int_instruction_is_executed_again() {
        assert_eq!(Plan::Nothing.leftover(software(0x80).0, false), Leftover::Nothing);
        assert_eq!(Plan::Nothing.leftover(Event::exception(3, None).0, false), Leftover::Nothing);
    }

    #[test]
    fn an_injected_int_instruction_goes_back_with_its_rip() {
        let event = software(0x80);
        assert_eq!(Plan::Inject(event).leftover(event.0, false), Leftover::Unwound(event));
    }

    const SHADOW: Readiness = Readiness { shadow: true, ..READY };

    #[test]
    fn a_window_is_requested_where_v_irq_is_free_and_the_shadow_is_kept() {
        let wants = |plan, ready, quirks| wants_window(true, false, NmiMask::Open, plan, &ready, &quirks);
        assert!(wants(Plan::Nothing, READY, TCG));
        assert!(wants(Plan::Inject(TIMER), SHADOW, HARDWARE));
        assert!(!wants(Plan::Nothing, SHADOW, TCG));
        assert!(!wants(Plan::VirtualInterrupt(TIMER), READY, TCG));
        let nobody = wants_window(false, false, NmiMask::Open, Plan::Nothing, &READY, &HARDWARE);
        assert!(!nobody);
    }

    #[test]
    fn an_nmi_window_waits_for_the_iret_without_ending_runs_in_front_of_it() {
        let disabled = Readiness { interrupt_flag: false, ..READY };
        let wants = |mask, ready| wants_window(false, true, mask, Plan::Nothing, &ready, &HARDWARE);
        assert!(!wants(NmiMask::Masked, READY));
        assert!(!wants(NmiMask::AtIret(0), READY));
        assert!(wants(NmiMask::AtIret(0), disabled));
        assert!(wants(NmiMask::Open, SHADOW));
    }

    #[test]
    fn nmis_stay_masked_until_the_iret_is_executed() {
        let mask = NmiMask::AtIret(0x1000);
        assert!(mask.after_exit(0x1000).is_masked());
        assert!(!mask.after_exit(0x2000).is_masked());
        assert!(NmiMask::Masked.after_exit(0x2000).is_masked());
    }
}
