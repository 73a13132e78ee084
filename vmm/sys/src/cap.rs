//! Typed capabilities.
//!
//! A [`Cap`] is a selector that its holder says is of a type. The kernel checks every use; a wrong claim is an
//! error, never more. Dropping one does nothing: revoke it, or end the pool that its object was made from.

use crate::error::Result;
use crate::hypercall::{invoke, invoke_range};
use core::fmt;
use core::marker::PhantomData;
use hypercall_abi::{Hypercall, Rights, Selector};

macro_rules! object_types {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])* #[derive(Clone, Copy, Debug, PartialEq, Eq)] pub enum $name {})*
    };
}

object_types! {
    /// Frames of kernel memory.
    Pool,
    /// Protection domain: a process.
    Pd,
    /// Execution context: a thread.
    Ec,
    /// Scheduling context: priority, budget and period.
    Sc,
    /// Portal: synchronous call of a service.
    Pt,
    /// Semaphore.
    Sm,
    /// Notification of 64 bits.
    Ntfn,
    /// Guest-physical address space.
    GuestSpace,
    /// Virtual CPU.
    Vcpu,
    /// The memory that devices reach.
    DmaSpace,
    /// A range of page frames.
    Memory,
    /// A range of I/O ports.
    Ports,
    /// A range of global system interrupts.
    Irqs,
    /// The kernel's log.
    Log,
    /// A range of CPUs whose events may be recorded.
    Trace,
    /// A range of devices: PCI requester IDs.
    Devices,
}

/// A capability for an object or range of type `T` in this process's object space.
pub struct Cap<T> {
    selector: Selector,
    _type: PhantomData<fn() -> T>,
}

impl<T> Clone for Cap<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Cap<T> {}

impl<T> fmt::Debug for Cap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cap({})", self.selector.0)
    }
}

/// What a derived capability keeps of its source. Starts from everything.
#[derive(Clone, Copy, Debug)]
pub struct Narrow {
    rights: Rights,
    offset: u64,
    count: u64,
    badge: u64,
}

impl Narrow {
    /// Keeps everything.
    pub const ALL: Narrow = Narrow { rights: Rights::ALL, offset: 0, count: 0, badge: 0 };

    /// Keeps only these rights (of those the source has).
    pub const fn rights(rights: Rights) -> Self {
        Narrow { rights, ..Self::ALL }
    }

    /// Keeps `count` units (pages, ports, interrupts) from `offset`; a `count` of 0 keeps all from there.
    pub const fn range(self, offset: u64, count: u64) -> Self {
        Narrow { offset, count, ..self }
    }

    /// The bits that a signal through the derived notification capability raises.
    pub const fn badge(self, badge: u64) -> Self {
        Narrow { badge, ..self }
    }
}

impl<T> Cap<T> {
    /// Says that `selector` names a capability of type `T`.
    pub const fn new(selector: Selector) -> Self {
        Cap { selector, _type: PhantomData }
    }

    /// The selector.
    pub const fn selector(self) -> Selector {
        self.selector
    }

    /// Derives a narrowed capability into this process at the free selector `to`.
    pub fn derive(self, to: Selector, keep: Narrow) -> Result<Cap<T>> {
        self.derive_into(Selector::NULL, to, keep)?;
        Ok(Cap::new(to))
    }

    /// Derives a narrowed capability into another process, at the selector `to` there.
    pub fn delegate(self, pd: Cap<Pd>, to: Selector, keep: Narrow) -> Result<()> {
        self.derive_into(pd.selector, to, keep)
    }

    fn derive_into(self, pd: Selector, to: Selector, keep: Narrow) -> Result<()> {
        let arguments =
            [pd.0.into(), to.0.into(), keep.rights.bits().into(), keep.offset, keep.count, keep.badge];
        // SAFETY: a new capability changes no mapping.
        unsafe { invoke(Hypercall::Derive, self.selector, arguments) }.map(drop)
    }

    /// Ends everything derived from this capability: mappings and capabilities, in every process.
    pub fn revoke_derived(self) -> Result<()> {
        self.revoke(false)
    }

    /// Ends everything derived from this capability, and the capability. For the one that an object was created
    /// with, this ends the object; for a pool's, everything created from the pool.
    pub fn delete(self) -> Result<()> {
        self.revoke(true)
    }

    fn revoke(self, with_self: bool) -> Result<()> {
        // SAFETY: mappings only go away: an access afterwards faults and ends this process.
        unsafe { invoke_range(Hypercall::Revoke, self.selector, |_| [with_self.into(), 0, 0, 0, 0, 0]) }
    }
}
