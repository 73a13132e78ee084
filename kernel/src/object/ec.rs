//! Execution contexts: threads and portal handlers.

use super::due::{Due, DueLink};
use super::pd::Pd;
use super::portal::{OfHandler, Portal};
use super::sc::{InQueue, Sc};
use super::signal::Signal;
use super::vcpu::Vcpu;
use super::{Header, Linked, List, ListLink, Object};
use crate::cap::BoundList;
use core::cell::{Cell, UnsafeCell};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use hypercall_abi::{ObjectType, Status};
use khw::entry::Frame;

/// An execution context. It belongs to one CPU; unless said otherwise only that CPU touches a field.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Ec {
    header: Header,
    /// Its protection domain.
    pub pd: &'static Pd,
    /// Its CPU.
    pub cpu: u16,
    /// Its number: no other context's since boot.
    pub number: u32,
    /// Runs only when called through a portal.
    pub is_handler: bool,
    /// Stack pointer a handler starts with.
    pub handler_sp: u64,
    /// What it is doing. Written by its CPU, and by whoever ends its wait, under the scheduler lock of its CPU.
    pub state: Cell<State>,
    /// The scheduling context that it runs on, or will run on when its wait ends. A caller lends it to the handler.
    pub sc: Cell<Option<&'static Sc>>,
    /// Handler in a call: the scheduling context of the whole chain, whose `running` is the chain's end.
    pub chain_sc: Cell<Option<&'static Sc>>,
    /// Scheduling contexts that would run it if it were not blocked: their threads wait for a handler that waits for it. Under the
    /// scheduler lock of its CPU.
    pub helpers: List<Sc, InQueue>,
    /// Link of the list of contexts whose helpers are being made ready; under the same lock.
    pub releasing: ListLink,
    /// How many helpers there are, and how many of them are to be made ready: it is in that list while there are some.
    pub helper_count: Cell<u32>,
    /// See there.
    pub to_release: Cell<u32>,
    /// Its own scheduling context. Under the tree lock.
    pub own_sc: Cell<Option<&'static Sc>>,
    /// Handler: whose call it serves.
    pub caller: Cell<Option<&'static Ec>>,
    /// Caller: the handler that serves it.
    pub callee: Cell<Option<&'static Ec>>,
    /// Callers that wait until this handler is idle. The most urgent one goes first, whenever it was queued: the ready queue decides.
    pub queued_callers: List<Ec, Calling>,
    /// Link of `queued_callers`.
    pub calling: ListLink,
    /// Queued caller: the handler it waits for.
    pub waits_for: Cell<Option<&'static Ec>>,
    /// Signal it waits on. Under that signal's lock.
    pub waits_on: Cell<Option<&'static Signal>>,
    /// Link of that signal's queue.
    pub waiting: ListLink,
    /// Deadline of its wait. Under the scheduler lock of its CPU.
    pub timed: DueLink,
    /// In the deadline queue.
    pub is_timed: Cell<bool>,
    /// vCPU whose run it is in.
    pub vcpu: Cell<Option<&'static Vcpu>>,
    /// Frame of its message area, 0 for none. Written under the tree lock.
    pub utcb: AtomicU64,
    /// Signalled when it stops on a fault; null for nobody. Written under the tree lock, read when it faults.
    pub fault_signal: AtomicPtr<Signal>,
    /// With this badge; written before the signal, and only while there is none.
    pub fault_badge: AtomicU64,
    /// Link of that signal's list. Under the tree lock.
    pub watched: ListLink,
    /// In a Revoke that must be made again: the slot, and its stamp when that began.
    pub revokes: Cell<Option<(u32, u16)>>,
    /// Why it stopped: vector and address.
    pub fault: Cell<(u64, u64)>,
    /// Link of the protection domain's list. Under the tree lock.
    pub of_pd: ListLink,
    /// Portals that it handles. Under the tree lock.
    pub portals: List<Portal, OfHandler>,
    /// The memory capability of its message area. Under the tree lock.
    pub bound: BoundList,
    frame: UnsafeCell<Frame>,
}

