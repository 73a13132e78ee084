//! Virtual CPUs: passive objects that a VMM thread runs (ADR 0001).
//!
//! The way of a run: `VcpuRun` attaches the calling context, [`Vcpu::run`] enters the guest until an exit is one for the VMM, the
//! context has to wait (HLT), or another context should run; then the scheduler comes back to [`Vcpu::run`].

use super::ec::{Ec, State, WaitResult};
use super::guest_space::GuestSpace;
use super::pool::Pool;
use super::signal::Signal;
use super::{Header, Linked, ListLink, Object};
use crate::cap::BoundList;
use crate::{cpu, sched};
use core::cell::{Cell, UnsafeCell};
use core::ptr::{NonNull, addr_of_mut};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use hypercall_abi::exit::{EntryRule, ExitKind};
use hypercall_abi::vcpu::{ACTIVITY_HALTED, Groups, VcpuPage};
use hypercall_abi::{ObjectType, Status};
use kcore::addr::PhysAddr;
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
    phase: AtomicU8,
    /// The context that runs it. Touched by its CPU only.
    pub runner: Cell<Option<&'static Ec>>,
    xcr0: Cell<u64>,
    /// Save area of the FPU.
    pub fpu_area: PhysAddr,
    /// Frames of the hardware state.
    pub frames: Frames,
    /// The memory capability of its page. Under the tree lock.
    pub bound: BoundList,
    backend: UnsafeCell<Backend>,
}

/// Frames of a vCPU's hardware state.
pub type Frames = [PhysAddr; Backend::FRAMES];

/// [`Vcpu::page`] of a vCPU that is being destroyed: no frame, as frames are aligned.
const ENDED: u64 = 1;

/// Nobody runs it.
const PHASE_OFF: u8 = 0;
/// Its CPU is in, or about to be in, the guest.
const PHASE_RUNNING: u8 = 1;
/// Its runner waits for an event.
const PHASE_HALTED: u8 = 2;

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

