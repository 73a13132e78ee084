//! The virtual CPU: one VMCB, and what surrounds its runs.

mod straight;

use super::state::{self, Extra, RFLAGS_IF};
use super::{entry, entry_checker, insn, region};
use crate::cpu::tsc;
use crate::mem::phys_to_virt;
use crate::virt::page::{Page, get, put, refuse, wanted};
use crate::virt::{GuestCpu, HostState, Returned, RunArgs};
use core::ptr::NonNull;
use hypercall_abi::exit::{EntryRule, ExitKind};
use hypercall_abi::vcpu::gpr::RAX;
use hypercall_abi::vcpu::{ACTIVITY_HALTED, Event, Groups, Intercepts, RunFlags, VcpuPage};
use kcore::addr::PhysAddr;
use kcore::virt::svm::asid::{Tag, TlbControl};
use kcore::virt::svm::checks;
use kcore::virt::svm::event::{self, Leftover, NmiMask, Plan, Readiness};
use kcore::virt::svm::exit::{self, GuestExit, Reason};
use kcore::virt::svm::intercepts::{ALIGNMENT_CHECK, Choice, DEBUG_EXCEPTION};
use kcore::virt::svm::processor::{Processor, SvmFeatures};
use kcore::virt::svm::segment;
use kcore::virt::svm::vmcb::{
    Clean, INTERRUPT_SHADOW, NP_ENABLE, V_IGN_TPR, V_INTR_MASKING, V_INTR_PRIO_MAX, V_INTR_VECTOR_SHIFT,
    V_IRQ, Vmcb,
};

/// Groups that are checked with [`checks::check_rip`] or not at all.
const LIGHT: Groups = Groups::RIP.union(Groups::INJECT).union(Groups::INTERCEPTS).union(Groups::TSC_OFFSET);

/// What ends a run when the guest could take an event.
const WINDOWS: RunFlags = RunFlags::INTERRUPT_WINDOW.union(RunFlags::NMI_WINDOW);

/// How often [`GuestCpu::run`] enters the guest before it looks for host interrupts.
const MAX_ENTRIES: usize = 16;

/// A virtual CPU on SVM.
#[derive(Debug)]
pub struct Vcpu {
    vmcb: PhysAddr,
    /// The host's state for VMLOAD.
    host: PhysAddr,
    processor: Processor,
    extra: Extra,
    optional: Intercepts,
    exceptions: u32,
    /// What the VMCB intercepts now; `None` before the first run.
    applied: Option<Choice>,
    clean: Clean,
    /// The clean bits of a VMCB of which nothing changed: none on a CPU without.
    all_clean: u32,
    tag: Tag,
    /// Translations of the guest may be stale.
    flush: bool,
    /// Generation of the nested tables at the last run.
    nested_generation: u64,
    /// The event that the last run handed back.
    pending: Event,
    /// The VMCB holds values that have not passed the checks.
    unchecked: bool,
    /// VMRUN refused the VMCB, and QEMU overwrites it with host state then: everything comes from the page.
    lost: bool,
    /// Nothing has to be done for the next run but what the VMM asks for: see [`Vcpu::settle`].
    is_settled: bool,
    /// DR0 to DR3 in the CPU may not be the guest's, or it wants to access the debug registers.
    must_load_breakpoints: bool,
}

// SAFETY: no value of the page reaches the CPU unchecked: what VMRUN loads is checked in the VMCB, which only the
// kernel can write (`accept`); what WRMSR loads is checked in `state::take`; general-purpose and breakpoint registers
// take any value. Every intercept that isolation needs is in `Choice::apply`, whatever the VMM asks for.
unsafe impl GuestCpu for Vcpu {
    const FRAMES: usize = 2;

    unsafe fn new(frames: &[PhysAddr], _host: &HostState, nested_root: PhysAddr) -> Self {
        let mut vcpu = Vcpu {
            vmcb: frames[0],
            host: frames[1],
            processor: region::processor(),
            extra: Extra::new(),
            optional: Intercepts::empty(),
            exceptions: 0,
            applied: None,
            clean: Clean::empty(),
            all_clean: 0,
            tag: Tag::NONE,
            flush: false,
            nested_generation: 0,
            pending: Event::NONE,
            unchecked: false,
            lost: false,
            is_settled: false,
            must_load_breakpoints: true,
        };
        if vcpu.processor.svm.contains(SvmFeatures::VMCB_CLEAN) {
            vcpu.all_clean = Clean::all().bits();
        }
        let (msr_map, io_map) = region::permission_maps();
        let vmcb = vcpu.vmcb();
        vmcb.control.msrpm_base = msr_map.0;
        vmcb.control.iopm_base = io_map.0;
        vmcb.control.nested_control = NP_ENABLE;
        vmcb.control.nested_cr3 = nested_root.0;
        vmcb.save.reset();
        // What VMLOAD restores is the same for ever, but for LSTAR: user code has no FS or GS base.
        // SAFETY: the caller gives the frame; SVM is enabled where there are vCPUs.
        unsafe { insn::vmsave(vcpu.host) };
        let host = vmcb_at(vcpu.host);
        (host.save.fs.selector, host.save.gs.selector) = (0, 0);
        vcpu
    }

