//! One guest CPU: load, run, unload.

use super::answer::SINGLE_STEP;
use super::apic;
use super::entry::{self, enter};
use super::exit::failed_instruction;
use super::init;
use super::insn::{CurrentVmcs, InvEpt, invept, invvpid_single};
use super::region::{self, Machine, VPIDS};
use super::registers::{read_cr2, read_dr6, switch_syscall_msrs, write_cr2};
use super::state::SHADOW;
use crate::cpu::tables::TableRegister;
use crate::cpu::{msr, tsc};
use crate::virt::breakpoints::Breakpoints;
use crate::virt::page::{Page, get, put, refuse};
use crate::virt::{GuestCpu, HostState, Returned, RunArgs};
use core::ptr::NonNull;
use hypercall_abi::exit::EntryRule;
use hypercall_abi::vcpu::{Event, Groups, Interruptibility, RunFlags, VcpuPage};
use kcore::addr::PhysAddr;
use kcore::virt::vapic::Status;
use kcore::virt::vmx::checks::{EventContext, check_event};
use kcore::virt::vmx::controls::{primary, secondary};
use kcore::virt::vmx::exit::is_software_event;
use kcore::virt::vmx::fields;
use kcore::virt::vmx::syscall_msrs::SyscallMsrs;

bitflags::bitflags! {
    /// What has to be done before the next entry, beyond what every entry needs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Chores: u32 {
        /// Translations cached under the VPID must go.
        const FLUSH_VPID = 1 << 0;
        /// The pending debug exceptions may contradict the interruptibility.
        const PENDING_DEBUG = 1 << 1;
        /// The VM-entry interruption information is valid: there was no entry since it was written.
        const EVENT = 1 << 2;
        /// DR0 to DR3 in the CPU may not be the guest's, or it wants to access the debug registers.
        const BREAKPOINTS = 1 << 3;
        /// The primary controls are not what the VMM asks for.
        const CONTROLS = 1 << 4;
    }
}

/// What a run switches in the controls: the windows, and the virtual APIC.
const WINDOWS: RunFlags =
    RunFlags::INTERRUPT_WINDOW.union(RunFlags::NMI_WINDOW).union(RunFlags::VIRTUAL_APIC);

/// What the VMCS holds in fields that change often, so that equal values are not written again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Guest RIP.
    pub(super) rip: u64,
    /// Guest RFLAGS.
    pub(super) rflags: u64,
    /// Guest interruptibility state.
    pub(super) interruptibility: u32,
    /// Primary controls.
    primary: u32,
    /// The [`WINDOWS`] in them.
    windows: u32,
    /// The virtual APIC is switched on.
    pub(super) has_apic: bool,
    /// The preemption timer was set for this TSC.
    until: u64,
    /// Generation of the nested tables that was flushed last.
    nested_generation: u64,
    /// Host RSP.
    host_rsp: u64,
    /// Host CR3.
    host_cr3: u64,
}

/// What the kernel has on the vCPU's CPU, for [`GuestCpu::leave`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    /// MSRs that exits do not restore.
    pub(super) msrs: SyscallMsrs,
    /// Exits set its limit to FFFFH. They do so with IDTR, too, whose table has all the vectors that there are.
    pub(super) gdtr: TableRegister,
}

/// A virtual CPU on VMX.
#[derive(Debug)]
pub struct Vcpu {
    /// Frame of the VMCS.
    pub(super) vmcs: PhysAddr,
    /// Frame of the MSR bitmap.
    pub(super) msr_bitmap: PhysAddr,
    /// What the machine offers.
    pub(super) machine: Machine,
    /// Its VPID; without one every entry and exit flushes.
    pub(super) vpid: Option<u16>,
    /// Launch state of the VMCS.
    pub(super) is_launched: bool,
    /// Since a run, and until `leave`: the guest's SYSCALL MSRs are in the CPU.
    pub(super) is_loaded: bool,
    /// To be done before the next entry.
    pub(super) chores: Chores,
    /// Fields that the VMCS holds.
    pub(super) held: Held,
    /// Primary controls that the VMM asked for.
    pub(super) wanted_controls: u32,
    /// Exceptions that the VMM asked for.
    pub(super) wanted_exceptions: u32,
    /// CR0 read shadow.
    pub(super) shadow_cr0: u64,
    /// CR4 read shadow.
    pub(super) shadow_cr4: u64,
    /// The guest's MSRs; KERNEL_GS_BASE only while it is not loaded.
    pub(super) guest_msrs: SyscallMsrs,
    /// The kernel's values of what exits do not restore.
    pub(super) host: Host,
    /// DR0 to DR3.
    pub(super) breakpoints: Breakpoints,
    /// DR6, unless the guest may access the debug registers: then it is in the CPU.
    pub(super) dr6: u64,
    /// DR7. While the guest may access the debug registers it changes the VMCS's.
    pub(super) dr7: u64,
}

