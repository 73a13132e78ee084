//! After an exit: what the VMM is told, and what the kernel does by itself.

use super::entry;
use super::insn::CurrentVmcs;
use super::vcpu::{Chores, Vcpu};
use crate::cpu::nmi;
use crate::virt::Returned;
use crate::virt::page::{Page, get, put, refuse, wanted};
use hypercall_abi::exit::{EntryRule, ExitKind};
use hypercall_abi::vcpu::{ACTIVITY_ACTIVE, Event, Groups, Interruptibility, RunFlags, SS};
use kcore::virt::vmx::exit::{
    DEBUG_EXCEPTION, Details, ENTRY_FAILURE, Interruption, Needs, Outcome, Reason, Report, decode,
    nested_fault, port_io, quick_kind, restores_nmi_blocking,
};
use kcore::virt::vmx::fields;

impl Vcpu {
    /// Everything after the exit; `None` if the guest goes on at once. Most exits are for the VMM and on an instruction: they need as
    /// little as this.
    #[inline(always)]
    pub(super) fn after_exit(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        flags: RunFlags,
        call: &impl Fn(u16) -> Option<bool>,
    ) -> Option<Returned> {
        let raw_reason: u32 = vmcs.read(fields::EXIT_REASON);
        let (rip, rflags) = (vmcs.read(fields::GUEST_RIP), vmcs.read(fields::GUEST_RFLAGS));
        let interruptibility = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
        (self.held.rip, self.held.rflags) = (rip, rflags);
        self.held.interruptibility = interruptibility;
        let Some(kind) = quick_kind(raw_reason) else {
            if raw_reason == u32::from(Reason::EPT_VIOLATION.0)
                && let Some(returned) = self.report_nested_fault(vmcs, page)
            {
                self.is_launched = true;
                return Some(returned);
            }
            return Some(self.after_other_exit(vmcs, page, raw_reason, flags));
        };
        if kind == ExitKind::PortIo {
            let io = port_io(vmcs.read(fields::EXIT_QUALIFICATION));
            if io.is_string {
                return Some(self.after_other_exit(vmcs, page, raw_reason, flags));
            }
            put!(page, io.encode() => exit_info[0]);
        }
        if kind == ExitKind::Hypercall {
            if let Some(goes_on) = self.answers_call(vmcs, page, call) {
                self.is_launched = true;
                return if goes_on { None } else { Some(self.go_on(page, Returned::HostInterrupt)) };
            }
            // The privilege level is the DPL of SS.
            let access: u32 = vmcs.read(fields::GUEST_SEGMENTS[SS].access);
            put!(page, u64::from(access >> 5 & 3) => exit_info[0]);
        }
        self.is_launched = true;
        // Read at every exit, also where the manual rules an event out: a hypervisor below us may exit on its own account in
        // the middle of a delivery.
        let interrupted = Interruption(vmcs.read(fields::IDT_VECTORING_INFO));
        put!(page, kind as u32 => exit_kind);
        put!(page, vmcs.read(fields::EXIT_INSTRUCTION_LENGTH) => exit_length);
        if interrupted.is_valid() || self.chores.contains(Chores::EVENT) || get!(page, want) != 0 {
            self.keep_interrupted_event(vmcs, page, interrupted, false);
            return Some(self.report_state(vmcs, page, kind, Groups::RIP));
        }
        // As `report_state`, from registers.
        put!(page, rip => rip);
        put!(page, rflags => rflags);
        put!(page, interruptibility => interruptibility);
        put!(page, ACTIVITY_ACTIVE => activity);
        put!(page, Groups::RIP.bits() => filled);
        Some(Returned::Exit(kind as u32))
    }