    unsafe fn take_over(&mut self) {
        tsc::set_aux(self.extra.tsc_aux);
        vmcb_at(self.host).save.lstar = crate::entry::syscall_entry();
        (self.is_settled, self.must_load_breakpoints) = (false, true);
    }

    #[inline(always)]
    unsafe fn run(
        &mut self,
        page: NonNull<VcpuPage>,
        args: &RunArgs,
        call: impl Fn(u16) -> Option<bool>,
    ) -> Returned {
        // SAFETY: the caller keeps the page mapped during the call.
        let page = unsafe { Page::new(page) };
        if self.is_plain(page, args) {
            self.run_plain(page, args, call)
        } else {
            self.run_any(page, args.dirty, args.flags, args.nested_generation)
        }
    }

    unsafe fn read(&mut self, page: NonNull<VcpuPage>, groups: Groups) {
        // SAFETY: as in `run`.
        let page = unsafe { Page::new(page) };
        let filled = get!(page, filled) | groups.bits();
        state::give(page, groups, vmcb_at(self.vmcb), &self.extra);
        put!(page, filled => filled);
    }

    #[inline(always)]
    unsafe fn code_root(&mut self) -> Option<u64> {
        segment::code_root(&self.vmcb().save)
    }

    #[inline(always)]
    unsafe fn leave(&mut self) {
        if self.extra.breakpoints.is_open() {
            self.extra.breakpoints.close();
            self.is_settled = false;
        }
    }

    /// Nothing is left in the CPU that could be used: the ASID is not handed out again before a full flush, and a VMCB
    /// in the same frame starts without clean bits.
    unsafe fn destroy(&mut self) {
        if crate::CHECKERS {
            entry_checker::end(self.vmcb, self.vmcb().control.asid);
        }
        self.tag = Tag::NONE;
        self.clean = Clean::empty();
    }
}

impl Vcpu {
    fn vmcb(&mut self) -> &mut Vmcb {
        vmcb_at(self.vmcb)
    }

    /// A run of any kind.
    #[inline(never)]
    fn run_any(&mut self, page: Page, dirty: Groups, flags: RunFlags, nested_generation: u64) -> Returned {
        self.is_settled = false;
        if self.nested_generation != nested_generation {
            self.nested_generation = nested_generation;
            self.flush = true;
        }
        if let Err(rule) = self.accept(page, dirty) {
            return refuse(page, rule, [0; 2]);
        }
        if self.must_load_breakpoints {
            self.must_load_breakpoints = false;
            let dr7 = self.vmcb().save.dr7;
            self.extra.breakpoints.load(dr7);
        }
        let length = get!(page, inject_length);
        let mut event = get!(page, inject);
        for _ in 0..MAX_ENTRIES {
            let ready = self.readiness();
            if let Some(kind) = self.open_window(flags, event, &ready) {
                return self.report(page, event, &GuestExit::plain(kind));
            }
            let plan = match self.plan(event, length, &ready) {
                Ok(plan) => plan,
                Err(rule) => return refuse(page, rule, [0; 2]),
            };
            let rip = self.vmcb().save.rip;
            self.enter(page, plan, length, flags, &ready);
            if let Some(returned) = self.report_quick_after(page, plan) {
                return returned;
            }
            let reason = self.after_exit(page, plan, rip);
            event = self.pending;
            if let Some(returned) = self.conclude(page, flags, reason) {
                return returned;
            }
        }
        self.interrupted(page)
    }