// SAFETY: `state` and `set_event` copy each value out of the page once, and check it before the hardware gets it; GPRs and
// CR2 take every value. Host state comes from `HostState` alone, and each exit lands in `entry`.
unsafe impl GuestCpu for Vcpu {
    const FRAMES: usize = 2;

    unsafe fn new(frames: &[PhysAddr], host: &HostState, nested_root: PhysAddr) -> Self {
        // SAFETY: by the contract of this function.
        unsafe { init::new_vcpu([frames[0], frames[1]], host, nested_root) }
    }

    unsafe fn take_over(&mut self) {
        // SAFETY: long mode has CSTAR; its value was checked. Nothing of the kernel's uses it.
        unsafe { msr::write(msr::CSTAR, self.guest_msrs.cstar) };
        tsc::set_aux(self.guest_msrs.tsc_aux as u32);
        self.host.msrs.lstar = crate::entry::syscall_entry();
        self.chores |= Chores::BREAKPOINTS;
    }

    #[inline(always)]
    unsafe fn run(
        &mut self,
        page: NonNull<VcpuPage>,
        args: &RunArgs,
        call: impl Fn(u16) -> Option<bool>,
    ) -> Returned {
        // SAFETY: the caller gives a valid page, on the CPU of the vCPU, so its VMCS is active nowhere else.
        let (page, vmcs) = unsafe { (Page::new(page), region::make_current(self.vmcs)) };
        if let Err(rule) = self.prepare(vmcs, page, args) {
            return refuse(page, rule, [0; 2]);
        }
        let cr2 = get!(page, cr2);
        // SAFETY: the guest's MSR values were accepted by the hardware or checked; `leave` puts back the kernel's. MOV to CR2
        // takes every value; the kernel reads CR2 only right after a page fault.
        unsafe {
            if !self.is_loaded {
                switch_syscall_msrs(&self.host.msrs, &self.guest_msrs);
                self.is_loaded = true;
            }
            if read_cr2() != cr2 {
                write_cr2(cr2);
            }
        }
        loop {
            if crate::CHECKERS
                && let Err(details) = self.check_entry(vmcs)
            {
                return refuse(page, EntryRule::Hardware, details);
            }
            // SAFETY: the VMCS is complete, and `is_launched` and `host_rsp` say what it holds.
            let status = unsafe { enter(page.as_ptr().cast(), self.is_launched, &mut self.held.host_rsp) };
            put!(page, read_cr2() => cr2);
            if crate::CHECKERS {
                self.check_exit(vmcs, status);
            }
            if status != entry::EXITED {
                return failed_instruction(vmcs, page, status);
            }
            if let Some(returned) = self.after_exit(vmcs, page, args.flags, &call) {
                return returned;
            }
        }
    }

    unsafe fn read(&mut self, page: NonNull<VcpuPage>, groups: Groups) {
        // SAFETY: by the contract of this function.
        let (page, vmcs) = unsafe { (Page::new(page), region::make_current(self.vmcs)) };
        self.fill(vmcs, page, groups);
        put!(page, get!(page, filled) | groups.bits() => filled);
    }

    unsafe fn code_root(&mut self) -> Option<u64> {
        // SAFETY: by the contract of this function.
        self.root_of_code(unsafe { region::make_current(self.vmcs) })
    }

    fn virtualizes_apic(&self) -> bool {
        self.machine.controls.virtualizes_apic
    }

    unsafe fn interrupt_status(&mut self) -> Status {
        // SAFETY: by the contract of this function.
        apic::status(unsafe { region::make_current(self.vmcs) })
    }

    unsafe fn set_interrupt_status(&mut self, status: Status) {
        // SAFETY: by the contract of this function.
        apic::set_status(unsafe { region::make_current(self.vmcs) }, status);
    }

