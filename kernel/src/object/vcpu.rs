//! Virtual CPUs: passive objects that a VMM thread runs (ADR 0001).
//!
//! The way of a run: `VcpuRun` calls [`Vcpu::run`], which enters the guest until an exit is one for the VMM, the context has to
//! wait (HLT), or another context should run. In the latter cases the context is attached to the vCPU, and the scheduler goes on
//! with [`Vcpu::resume`].

use super::ec::{Ec, WaitResult};
use super::guest_space::GuestSpace;
use super::instruction::LastPage;
use super::pool::Pool;
use super::signal::Signal;
use super::vapic::VirtualApic;
use super::{Header, Linked, ListLink, Object};
use crate::cap::BoundList;
use crate::cpu::{self, Attention, Local};
use crate::{sched, trace};
use core::cell::{Cell, UnsafeCell};
use core::ptr::{NonNull, addr_of_mut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hypercall_abi::exit::{EntryRule, ExitKind};
use hypercall_abi::trace::Kind;
use hypercall_abi::vcpu::{ACTIVITY_HALTED, FIRST_LINE, FpuOperation, Groups, RunFlags, VcpuPage};
use hypercall_abi::{ObjectType, Status};
use kcore::addr::PhysAddr;
use kcore::sync::halt::{Halted, Kick};
use kcore::virt::xcr0;
use khw::cpu::{fpu, tsc};
use khw::mem::phys_to_virt;
use khw::virt::{Backend, GuestCpu, Returned, RunArgs};

/// A virtual CPU.
#[repr(C)]
#[derive(Debug)]
pub struct Vcpu {
    header: Header,
    /// The guest's memory.
    pub space: &'static GuestSpace,
    /// The pool that paid for the frames below.
    pub pool: &'static Pool,
    /// Its CPU.
    pub cpu: u16,
    /// Link of the space's list. Under the tree lock.
    pub of_space: ListLink,
    /// Frame of the page shared with the VMM; 0 for none, `ENDED` at the end of the vCPU. Written under the tree lock.
    pub page: AtomicU64,
    /// Notification that makes runs return. Written under the tree lock.
    pub signal: Cell<Option<&'static Signal>>,
    poked: AtomicBool,
    /// Its runner waits for an event.
    halted: Halted,
    /// The context whose run is suspended: it waits, or another one runs. Its CPU writes it.
    pub runner: Cell<Option<&'static Ec>>,
    /// Save area of the FPU.
    pub fpu_area: PhysAddr,
    /// Frames of the hardware state.
    pub frames: Frames,
    /// The memory capability of its page. Under the tree lock.
    pub bound: BoundList,
    /// Interrupts that come without the VMM.
    pub apic: VirtualApic,
    /// Where the guest's code was last read.
    pub(super) last_page: LastPage,
    backend: UnsafeCell<Backend>,
}

/// Frames of a vCPU's hardware state.
pub type Frames = [PhysAddr; Backend::FRAMES];

/// [`Vcpu::page`] of a vCPU that is being destroyed: no frame, as frames are aligned.
const ENDED: u64 = 1;

/// List of a space's vCPUs.
#[derive(Debug)]
pub enum OfSpace {}
// SAFETY: always the same field.
unsafe impl Linked<OfSpace> for Vcpu {
    fn link(&self) -> &ListLink {
        &self.of_space
    }
}

// SAFETY: each field says who touches it; `backend` is touched by the vCPU's CPU only.
unsafe impl Sync for Vcpu {}
// SAFETY: first field is the header.
unsafe impl Object for Vcpu {
    const KIND: ObjectType = ObjectType::Vcpu;
}

/// What came of a run, as the registers have it that the hypercall returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The status, or [`Next::RESCHEDULE`]'s.
    pub status: u64,
    /// The kind of the exit.
    pub exit_kind: u64,
}

impl Next {
    /// Somebody else should run. The context is queued, blocked, or must be queued, and attached to the vCPU.
    pub const RESCHEDULE: Next = Next { status: u64::MAX, exit_kind: 0 };

    /// The call is complete.
    pub const fn complete(status: Status, exit_kind: u32) -> Next {
        Next { status: status as u64, exit_kind: exit_kind as u64 }
    }
}