    /// What an exit comes to; `None` for one of the kernel's own making: on with the guest.
    fn conclude(&mut self, page: Page, flags: RunFlags, reason: Reason) -> Option<Returned> {
        let event = self.pending;
        Some(match reason {
            Reason::Refused => self.lose(page),
            // The kernel's handler had the NMI at STGI.
            Reason::HostInterrupt | Reason::HostNmi => self.interrupted(page),
            Reason::HostMachineCheck => {
                self.hand_back(page, event, Groups::empty());
                Returned::HostMachineCheck
            }
            Reason::Window if flags.contains(RunFlags::INTERRUPT_WINDOW) => {
                self.settle();
                self.report(page, event, &GuestExit::plain(ExitKind::InterruptWindow))
            }
            Reason::Guest(exit) => {
                let is_halt = exit.kind == ExitKind::Hlt && exit.length != 0;
                if self.answer(&exit) {
                    self.interrupted(page)
                } else if is_halt && flags.contains(RunFlags::HLT_BLOCKS) {
                    self.halt(page, event, exit.length)
                } else {
                    self.settle();
                    self.report(page, event, &exit)
                }
            }
            Reason::Window | Reason::Iret => return None,
        })
    }

    /// Leaves the page ready for the next run, which is the kernel's own, after a look at host interrupts.
    fn interrupted(&mut self, page: Page) -> Returned {
        self.hand_back(page, self.pending, Groups::empty());
        Returned::HostInterrupt
    }

    /// Takes over what the VMM changed, and checks it. The dirty bits stay until all of it passed.
    fn accept(&mut self, page: Page, dirty: Groups) -> Result<(), EntryRule> {
        let groups = if self.lost { Groups::all() } else { dirty };
        let is_light = !self.unchecked && self.extra.nmi == NmiMask::Open && Groups::RIP.contains(groups);
        if groups.is_empty() && !self.unchecked || is_light && self.takes_rip(page) {
            return Ok(());
        }
        if groups.contains(Groups::INTERCEPTS) {
            self.optional = Intercepts::from_bits_truncate(get!(page, intercepts));
            self.exceptions = get!(page, exception_bitmap);
        }
        // The VMM stands in for instructions that flush: MOV to CR3 with the same value does, too.
        self.flush |= groups.intersects(Groups::CONTROL | Groups::PAT);
        self.must_load_breakpoints |= groups.contains(Groups::DEBUG);
        let needs_full_check = self.unchecked || !LIGHT.contains(groups);
        self.unchecked = true;
        let vmcb = vmcb_at(self.vmcb);
        state::take(page, groups, vmcb, &mut self.extra, &mut self.clean)?;
        if needs_full_check {
            checks::check(&vmcb.save, self.extra.hidden_cr0, &self.processor)?;
        } else {
            checks::check_rip(&vmcb.save)?;
        }
        (self.unchecked, self.lost) = (false, false);
        put!(page, Groups::empty().bits() => dirty);
        Ok(())
    }

    fn readiness(&mut self) -> Readiness {
        let nmi_masked = self.extra.nmi.is_masked();
        let vmcb = self.vmcb();
        Readiness {
            interrupt_flag: vmcb.save.rflags & RFLAGS_IF != 0,
            shadow: vmcb.control.interrupt_shadow & INTERRUPT_SHADOW != 0,
            nmi_masked,
            protected_mode: vmcb.save.cr0 & 1 != 0,
            long_mode_64: segment::is_64_bit(&vmcb.save),
        }
    }

    /// The window exit that is due before the guest executes anything.
    fn open_window(&mut self, flags: RunFlags, event: Event, ready: &Readiness) -> Option<ExitKind> {
        if !flags.intersects(RunFlags::INTERRUPT_WINDOW | RunFlags::NMI_WINDOW) || event.is_valid() {
            return None;
        }
        if ready.shadow {
            None
        } else if flags.contains(RunFlags::NMI_WINDOW) && !ready.nmi_masked {
            Some(ExitKind::NmiWindow)
        } else if flags.contains(RunFlags::INTERRUPT_WINDOW) && ready.interrupt_flag {
            Some(ExitKind::InterruptWindow)
        } else {
            None
        }
    }

    fn plan(&mut self, event: Event, length: u32, ready: &Readiness) -> Result<Plan, EntryRule> {
        if !event.is_valid() {
            return Ok(Plan::Nothing);
        }
        event::check(event, self.pending, ready)?;
        if event::is_of_instruction(event) && length > 15 {
            return Err(EntryRule::Event);
        }
        Ok(Plan::new(event, ready, &self.processor.quirks))
    }

