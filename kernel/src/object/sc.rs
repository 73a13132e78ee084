//! Scheduling contexts: the right to processor time.

use super::due::{Due, DueLink};
use super::ec::Ec;
use super::{Header, Linked, ListLink, Object};
use core::cell::{Cell, UnsafeCell};
use hypercall_abi::ObjectType;
use kcore::sched::budget::Budget;

/// A scheduling context, bound to the execution context it was created for; while that calls portals, their handlers run on
/// it.
#[repr(C)]
#[derive(Debug)]
pub struct Sc {
    header: Header,
    /// The thread it was created for.
    pub owner: &'static Ec,
    /// Who runs on it now: the owner, or the last handler in its chain of calls.
    pub running: Cell<&'static Ec>,
    /// 0 to 31, larger is more urgent.
    pub priority: u8,
    budget: UnsafeCell<Budget>,
    /// TSC ticks used so far. Written by its CPU, read by `ScInfo` anywhere.
    pub consumed: Cell<u64>,
    /// TSC ticks for which it was ready, or out of budget, until it ran. Written by its CPU, read by `ScInfo` anywhere.
    pub waited: Cell<u64>,
    /// Since when it is ready or out of budget. Under the scheduler lock of its CPU.
    pub since: Cell<u64>,
    /// Where it is. Under the scheduler lock of its CPU.
    pub place: Cell<Place>,
    /// Neighbours in the ready queue or among helpers. Under the scheduler lock of its CPU.
    pub queue: ListLink,
    /// When it is refilled. Under the scheduler lock of its CPU.
    pub refilled: DueLink,
    /// In whose [`Ec::helpers`] it is. Under the scheduler lock of its CPU.
    pub helps: Cell<Option<&'static Ec>>,
}

/// Where a scheduling context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its context is blocked, or it runs right now.
    Nowhere,
    /// In the ready queue.
    Ready,
    /// Out of budget until its next refill.
    Refill,
    /// Among the helpers of a blocked context.
    Helping,
    /// Destroyed.
    Dead,
}

/// Ready queue, or a context's helpers.
#[derive(Debug)]
pub enum InQueue {}
// SAFETY: always the same field.
unsafe impl Linked<InQueue> for Sc {
    fn link(&self) -> &ListLink {
        &self.queue
    }
}

// SAFETY: always the same field.
unsafe impl Due for Sc {
    fn due(&self) -> &DueLink {
        &self.refilled
    }
}

// SAFETY: the fields say who uses them.
unsafe impl Sync for Sc {}
// SAFETY: first field is the header.
unsafe impl Object for Sc {
    const KIND: ObjectType = ObjectType::Sc;
}

impl Sc {
    /// A scheduling context for `owner`.
    pub fn new(header: Header, owner: &'static Ec, priority: u8, budget: Budget) -> Self {
        Sc {
            header,
            owner,
            running: Cell::new(owner),
            priority,
            budget: UnsafeCell::new(budget),
            consumed: Cell::new(0),
            waited: Cell::new(0),
            since: Cell::new(0),
            place: Cell::new(Place::Nowhere),
            queue: ListLink::new(),
            refilled: DueLink::new(),
            helps: Cell::new(None),
        }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Time it may use.
    ///
    /// Only its CPU calls this, and lets go of the reference before anything else of the scheduler runs.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the rule above")]
    pub fn budget(&self) -> &mut Budget {
        // SAFETY: by the rule above no other reference is live.
        unsafe { &mut *self.budget.get() }
    }
}