    unsafe fn set_virtual_apic(&mut self, page: PhysAddr, eoi_exits: [u64; 4]) {
        // SAFETY: by the contract of this function.
        apic::set_page(unsafe { region::make_current(self.vmcs) }, page, eoi_exits);
    }

    #[inline(always)]
    unsafe fn leave(&mut self) {
        if !self.is_loaded {
            return;
        }
        // SAFETY: the values are the kernel's own, the table that of its boot, for ever.
        unsafe {
            // SWAPGS changes it without an exit.
            self.guest_msrs.kernel_gs_base = msr::read(msr::KERNEL_GS_BASE);
            switch_syscall_msrs(&self.guest_msrs, &self.host.msrs);
            // With the limit that the exit left, user code could load selectors of what lies behind the GDT.
            self.host.gdtr.load_gdt();
        }
        self.is_loaded = false;
        if self.breakpoints.is_open() {
            self.close_breakpoints();
        }
    }

    unsafe fn destroy(&mut self) {
        // SAFETY: this is the CPU of the vCPU, the only one where its VMCS can be active.
        unsafe { region::clear(self.vmcs) };
        self.is_launched = false;
        // Whoever gets the VPID next flushes it on its own CPU before its first entry.
        if let Some(vpid) = self.vpid.take() {
            crate::flush_checker::end(vpid as u64, self.vmcs.0);
            VPIDS.give(vpid);
        }
    }
}

impl Vcpu {
    /// Whether TSC_AUX is there, and switched: RDTSCP and RDPID are on together with it.
    pub(super) fn has_tsc_aux(&self) -> bool {
        self.machine.controls.has_secondary(secondary::RDTSCP)
    }

    /// Everything before the entry. Most entries change RIP and nothing else: each of the conditions for that is tested, and
    /// whatever else there may be to do is done out of line. It gets parts of `args`, so that those stay in registers.
    #[inline(always)]
    fn prepare(&mut self, vmcs: CurrentVmcs, page: Page, args: &RunArgs) -> Result<(), EntryRule> {
        let event = get!(page, inject);
        let windows = args.flags.intersection(WINDOWS).bits();
        let others = args.dirty.difference(Groups::RIP).bits();
        if others | self.chores.bits() | (windows ^ self.held.windows) | event.0 as u32 >> 31 != 0 {
            self.prepare_more(vmcs, page, args.dirty, args.flags, event)?;
        } else if !args.dirty.is_empty() {
            self.take_rip(vmcs, page)?;
        }
        if !args.dirty.is_empty() {
            put!(page, Groups::empty().bits() => dirty);
        }
        if self.held.nested_generation != args.nested_generation {
            self.flush_nested(args.nested_generation);
        }
        if self.held.host_cr3 != args.host_cr3 {
            vmcs.write(fields::HOST_CR3, args.host_cr3);
            self.held.host_cr3 = args.host_cr3;
        }
        if self.held.until != args.until {
            self.set_timer(vmcs, args.now, args.until);
        }
        Ok(())
    }

    #[inline(never)]
    fn prepare_more(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        dirty: Groups,
        flags: RunFlags,
        event: Event,
    ) -> Result<(), EntryRule> {
        self.take_groups(vmcs, page, dirty)?;
        self.set_event(vmcs, page, event)?;
        let chores = self.chores;
        self.chores &= Chores::EVENT;
        if chores.contains(Chores::BREAKPOINTS) && self.breakpoints.load(self.dr7) {
            self.switch_in_dr6();
        }
        if chores.contains(Chores::PENDING_DEBUG) {
            self.fix_pending_debug(vmcs);
        }
        if chores.contains(Chores::FLUSH_VPID)
            && let Some(vpid) = self.vpid
        {
            // SAFETY: VMX is on, and VPIDs are used only where single-context INVVPID is.
            let flushed = unsafe { invvpid_single(vpid) };
            debug_assert!(flushed.is_ok(), "INVVPID {vpid}");
        }
        self.set_controls(vmcs, flags.intersection(WINDOWS));
        Ok(())
    }

    /// Sets the preemption timer, which counts from its value at every entry. It ends the timeslice, and Bochs 2.7 keeps host
    /// interrupts from ending the run of a guest that was entered with IF clear. Hardware has the local APIC's timer for that,
    /// armed for the same time: so it does no harm that a guest that exits often gets the time of the slice's first entry again.
    #[inline(never)]
    fn set_timer(&mut self, vmcs: CurrentVmcs, now: u64, until: u64) {
        let ticks = until.saturating_sub(now);
        vmcs.write(fields::PREEMPTION_TIMER, self.machine.controls.timer_value(ticks));
        self.held.until = until;
    }

