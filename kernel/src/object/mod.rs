//! Kernel objects: one a file, with its fields, its lifetime and its end.
//!
//! An object lives from its `Create…` to the deletion of its first capability, the root of its derivation tree. It is paid
//! from one pool. References to objects are `&'static`: they are valid until the kernel entry ends, because memory
//! of an ended object is reused only after a grace period (`khw::smp::synchronize`).

pub mod dma_space;
pub mod doorbell;
pub mod due;
pub mod ec;
pub mod guest_space;
pub mod instruction;
pub mod interrupt;
mod list;
pub mod pd;
pub mod pool;
pub mod portal;
pub mod sc;
pub mod signal;
pub mod vapic;
pub mod vcpu;

use core::cell::Cell;
use hypercall_abi::ObjectType;
pub use list::{Linked, List, ListLink};
use pool::Pool;

/// What every object begins with.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    /// Its type.
    pub kind: ObjectType,
    /// Slot of its first capability; 0 once the object is being destroyed. Under the tree lock.
    pub root_slot: Cell<u32>,
    /// The pool that paid for it; `None` for the root pool.
    pub pool: Option<&'static Pool>,
    /// Neighbours in the pool's list of objects. Under the tree lock.
    pub in_pool: ListLink,
}

impl Header {
    /// The header of a new object.
    pub const fn new(kind: ObjectType, pool: Option<&'static Pool>) -> Self {
        Header { kind, root_slot: Cell::new(0), pool, in_pool: ListLink::new() }
    }
}

/// A type of kernel object.
///
/// # Safety
/// `repr(C)` with a [`Header`] as the first field, whose `kind` is [`Self::KIND`] (semaphores and notifications share a type
/// and have either kind).
pub unsafe trait Object: Sized + 'static {
    /// The type that capabilities for it have.
    const KIND: ObjectType;
}

/// List of a pool's objects.
#[derive(Debug)]
pub enum InPool {}
// SAFETY: the field of the header.
unsafe impl Linked<InPool> for Header {
    fn link(&self) -> &ListLink {
        &self.in_pool
    }
}