    /// One VMRUN.
    fn enter(&mut self, page: Page, plan: Plan, length: u32, flags: RunFlags, ready: &Readiness) {
        self.stage_event(plan, length, ready);
        self.stage_window(plan, flags, ready);
        self.stage_asid();
        let cr2 = get!(page, cr2);
        if self.vmcb().save.cr2 != cr2 {
            self.vmcb().save.cr2 = cr2;
            self.clean -= Clean::CR2;
        }
        if self.processor.quirks.leaves_cr2 {
            insn::write_cr2(cr2);
        }
        let (vmcb_frame, host) = (self.vmcb, self.host);
        let clean = self.clean.bits() & self.all_clean;
        let vmcb = self.vmcb();
        vmcb.control.clean = clean;
        vmcb.save.rax = get!(page, gpr[RAX]);
        if crate::CHECKERS {
            entry_checker::check(vmcb_frame, vmcb_at(vmcb_frame), self.clean, &self.processor);
        }
        // SAFETY: the registers are the first field of the mapped page; the VMCB passed `accept` and intercepts what
        // `Choice::apply` says; `new` filled the host area on this CPU.
        unsafe { entry::enter(page.as_ptr().cast(), vmcb_frame.0, host.0) };
    }

    /// After VMRUN with this plan and, at the time, this RIP. Leaves the event that is still to be delivered in `self.pending`.
    fn after_exit(&mut self, page: Page, plan: Plan, rip: u64) -> Reason {
        let vmcb = vmcb_at(self.vmcb);
        let reason = exit::decode(vmcb, &self.processor);
        if reason == Reason::Refused {
            return reason;
        }
        if crate::CHECKERS {
            entry_checker::after_exit(self.vmcb, vmcb);
        }
        put!(page, vmcb.save.rax => gpr[RAX]);
        put!(page, vmcb.save.cr2 => cr2);
        self.flush = false;
        self.clean = Clean::all();
        self.extra.nmi = self.extra.nmi.after_exit(vmcb.save.rip);
        let still_virtual = vmcb.control.interrupt_control & V_IRQ != 0;
        let left = plan.leftover(vmcb.control.exit_int_info, still_virtual);
        if matches!(left, Leftover::Unwound(_)) {
            vmcb.save.rip = rip;
        }
        self.pending = left.event();
        if self.pending.is_valid() && self.pending.kind() == Event::NMI {
            self.extra.nmi = NmiMask::Open;
        }
        if reason == Reason::Iret {
            self.extra.nmi = NmiMask::AtIret(vmcb.save.rip);
        }
        reason
    }

    fn stage_event(&mut self, plan: Plan, length: u32, ready: &Readiness) {
        let uses_next_rip = self.processor.has_next_rip() && !self.processor.quirks.injects_without_next_rip;
        let Plan::Inject(event) = plan else {
            self.vmcb().control.event_injection = 0;
            return;
        };
        if event.kind() == Event::NMI {
            self.extra.nmi = NmiMask::Masked;
        }
        let vmcb = self.vmcb();
        vmcb.control.event_injection = event.0;
        if event::is_of_instruction(event) {
            // The return address is nRIP where there is one (APM 15.20), else RIP.
            let next = advance(vmcb.save.rip, length, ready.long_mode_64);
            if uses_next_rip {
                vmcb.control.next_rip = next;
            } else {
                vmcb.save.rip = next;
            }
        }
    }

    fn stage_window(&mut self, plan: Plan, flags: RunFlags, ready: &Readiness) {
        const AT_ONCE: u64 = V_IRQ | V_INTR_PRIO_MAX | V_IGN_TPR;
        let window = event::wants_window(
            flags.contains(RunFlags::INTERRUPT_WINDOW),
            flags.contains(RunFlags::NMI_WINDOW),
            self.extra.nmi,
            plan,
            ready,
            &self.processor.quirks,
        );
        let request = match plan {
            Plan::VirtualInterrupt(event) => AT_ONCE | (event.vector() as u64) << V_INTR_VECTOR_SHIFT,
            _ if window => AT_ONCE,
            _ => 0,
        };
        let interrupt_control = V_INTR_MASKING | request;
        let choice = Choice {
            optional: self.optional,
            exceptions: self.exceptions,
            cr0: self.extra.hides() || self.processor.quirks.mistakes_control_registers,
            cr4_reads: self.extra.hidden_cr4 != 0,
            debug_registers: !self.extra.breakpoints.is_open(),
            window,
            iret: self.extra.nmi == NmiMask::Masked,
        };
        if self.vmcb().control.interrupt_control != interrupt_control {
            self.vmcb().control.interrupt_control = interrupt_control;
            self.clean -= Clean::VIRTUAL_INTERRUPT;
        }
        if self.applied != Some(choice) {
            choice.apply(&mut self.vmcb().control);
            self.applied = Some(choice);
            self.clean -= Clean::INTERCEPTS;
        }
    }