/// What the scheduler does after [`Vcpu::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The call is complete: its context goes on in user mode.
    Complete,
    /// Somebody else should run; the context is queued or blocked already, or must be queued.
    Reschedule,
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
        let backend = unsafe { Backend::new(&frames, &cpu::local().host_state()) };
        Vcpu {
            header,
            space,
            pool,
            cpu: khw::percpu::id() as u16,
            of_space: ListLink::new(),
            page: AtomicU64::new(0),
            signal: Cell::new(None),
            poked: AtomicBool::new(false),
            phase: AtomicU8::new(PHASE_OFF),
            runner: Cell::new(None),
            xcr0: Cell::new(1),
            fpu_area,
            frames,
            bound: BoundList::new(),
            backend: UnsafeCell::new(backend),
        }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    #[expect(clippy::mut_from_ref, reason = "only the vCPU's CPU calls this, never nested")]
    fn backend(&self) -> &mut Backend {
        // SAFETY: by the rule above there is one reference at a time.
        unsafe { &mut *self.backend.get() }
    }

    /// The page, or why there is none.
    fn page(&self) -> Result<NonNull<VcpuPage>, Status> {
        match self.page.load(Ordering::Acquire) {
            ENDED => Err(Status::Aborted),
            0 => Err(Status::Unbound),
            frame => NonNull::new(phys_to_virt(PhysAddr(frame)).cast()).ok_or(Status::Unbound),
        }
    }

    /// Its page is unbound, maybe because the vCPU ends: a run in progress ends too. Under the tree lock.
    pub fn lose_page(&self) {
        let is_ending = self.header.root_slot.get() == 0;
        self.page
            .store(if is_ending { ENDED } else { 0 }, Ordering::Release);
        self.kick();
    }

    /// Makes the current or the next run return.
    pub fn poke(&self) {
        self.poked.store(true, Ordering::SeqCst);
        self.kick();
    }

    /// Makes the run look at its reasons to return.
    pub fn kick(&self) {
        match self.phase.load(Ordering::SeqCst) {
            PHASE_HALTED => {
                let was = self.phase.compare_exchange(
                    PHASE_HALTED,
                    PHASE_RUNNING,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                if let (Ok(_), Some(ec)) = (was, self.runner.get()) {
                    sched::wake(ec, WaitResult::Look);
                }
            }
            PHASE_RUNNING if self.cpu as usize != khw::percpu::id() => sched::interrupt(self.cpu as usize),
            _ => {}
        }
    }

    /// Attaches `ec`, whose `VcpuRun` this is.
    pub fn attach(&'static self, ec: &'static Ec) -> Result<(), Status> {
        if self.runner.get().is_some() {
            return Err(Status::Busy);
        }
        self.page()?;
        self.runner.set(Some(ec));
        self.phase.store(PHASE_RUNNING, Ordering::SeqCst);
        ec.vcpu.set(Some(self));
        Ok(())
    }

    /// Ends the run of `ec` with a status.
    pub fn detach(&self, ec: &'static Ec, status: Status, kind: u32) {
        self.phase.store(PHASE_OFF, Ordering::SeqCst);
        self.runner.set(None);
        ec.vcpu.set(None);
        let frame = ec.frame();
        frame.rax = status as u64;
        frame.rdi = kind as u64;
    }

    fn finish(&self, ec: &'static Ec, page: NonNull<VcpuPage>, kind: ExitKind) -> Next {
        // SAFETY: the page is bound: its frame stays until a grace period after it is unbound. Only plain words are
        // read and written, which the VMM may change at any time. The vCPU is not loaded.
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
        self.detach(ec, Status::Success, kind as u32);
        Next::Complete
    }

    /// Runs the guest on behalf of `ec`.
    pub fn run(&'static self, ec: &'static Ec) -> Next {
        loop {
            let page = match self.page() {
                Ok(page) => page,
                Err(status) => {
                    self.detach(ec, status, 0);
                    return Next::Complete;
                }
            };
            if let Some(kind) = self.reason_to_return(page) {
                return self.finish(ec, page, kind);
            }
            let p = page.as_ptr();
            // SAFETY: as in `finish`; each word is read once.
            let (deadline, activity, inject) = unsafe {
                (
                    addr_of_mut!((*p).deadline).read_volatile(),
                    addr_of_mut!((*p).activity).read_volatile(),
                    addr_of_mut!((*p).inject).read_volatile(),
                )
            };
            let now = tsc::read();
            if now >= deadline {
                return self.finish(ec, page, ExitKind::Deadline);
            }
            if activity == ACTIVITY_HALTED && !inject.is_valid() {
                if self.halt(ec, deadline) {
                    return Next::Reschedule;
                }
                continue;
            }
            if !self.take_xcr0(page) {
                return self.entry_failure(ec, page, EntryRule::Msr);
            }
            let local = cpu::local();
            let slice_end = sched::slice_end(local);
            // SAFETY: the area is initialized and ours; `take_xcr0` validated the value.
            unsafe { fpu::switch_to(self.fpu_area, self.xcr0.get()) };
            let args = RunArgs {
                nested_root: self.space.root,
                nested_generation: self.space.generation(),
                host_cr3: ec.pd.root.0,
                budget_ticks: deadline.min(slice_end).saturating_sub(now),
            };
            sched::arm(local, deadline.min(slice_end));
            // SAFETY: this is the vCPU's CPU (checked at the call), interrupts are off, and no other vCPU is loaded: every
            // way out of here unloads.
            let returned = unsafe {
                let backend = self.backend();
                backend.load(page);
                let returned = backend.run(page, &args);
                backend.unload();
                returned
            };
            if let Some(xcr0) = fpu::xcr0_of_guest() {
                self.xcr0.set(xcr0);
            }
            if khw::virt::exits_shorten_tr() {
                local.tr_is_short.set(true);
            }
            match returned {
                Returned::Exit => {
                    // SAFETY: as in `finish`.
                    let kind = unsafe { addr_of_mut!((*p).exit_kind).read_volatile() };
                    self.detach(ec, Status::Success, kind);
                    return Next::Complete;
                }
                Returned::HostInterrupt => khw::cpu::interrupt_window(),
                Returned::HostNmi => crate::trap::host_nmi(),
                Returned::HostMachineCheck => crate::epitaph::machine_check(),
                Returned::Timer => sched::timer_expired(local),
                Returned::Halted => {}
            }
            if sched::should_switch(local) {
                return Next::Reschedule;
            }
        }
    }

    fn reason_to_return(&self, page: NonNull<VcpuPage>) -> Option<ExitKind> {
        // The swap is a locked operation: only if there is something.
        if self.poked.load(Ordering::SeqCst) && self.poked.swap(false, Ordering::SeqCst) {
            return Some(ExitKind::Poked);
        }
        let bits = self.signal.get()?.try_take()?;
        // SAFETY: as in `finish`.
        unsafe { addr_of_mut!((*page.as_ptr()).notified).write_volatile(bits) };
        Some(ExitKind::Notified)
    }

    /// Blocks `ec` until an event; false if one is there already.
    fn halt(&'static self, ec: &'static Ec, deadline: u64) -> bool {
        ec.state.set(State::Blocked);
        sched::block(ec, deadline);
        self.phase.store(PHASE_HALTED, Ordering::SeqCst);
        // Whoever set a reason before the phase did not kick: look again. The winner of the exchange decides.
        let has_reason =
            self.poked.load(Ordering::SeqCst) || self.signal.get().is_some_and(Signal::has_value);
        if has_reason
            && self
                .phase
                .compare_exchange(PHASE_HALTED, PHASE_RUNNING, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        {
            sched::unblock_current(ec);
            return false;
        }
        true
    }

    /// The scheduler woke the runner for another reason than a kick (deadline).
    pub fn resume(&self) {
        self.phase.store(PHASE_RUNNING, Ordering::SeqCst);
    }

    fn take_xcr0(&self, page: NonNull<VcpuPage>) -> bool {
        let p = page.as_ptr();
        // SAFETY: as in `finish`.
        let dirty = unsafe { addr_of_mut!((*p).dirty).read_volatile() };
        if dirty & Groups::XCR0.bits() == 0 {
            return true;
        }
        // SAFETY: as in `finish`.
        let xcr0 = unsafe { addr_of_mut!((*p).xcr0).read_volatile() };
        let host = fpu::guest_xcr0();
        // SDM 1 13.3: x87 always; AVX needs SSE; AVX-512 needs its three components and AVX.
        let is_valid = xcr0 & !host == 0
            && xcr0 & 1 != 0
            && (xcr0 & 4 == 0 || xcr0 & 2 != 0)
            && (xcr0 & 0xe0 == 0 || xcr0 & 0xe4 == 0xe4);
        if !is_valid && host != 0 {
            // Dirty still, to be put right.
            return false;
        }
        self.xcr0.set(if host == 0 { 0 } else { xcr0 });
        // SAFETY: as in `finish`.
        unsafe { addr_of_mut!((*p).dirty).write_volatile(dirty & !Groups::XCR0.bits()) };
        true
    }

    fn entry_failure(&self, ec: &'static Ec, page: NonNull<VcpuPage>, rule: EntryRule) -> Next {
        let p = page.as_ptr();
        // SAFETY: as in `finish`.
        unsafe {
            addr_of_mut!((*p).exit_info[0]).write_volatile(rule as u64);
            addr_of_mut!((*p).exit_info[1]).write_volatile(0);
            addr_of_mut!((*p).filled).write_volatile(0);
        }
        self.finish(ec, page, ExitKind::EntryFailure)
    }

    /// Fills groups of the page. On its CPU, while nobody runs it.
    pub fn read(&self, groups: Groups) -> Result<(), Status> {
        let page = self.page()?;
        if self.runner.get().is_some() {
            return Err(Status::Busy);
        }
        // SAFETY: on the vCPU's CPU, not loaded.
        unsafe { self.backend().read(page, groups) };
        if groups.contains(Groups::XCR0) {
            // SAFETY: as in `finish`.
            unsafe { addr_of_mut!((*page.as_ptr()).xcr0).write_volatile(self.xcr0.get()) };
        }
        Ok(())
    }

    /// Takes everything out of the CPU. On its CPU, while nobody runs it.
    pub fn clear_hardware(&self) {
        fpu::forget(self.fpu_area);
        // SAFETY: on the vCPU's CPU, not loaded, and never used again.
        unsafe { self.backend().destroy() };
    }
}