    /// After an exit that is not quick ([`quick_kind`]).
    #[inline(never)]
    fn after_other_exit(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        raw_reason: u32,
        flags: RunFlags,
    ) -> Returned {
        if raw_reason & ENTRY_FAILURE != 0 {
            return failed_entry(vmcs, page, raw_reason);
        }
        self.is_launched = true;
        let reason = Reason(raw_reason as u16);
        let needs = reason.needs();
        let details = read_details(vmcs, needs, self.machine.controls.has_string_io_info);
        let restores_blocking = restores_nmi_blocking(reason, &details);
        let interrupted = Interruption(vmcs.read(fields::IDT_VECTORING_INFO));
        let was_delivering = self.keep_interrupted_event(vmcs, page, interrupted, restores_blocking);
        let length: u32 =
            if needs.contains(Needs::LENGTH) { vmcs.read(fields::EXIT_INSTRUCTION_LENGTH) } else { 0 };
        let is_answered = !was_delivering
            && match reason {
                Reason::MOV_DR => self.wants_debug_registers(),
                Reason::WRMSR => self.write_msr(vmcs, page, length),
                _ => false,
            };
        if is_answered {
            return self.go_on(page, Returned::HostInterrupt);
        }
        let returned = match decode(reason, &details, self.wanted_exceptions, was_delivering) {
            Outcome::Vmm(report) => return self.report(vmcs, page, &report, length),
            Outcome::HostInterrupt => Returned::HostInterrupt,
            Outcome::HostNmi => {
                nmi::unblock();
                Returned::HostNmi
            }
            Outcome::HostMachineCheck => Returned::HostMachineCheck,
            Outcome::Timer => Returned::Timer,
            Outcome::Nothing => Returned::HostInterrupt,
            Outcome::Halt if flags.contains(RunFlags::HLT_BLOCKS) => return self.halt(vmcs, page, length),
            Outcome::Halt => return self.report(vmcs, page, &Report::new(ExitKind::Hlt), length),
            Outcome::Reflect { event, debug_bits } => self.reflect(vmcs, page, event, debug_bits, length),
        };
        self.go_on(page, returned)
    }

    /// The straight path of a nested fault: no event was being delivered, and the VMM wants the code's root at most.
    /// Does nothing where it is otherwise.
    #[inline(always)]
    fn report_nested_fault(&mut self, vmcs: CurrentVmcs, page: Page) -> Option<Returned> {
        let wanted = wanted(page, true);
        if !Groups::CODE.contains(wanted) {
            return None;
        }
        let details = read_details(vmcs, Reason::EPT_VIOLATION.needs(), false);
        let interrupted = Interruption(vmcs.read(fields::IDT_VECTORING_INFO));
        if interrupted.is_valid()
            || self.chores.contains(Chores::EVENT)
            || restores_nmi_blocking(Reason::EPT_VIOLATION, &details)
        {
            return None;
        }
        let kind = ExitKind::NestedFault as u32;
        put!(page, kind => exit_kind);
        put!(page, 0 => exit_length);
        for (index, word) in nested_fault(&details).into_iter().enumerate() {
            put!(page, word => exit_info[index]);
        }
        if !wanted.is_empty() {
            self.fill_code(vmcs, page);
        }
        self.fill_rip(page, ACTIVITY_ACTIVE);
        put!(page, (Groups::RIP | wanted).bits() => filled);
        Some(Returned::Exit(kind))
    }

    /// Leaves the page ready for the next run, which is the kernel's own.
    pub(super) fn go_on(&mut self, page: Page, returned: Returned) -> Returned {
        self.fill_rip(page, ACTIVITY_ACTIVE);
        put!(page, Groups::RIP.bits() => filled);
        returned
    }

    /// Puts an event whose delivery the exit interrupted into the page, where it is pending for the next entry, and sets
    /// the blocking of NMIs right (SDM 3C 27.2.3, 27.2.4). Says whether there is such an event.
    fn keep_interrupted_event(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        info: Interruption,
        restores_blocking: bool,
    ) -> bool {
        let had_event = self.chores.contains(Chores::EVENT);
        self.chores -= Chores::EVENT;
        if info.is_valid() {
            self.keep_event(vmcs, page, info);
            return true;
        }
        if had_event {
            put!(page, Event::NONE => inject);
        }
        if restores_blocking {
            self.set_interruptibility(vmcs, self.held.interruptibility | Interruptibility::NMI.bits());
        }
        false
    }

