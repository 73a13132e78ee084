//! Guest-physical address spaces: EPT or NPT.

use super::pool::Pool;
use super::vcpu::{OfSpace, Vcpu};
use super::{Header, List, Object};
use crate::cap::BoundList;
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::ObjectType;
use kcore::addr::PhysAddr;

/// A guest-physical address space.
#[repr(C)]
#[derive(Debug)]
pub struct GuestSpace {
    header: Header,
    /// The pool that pays for its tables.
    pub pool: &'static Pool,
    /// Top-level nested table.
    pub root: PhysAddr,
    /// Counts removals: a vCPU that enters with an older number flushes first.
    generation: AtomicU64,
    /// Frame of the table of its doorbells, 0 for none. Written under the tree lock.
    pub doorbells: AtomicU64,
    /// Its vCPUs. Under the tree lock.
    pub vcpus: List<Vcpu, OfSpace>,
    /// Memory capabilities that are mapped into it, and those for what its doorbells signal. Under the tree lock.
    pub bound: BoundList,
}

// SAFETY: each field says who touches it.
unsafe impl Sync for GuestSpace {}
// SAFETY: first field is the header.
unsafe impl Object for GuestSpace {
    const KIND: ObjectType = ObjectType::GuestSpace;
}

impl GuestSpace {
    /// An empty space.
    pub fn create(header: Header, pool: &'static Pool) -> Option<GuestSpace> {
        Some(GuestSpace {
            header,
            pool,
            root: pool.take_frame()?,
            generation: AtomicU64::new(1),
            doorbells: AtomicU64::new(0),
            vcpus: List::new(),
            bound: BoundList::new(),
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The current generation.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Says that translations were removed. The caller runs a grace period next, which makes every CPU leave the guest.
    pub fn bump_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}