impl Vcpu {
    /// A vCPU of `space` on this CPU. `frames` and `fpu_area` are zeroed frames of `pool`.
    pub fn new(
        header: Header,
        space: &'static GuestSpace,
        pool: &'static Pool,
        frames: Frames,
        fpu_area: PhysAddr,
    ) -> Self {
        // SAFETY: the frame is ours and zeroed.
        unsafe { fpu::init_area(fpu_area) };
        // SAFETY: the frames are ours until `destroy`; virtualization was enabled on this CPU at boot.
        let backend = unsafe { Backend::new(&frames, &cpu::local().host_state(), space.root) };
        Vcpu {
            header,
            space,
            pool,
            cpu: khw::percpu::id() as u16,
            of_space: ListLink::new(),
            page: AtomicU64::new(0),
            signal: Cell::new(None),
            poked: AtomicBool::new(false),
            halted: Halted::new(),
            runner: Cell::new(None),
            fpu_area,
            frames,
            bound: BoundList::new(),
            apic: VirtualApic::new(),
            last_page: LastPage::default(),
            backend: UnsafeCell::new(backend),
        }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    #[expect(clippy::mut_from_ref, reason = "only the vCPU's CPU calls this, never nested")]
    pub(super) fn backend(&self) -> &mut Backend {
        // SAFETY: by the rule above there is one reference at a time.
        unsafe { &mut *self.backend.get() }
    }

    /// The page, or why there is none.
    #[inline]
    fn page(&self) -> Result<NonNull<VcpuPage>, Status> {
        let frame = self.page.load(Ordering::Acquire);
        if frame > ENDED {
            // SAFETY: the direct map does not begin at 0.
            return Ok(unsafe { NonNull::new_unchecked(phys_to_virt(PhysAddr(frame)).cast()) });
        }
        Err(if frame == ENDED { Status::Aborted } else { Status::Unbound })
    }

    /// Its page is unbound, maybe because the vCPU ends: a run in progress ends too. Under the tree lock.
    pub fn lose_page(&self, is_ending: bool) {
        self.page.store(if is_ending { ENDED } else { 0 }, Ordering::Release);
        self.kick();
    }

    /// Makes the current or the next run return.
    pub fn poke(&self) {
        self.poked.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Makes the run look at its reasons to return ([`Halted::kick`]).
    pub fn kick(&self) {
        match self.halted.kick() {
            Kick::Wake => {
                if let Some(ec) = self.runner.get() {
                    sched::wake(ec, WaitResult::Kicked);
                }
            }
            Kick::Interrupt if self.cpu as usize != khw::percpu::id() => {
                sched::interrupt(self.cpu as usize);
            }
            _ => {}
        }
    }

    /// Whether a run is suspended.
    #[inline]
    pub fn is_busy(&self) -> bool {
        self.runner.get().is_some()
    }

    /// Suspends the run of `ec`: the scheduler will resume it.
    fn attach(&'static self, ec: &'static Ec) {
        self.runner.set(Some(ec));
        ec.vcpu.set(Some(self));
    }

    /// Ends a suspended run with a status.
    pub fn detach(&self, ec: &'static Ec, status: Status) {
        self.take_off(ec);
        (ec.frame().rax, ec.frame().rdi) = (status as u64, 0);
    }

    fn take_off(&self, ec: &'static Ec) {
        self.halted.clear();
        self.runner.set(None);
        ec.vcpu.set(None);
    }

    /// Goes on with the suspended run of `ec`. Says whether its call is complete now.
    pub fn resume(&'static self, ec: &'static Ec) -> bool {
        self.take_off(ec);
        let next = self.run(ec);
        if next == Next::RESCHEDULE {
            return false;
        }
        (ec.frame().rax, ec.frame().rdi) = (next.status, next.exit_kind);
        true
    }

    /// Runs the guest on behalf of `ec`: enters it, and again as long as the kernel answers its exits.
    #[inline(never)]
    pub fn run(&'static self, ec: &'static Ec) -> Next {
        let local = cpu::local();
        let next = loop {
            if let Some(next) = self.enter_guest(ec, local) {
                break next;
            }
        };
        // SAFETY: this is the vCPU's CPU (checked at the call), and interrupts are off.
        unsafe { self.backend().leave() };
        local.tr_is_short.set(true);
        if next == Next::RESCHEDULE {
            self.attach(ec);
            local.attention.add(Attention::SWITCH);
        }
        next
    }

    /// Enters the guest once; `None` if it is to go on.
    #[inline(always)]
    fn enter_guest(&'static self, ec: &'static Ec, local: &'static Local) -> Option<Next> {
        let page = match self.page() {
            Ok(page) => page,
            Err(status) => return Some(Next::complete(status, 0)),
        };
        if let Some(kind) = self.reason_to_return(page) {
            return Some(self.finish(page, kind));
        }
        let p = page.as_ptr();
        // SAFETY: as in `finish`; each word is read once.
        let (deadline, activity, dirty, flags) = unsafe {
            (
                addr_of_mut!((*p).deadline).read_volatile(),
                addr_of_mut!((*p).activity).read_volatile(),
                addr_of_mut!((*p).dirty).read_volatile(),
                addr_of_mut!((*p).run_flags).read_volatile(),
            )
        };
        let now = tsc::read();
        if now >= deadline {
            return Some(self.finish(page, ExitKind::Deadline));
        }
        let mut dirty = Groups::from_bits_truncate(dirty);
        let asked = RunFlags::from_bits_retain(flags);
        let flags = if asked.contains(RunFlags::VIRTUAL_APIC) {
            self.take_interrupts(page, asked, &mut dirty)
        } else {
            asked
        };
        if activity == ACTIVITY_HALTED && self.may_halt(page, flags) {
            return self.halt(ec, deadline, flags).then_some(Next::RESCHEDULE);
        }
        if dirty.contains(Groups::XCR0) && !self.take_xcr0(page, &mut dirty) {
            return Some(self.entry_failure(page, EntryRule::Msr));
        }
        let until = deadline.min(local.slice_end.get());
        sched::arm(local, until);
        let args = RunArgs {
            dirty,
            flags,
            nested_generation: self.space.generation(),
            host_cr3: ec.pd.root.0,
            now,
            until,
        };
        let backend = self.backend();
        // SAFETY: the area is initialized and ours; this is the vCPU's CPU, interrupts are off, and every way to anybody
        // else leads through `run`, which leaves.
        let returned = unsafe {
            if fpu::switch_to(self.fpu_area) {
                backend.take_over();
            }
            backend.run(page, &args, |index| self.rings_call(local, index))
        };
        let mut answered = 0;
        match returned {
            Returned::Exit(kind) => {
                if let Some(kind) = self.for_vmm(page, kind, asked) {
                    return Some(Next::complete(Status::Success, kind));
                }
                // What the kernel answers in the VMM's place goes on from here.
                answered = kind;
                khw::cpu::interrupt_window();
            }
            Returned::HostInterrupt => khw::cpu::interrupt_window(),
            Returned::HostNmi => crate::trap::host_nmi(),
            Returned::HostMachineCheck => crate::epitaph::machine_check(),
            Returned::Timer => sched::timer_expired(local),
            Returned::Halted => {}
        }
        if !local.attention.is_none() {
            if local.attention.has(Attention::SWITCH) {
                return Some(Next::RESCHEDULE);
            }
            trace::record(local, Kind::Enter, answered, Some(ec));
        }
        sched::is_stopped(local).then_some(Next::RESCHEDULE)
    }

    /// Answers an exit in the VMM's place; otherwise, or after it, the kind of the exit for the VMM. `flags` are the VMM's.
    #[inline(always)]
    fn for_vmm(&self, page: NonNull<VcpuPage>, kind: u32, flags: RunFlags) -> Option<u32> {
        const PORT_IO: u32 = ExitKind::PortIo as u32;
        const HYPERCALL: u32 = ExitKind::Hypercall as u32;
        const NESTED_FAULT: u32 = ExitKind::NestedFault as u32;
        const HLT: u32 = ExitKind::Hlt as u32;
        const MSR_WRITE: u32 = ExitKind::MsrWrite as u32;
        const INTERRUPT_WINDOW: u32 = ExitKind::InterruptWindow as u32;
        let is_answered = match kind {
            PORT_IO => self.rings_port(page),
            HYPERCALL => self.rings_hypercall(page),
            NESTED_FAULT => self.rings_page(page),
            HLT => flags.contains(RunFlags::HLT_BLOCKS) && self.halts_behind(page),
            MSR_WRITE if flags.contains(RunFlags::VIRTUAL_APIC) => return self.write_apic(page),
            // The kernel's own.
            INTERRUPT_WINDOW => {
                flags.contains(RunFlags::VIRTUAL_APIC) && !flags.contains(RunFlags::INTERRUPT_WINDOW)
            }
            _ => false,
        };
        (!is_answered).then_some(kind)
    }

    /// Completes the call without entering the guest.
    #[cold]
    fn finish(&self, page: NonNull<VcpuPage>, kind: ExitKind) -> Next {
        // SAFETY: the page is bound: its frame stays until a grace period after it is unbound. Only plain words are
        // read and written, which the VMM may change at any time.
        unsafe {
            let page_ptr = page.as_ptr();
            addr_of_mut!((*page_ptr).exit_kind).write_volatile(kind as u32);
            // What the VMM changed and the kernel has not taken yet stays.
            let dirty = addr_of_mut!((*page_ptr).dirty).read_volatile();
            let want = Groups::from_bits_truncate(addr_of_mut!((*page_ptr).want).read_volatile() & !dirty);
            if !want.is_empty() && kind != ExitKind::EntryFailure {
                self.backend().read(page, want);
            }
        }
        Next::complete(Status::Success, kind as u32)
    }

    #[inline]
    fn reason_to_return(&self, page: NonNull<VcpuPage>) -> Option<ExitKind> {
        // The swap is a locked operation: only if there is something.
        if self.poked.load(Ordering::SeqCst) && self.poked.swap(false, Ordering::SeqCst) {
            return Some(ExitKind::Poked);
        }
        let mut bits = self.signal.get()?.try_take()?;
        if bits >> FIRST_LINE != 0 {
            bits = self.raise_lines(page, bits);
            if bits == 0 {
                return None;
            }
        }
        // SAFETY: as in `finish`.
        unsafe { addr_of_mut!((*page.as_ptr()).notified).write_volatile(bits) };
        Some(ExitKind::Notified)
    }

    /// Whether a guest that halted has no event to be woken by.
    fn may_halt(&self, page: NonNull<VcpuPage>, flags: RunFlags) -> bool {
        // SAFETY: as in `finish`.
        let is_injected = unsafe { addr_of_mut!((*page.as_ptr()).inject).read_volatile().is_valid() };
        !(is_injected || flags.contains(RunFlags::VIRTUAL_APIC) && self.has_interrupt_in_hardware(page))
    }

    /// Blocks `ec` until an event; false if one is there already.
    fn halt(&'static self, ec: &'static Ec, deadline: u64, flags: RunFlags) -> bool {
        self.attach(ec);
        sched::block(ec, deadline);
        let halts = self.halted.halt(|| {
            self.poked.load(Ordering::SeqCst)
                || self.signal.get().is_some_and(Signal::has_value)
                || self.is_interrupted(flags)
        });
        if !halts {
            sched::unblock_current(ec);
            self.take_off(ec);
        }
        halts
    }

    #[cold]
    fn take_xcr0(&self, page: NonNull<VcpuPage>, dirty: &mut Groups) -> bool {
        let p = page.as_ptr();
        let supported = fpu::guest_xcr0();
        // Without XSAVE there is none.
        if supported != 0 {
            // SAFETY: as in `finish`. The area is ours, and the value is one that the CPU takes.
            unsafe {
                let xcr0 = addr_of_mut!((*p).xcr0).read_volatile();
                if xcr0::check(xcr0, supported).is_err() {
                    return false;
                }
                fpu::set_xcr0_of(self.fpu_area, xcr0);
            }
        }
        *dirty -= Groups::XCR0;
        // SAFETY: as in `finish`.
        unsafe { addr_of_mut!((*p).dirty).write_volatile(dirty.bits()) };
        true
    }

    fn entry_failure(&self, page: NonNull<VcpuPage>, rule: EntryRule) -> Next {
        let p = page.as_ptr();
        // SAFETY: as in `finish`.
        unsafe {
            addr_of_mut!((*p).exit_info[0]).write_volatile(rule as u64);
            addr_of_mut!((*p).exit_info[1]).write_volatile(0);
            addr_of_mut!((*p).filled).write_volatile(0);
        }
        self.finish(page, ExitKind::EntryFailure)
    }

    /// Fills groups of the page. On its CPU, while nobody runs it.
    pub fn read(&self, groups: Groups) -> Result<(), Status> {
        let page = self.page()?;
        if self.is_busy() {
            return Err(Status::Busy);
        }
        // SAFETY: on the vCPU's CPU, and no run is in progress.
        unsafe { self.backend().read(page, groups) };
        if groups.contains(Groups::XCR0) {
            // SAFETY: as in `finish`; the area is ours.
            unsafe { addr_of_mut!((*page.as_ptr()).xcr0).write_volatile(fpu::xcr0_of(self.fpu_area)) };
        }
        if groups.contains(Groups::APIC) {
            self.collect_interrupts();
        }
        Ok(())
    }

    /// Moves the FPU state to or from a page, or resets it. On its CPU, while nobody runs it.
    pub fn move_fpu(&self, operation: FpuOperation, page: PhysAddr) -> Result<(), Status> {
        if self.is_busy() {
            return Err(Status::Busy);
        }
        fpu::put_back(self.fpu_area);
        // SAFETY: the area is ours and not in the registers; the page is RAM of a capability that was looked up just now.
        unsafe {
            match operation {
                FpuOperation::Read => fpu::copy_to(self.fpu_area, page),
                FpuOperation::Write if !fpu::copy_from(self.fpu_area, page) => {
                    return Err(Status::BadArgument);
                }
                FpuOperation::Write => {}
                FpuOperation::Reset => {
                    khw::mem::zero_frame(self.fpu_area);
                    fpu::init_area(self.fpu_area);
                }
            }
        }
        Ok(())
    }

    /// Takes everything out of the CPU. On its CPU, while nobody runs it.
    pub fn clear_hardware(&self) {
        fpu::put_back(self.fpu_area);
        // SAFETY: on the vCPU's CPU, no run is in progress, and it is never used again.
        unsafe { self.backend().destroy() };
    }
}