    /// Drops what the CPU has cached of older nested tables (SDM 3C 28.3.3.4). The first run flushes, too: the root's frame may
    /// have been another space's.
    #[inline(never)]
    fn flush_nested(&mut self, generation: u64) {
        // SAFETY: the VMCS is current.
        let pointer = unsafe { CurrentVmcs::assume() }.read(fields::EPT_POINTER);
        let what = if self.machine.controls.has_single_context_invept {
            InvEpt::Single(pointer)
        } else {
            InvEpt::All
        };
        // SAFETY: VMX is on, and the machine has this type.
        let flushed = unsafe { invept(what) };
        debug_assert!(flushed.is_ok(), "INVEPT {what:?}");
        self.held.nested_generation = generation;
    }

    /// Hands the event of the page to the entry. An entry that fails leaves it in the VMCS.
    fn set_event(&mut self, vmcs: CurrentVmcs, page: Page, event: Event) -> Result<(), EntryRule> {
        if !event.is_valid() {
            if self.chores.contains(Chores::EVENT) {
                vmcs.write(fields::ENTRY_INTERRUPTION_INFO, 0);
                self.chores -= Chores::EVENT;
            }
            return Ok(());
        }
        let is_software = is_software_event(event.kind());
        let context = EventContext {
            rflags: self.held.rflags,
            interruptibility: Interruptibility::from_bits_truncate(self.held.interruptibility),
            is_protected: event.kind() == Event::EXCEPTION && self.is_protected(vmcs),
            length: if is_software { get!(page, inject_length) } else { 0 },
            can_inject_length_0: self.machine.controls.can_inject_length_0,
        };
        check_event(event, &context)?;
        vmcs.write(fields::ENTRY_INTERRUPTION_INFO, event.0 as u32);
        if let Some(code) = event.error_code() {
            vmcs.write(fields::ENTRY_ERROR_CODE, code);
        }
        if is_software {
            vmcs.write(fields::ENTRY_INSTRUCTION_LENGTH, context.length);
        }
        self.chores |= Chores::EVENT;
        Ok(())
    }

    /// In a shadow of STI or MOV SS, a single-step trap is pending exactly if TF is set and BTF is not (SDM 3C
    /// 26.3.1.5). Exits on #DB do not leave it so, nor does a VMM that moves a guest on while it is single-stepped; that
    /// VMM injects the trap itself.
    fn fix_pending_debug(&mut self, vmcs: CurrentVmcs) {
        let is_in_shadow = self.held.interruptibility & SHADOW != 0;
        let is_pending = is_in_shadow && self.single_steps(vmcs);
        vmcs.write(fields::GUEST_PENDING_DEBUG, if is_pending { SINGLE_STEP } else { 0 });
    }

    /// The primary controls: what always is, what the VMM asked for, and what this run needs.
    fn set_controls(&mut self, vmcs: CurrentVmcs, windows: RunFlags) {
        let mut controls = self.machine.controls.primary | self.wanted_controls;
        if !self.breakpoints.is_open() {
            controls |= primary::MOV_DR_EXITING;
        }
        if windows.contains(RunFlags::INTERRUPT_WINDOW) {
            controls |= primary::INTERRUPT_WINDOW_EXITING;
        }
        if windows.contains(RunFlags::NMI_WINDOW) {
            controls |= primary::NMI_WINDOW_EXITING;
        }
        let has_apic = windows.contains(RunFlags::VIRTUAL_APIC) && self.machine.controls.virtualizes_apic;
        if has_apic {
            controls |= primary::TPR_SHADOW;
        }
        if has_apic != self.held.has_apic {
            self.switch_apic(vmcs, has_apic);
        }
        if controls != self.held.primary {
            vmcs.write(fields::PRIMARY_CONTROLS, controls);
            self.held.primary = controls;
        }
        self.held.windows = windows.bits();
    }

    /// The guest may not access the debug registers any more.
    #[cold]
    fn close_breakpoints(&mut self) {
        self.breakpoints.close();
        self.dr6 = read_dr6();
        // SAFETY: the VMCS is current as long as the vCPU is loaded.
        self.set_dr7(unsafe { CurrentVmcs::assume() }.read(fields::GUEST_DR7));
    }
}