    #[cold]
    fn keep_event(&mut self, vmcs: CurrentVmcs, page: Page, info: Interruption) {
        let error_code = if info.has_error_code() { vmcs.read(fields::IDT_VECTORING_ERROR_CODE) } else { 0 };
        let event = info.event(error_code);
        put!(page, event => inject);
        if info.is_software() {
            put!(page, vmcs.read(fields::EXIT_INSTRUCTION_LENGTH) => inject_length);
        }
        if event.kind() == Event::NMI {
            // The NMI that will be injected again blocks others itself.
            self.set_interruptibility(vmcs, self.held.interruptibility & !Interruptibility::NMI.bits());
        }
    }

    fn report(&mut self, vmcs: CurrentVmcs, page: Page, report: &Report, length: u32) -> Returned {
        put!(page, report.kind as u32 => exit_kind);
        put!(page, length => exit_length);
        for (index, &word) in report.info[..report.info_count].iter().enumerate() {
            put!(page, word => exit_info[index]);
        }
        if report.kind == ExitKind::Exception && report.info[0] == DEBUG_EXCEPTION as u64 {
            self.chores |= Chores::PENDING_DEBUG;
        }
        self.report_state(vmcs, page, report.kind, report.groups)
    }

    /// Writes the state that the VMM needs and what it wants beyond.
    #[inline(never)]
    fn report_state(&mut self, vmcs: CurrentVmcs, page: Page, kind: ExitKind, needed: Groups) -> Returned {
        let groups = needed | wanted(page, kind == ExitKind::NestedFault);
        self.fill_rip(page, ACTIVITY_ACTIVE);
        let others = groups.difference(Groups::RIP);
        if !others.is_empty() {
            self.fill(vmcs, page, others);
        }
        put!(page, groups.bits() => filled);
        Returned::Exit(kind as u32)
    }
}

/// After a VMLAUNCH or VMRESUME that did nothing.
#[cold]
pub(super) fn failed_instruction(vmcs: CurrentVmcs, page: Page, status: u32) -> Returned {
    let error = if status == entry::FAIL_VALID { vmcs.read(fields::INSTRUCTION_ERROR) } else { 0 };
    refuse(page, EntryRule::Hardware, [error as u64, 0])
}

/// After an entry that failed on guest state or a machine check. Guest state is as it was before, and so is the launch
/// state (SDM 3C 26.8).
#[cold]
fn failed_entry(vmcs: CurrentVmcs, page: Page, raw_reason: u32) -> Returned {
    if Reason(raw_reason as u16) == Reason::ENTRY_MACHINE_CHECK {
        return Returned::HostMachineCheck;
    }
    let qualification = vmcs.read(fields::EXIT_QUALIFICATION);
    refuse(page, EntryRule::Hardware, [raw_reason as u64, qualification])
}

fn read_details(vmcs: CurrentVmcs, needs: Needs, has_string_io_info: bool) -> Details {
    let mut details = Details::default();
    if needs.contains(Needs::QUALIFICATION) {
        details.qualification = vmcs.read(fields::EXIT_QUALIFICATION);
    }
    if needs.contains(Needs::INTERRUPTION) {
        details.interruption = vmcs.read(fields::EXIT_INTERRUPTION_INFO);
        if Interruption(details.interruption).has_error_code() {
            details.error_code = vmcs.read(fields::EXIT_ERROR_CODE);
        }
    }
    if needs.contains(Needs::ADDRESSES) {
        details.physical = vmcs.read(fields::GUEST_PHYSICAL_ADDRESS);
        details.linear = vmcs.read(fields::GUEST_LINEAR_ADDRESS);
    }
    if needs.contains(Needs::INSTRUCTION_INFO) && has_string_io_info {
        details.instruction = vmcs.read(fields::EXIT_INSTRUCTION_INFO);
    }
    details
}