/// What an execution context is doing.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A handler that waits for a call, or a thread that was not started.
    Idle,
    /// It runs, or its scheduling context is in a queue.
    Active,
    /// It waits: for a signal, a reply, a handler, or (in a vCPU run) an event.
    Blocked,
    /// It stopped on a fault for good.
    Faulted,
    /// Being destroyed.
    Dead,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitResult {
    /// With this value.
    Done(u64),
    /// Without.
    Failed(Status),
    /// The context looks itself.
    Look,
    /// The vCPU whose run it is in was kicked.
    Kicked,
}

/// Contexts whose helpers are being made ready.
#[derive(Debug)]
pub enum Releasing {}
// SAFETY: always the same field.
unsafe impl Linked<Releasing> for Ec {
    fn link(&self) -> &ListLink {
        &self.releasing
    }
}

/// Callers in a handler's queue.
#[derive(Debug)]
pub enum Calling {}
// SAFETY: always the same field.
unsafe impl Linked<Calling> for Ec {
    fn link(&self) -> &ListLink {
        &self.calling
    }
}

// SAFETY: always the same field.
unsafe impl Due for Ec {
    fn due(&self) -> &DueLink {
        &self.timed
    }
}

/// Contexts of a protection domain.
#[derive(Debug)]
pub enum OfPd {}
// SAFETY: always the same field.
unsafe impl Linked<OfPd> for Ec {
    fn link(&self) -> &ListLink {
        &self.of_pd
    }
}

// SAFETY: each field says who touches it.
unsafe impl Sync for Ec {}
// SAFETY: first field is the header.
unsafe impl Object for Ec {
    const KIND: ObjectType = ObjectType::Ec;
}

/// Contexts made since boot.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Ec {
    /// A context of `pd` on `cpu`, not started.
    pub fn new(header: Header, pd: &'static Pd, cpu: u16, is_handler: bool, frame: Frame) -> Self {
        Ec {
            header,
            pd,
            cpu,
            number: COUNT.fetch_add(1, Ordering::Relaxed).wrapping_add(1),
            is_handler,
            handler_sp: frame.rsp,
            state: Cell::new(State::Idle),
            sc: Cell::new(None),
            chain_sc: Cell::new(None),
            helpers: List::new(),
            releasing: ListLink::new(),
            helper_count: Cell::new(0),
            to_release: Cell::new(0),
            own_sc: Cell::new(None),
            caller: Cell::new(None),
            callee: Cell::new(None),
            queued_callers: List::new(),
            calling: ListLink::new(),
            waits_for: Cell::new(None),
            waits_on: Cell::new(None),
            waiting: ListLink::new(),
            timed: DueLink::new(),
            is_timed: Cell::new(false),
            vcpu: Cell::new(None),
            utcb: AtomicU64::new(0),
            fault_signal: AtomicPtr::new(core::ptr::null_mut()),
            fault_badge: AtomicU64::new(0),
            watched: ListLink::new(),
            revokes: Cell::new(None),
            fault: Cell::new((0, 0)),
            of_pd: ListLink::new(),
            portals: List::new(),
            bound: BoundList::new(),
            frame: UnsafeCell::new(frame),
        }
    }

    /// Offset of the register frame, for assembly.
    pub const FRAME_OFFSET: usize = core::mem::offset_of!(Ec, frame);

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its registers.
    #[inline]
    pub fn frame_ptr(&self) -> *mut Frame {
        self.frame.get()
    }

    /// Its registers, to change.
    ///
    /// Only its CPU, in the kernel, calls this, and lets go of the reference before it lets anybody else run; the kernel is
    /// not reentered. Or another CPU that ends its wait ([`crate::sched::wake`]): while it is blocked, under the scheduler lock of
    /// its CPU, which neither runs it nor ends the wait as well.
    #[inline]
    #[expect(
        clippy::mut_from_ref,
        reason = "exclusive by the rule above: one CPU at a time, one kernel entry at a time"
    )]
    pub fn frame(&self) -> &mut Frame {
        // SAFETY: by the rule above no other reference is live.
        unsafe { &mut *self.frame.get() }
    }

    /// Where the CPU and SYSCALL entry push registers.
    #[inline]
    pub fn frame_end(&self) -> u64 {
        self.frame.get() as u64 + size_of::<Frame>() as u64
    }
}