    fn stage_asid(&mut self) {
        let (asid, tlb_control) = region::prepare_asid(&mut self.tag, self.flush, &self.processor);
        if tlb_control != TlbControl::Nothing || self.vmcb().control.asid != asid {
            self.clean -= Clean::ASID;
        }
        let control = &mut self.vmcb().control;
        (control.asid, control.tlb_control) = (asid, tlb_control as u32);
    }

    /// Answers exits that are there for the kernel's own sake; false for all others. A window for host interrupts has to
    /// follow: a guest may raise #DB or #AC whenever one is delivered, without executing an instruction in between.
    fn answer(&mut self, exit: &GuestExit) -> bool {
        const DR7_GD: u64 = 1 << 13;
        match exit.kind {
            ExitKind::DebugAccess if !self.optional.contains(Intercepts::DEBUG_REGISTERS) => {
                // The instruction is executed again, with the guest's registers in the CPU.
                self.extra.breakpoints.want();
                self.must_load_breakpoints = true;
                true
            }
            _ if exit.is_reflected(self.exceptions, self.pending) => {
                let vector = exit.info[0] as u8;
                let error_code = (vector == ALIGNMENT_CHECK).then_some(0);
                if vector == DEBUG_EXCEPTION {
                    // Taking a #DB clears DR7.GD; the exit came before that.
                    self.vmcb().save.dr7 &= !DR7_GD;
                    self.clean -= Clean::DEBUG_REGISTERS;
                }
                self.pending = Event::exception(vector, error_code);
                true
            }
            _ => false,
        }
    }

    /// Writes what every return writes: the pending event, RIP and its kin, and `groups`.
    fn hand_back(&mut self, page: Page, event: Event, groups: Groups) {
        let groups = groups | Groups::RIP;
        put!(page, event => inject);
        state::give(page, groups, vmcb_at(self.vmcb), &self.extra);
        put!(page, groups.bits() => filled);
    }

    fn report(&mut self, page: Page, event: Event, exit: &GuestExit) -> Returned {
        put!(page, exit.kind as u32 => exit_kind);
        put!(page, exit.length => exit_length);
        for (index, &word) in exit.info.iter().take(exit.info_words).enumerate() {
            put!(page, word => exit_info[index]);
        }
        self.hand_back(page, event, exit.needs | wanted(page, exit.decodes));
        Returned::Exit(exit.kind as u32)
    }

    /// HLT with `HLT_BLOCKS`: the guest continues behind it.
    fn halt(&mut self, page: Page, event: Event, length: u32) -> Returned {
        let is_64_bit = self.readiness().long_mode_64;
        let vmcb = self.vmcb();
        vmcb.save.rip = advance(vmcb.save.rip, length, is_64_bit);
        vmcb.control.interrupt_shadow = 0;
        self.hand_back(page, event, Groups::empty());
        put!(page, ACTIVITY_HALTED => activity);
        Returned::Halted
    }

    /// VMRUN refused the VMCB, which QEMU leaves with host state in the save area: nothing of it may reach the page.
    /// The next run takes every group from there, so the VMM has to put a whole state into it.
    fn lose(&mut self, page: Page) -> Returned {
        let exit_code = self.vmcb().control.exit_code;
        if crate::CHECKERS {
            panic!("entry checker: VMRUN refuses what no rule does: {exit_code:#x}");
        }
        self.vmcb().save.reset();
        (self.extra.hidden_cr0, self.extra.hidden_cr4) = (checks::HIDDEN_CR0, checks::CR4_MCE);
        self.extra.hidden_efer = 0;
        self.clean = Clean::empty();
        region::give_up_asid(&mut self.tag);
        self.lost = true;
        refuse(page, EntryRule::Hardware, [exit_code, 0])
    }
}

/// The address behind an instruction; outside 64-bit mode RIP wraps at 32 bits.
fn advance(rip: u64, length: u32, is_64_bit: bool) -> u64 {
    let next = rip.wrapping_add(length as u64);
    if is_64_bit { next } else { next & 0xffff_ffff }
}

/// The VMCB in a vCPU's frame.
fn vmcb_at<'a>(frame: PhysAddr) -> &'a mut Vmcb {
    // SAFETY: `new`'s caller gave the zeroed frame exclusively; any bytes are a valid `Vmcb`. Only the vCPU's methods
    // come here, with `&mut self`, and none uses a reference after it made the next one; the CPU writes the frame
    // only inside `entry::enter`, an opaque call.
    unsafe { &mut *phys_to_virt(frame).cast() }
}
