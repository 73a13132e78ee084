//! The slot that holds a capability.

use hypercall_abi::{ObjectType, Rights};

/// A capability and its place in the derivation tree.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// [`ObjectType`] as a number; 0 for an empty slot.
    pub kind: u8,
    /// What the kind makes of it, such as "bound".
    pub state: u8,
    /// [`Rights`] bits.
    pub rights: u16,
    /// Slot it was derived from, 0 for a root.
    pub parent: u32,
    /// First slot derived from it, 0 if none.
    pub child: u32,
    /// Next slot with the same parent, 0 for the last.
    pub next: u32,
    /// Previous slot with the same parent, 0 for the first.
    pub prev: u32,
    /// Derivations between it and its root (see [`super::tree::MAX_DEPTH`]).
    pub depth: u16,
    /// Number of the first revocation of the capability, which tells it from what is in the slot later; 0 before.
    pub stamp: u16,
    /// Address of the kernel object, or first page frame number, port or interrupt of a range.
    pub object: u64,
    /// Length of a range, or badge of a notification.
    pub count: u64,
    /// Object that this range is mapped into, 0 if none.
    pub bound: u64,
    /// Where in `bound` it is mapped.
    pub address: u64,
    /// Next slot that is mapped into the same object, 0 for the last.
    pub bound_next: u32,
    /// Previous slot that is mapped into the same object, 0 for the first.
    pub bound_prev: u32,
}

/// Bytes in a slot: 64 slots fill a page.
pub const SLOT_SIZE: usize = 64;

const _: () = assert!(size_of::<Slot>() == SLOT_SIZE);

impl Slot {
    /// A slot without a capability.
    pub const EMPTY: Slot = Slot {
        kind: ObjectType::Null as u8,
        state: 0,
        rights: 0,
        parent: 0,
        child: 0,
        next: 0,
        prev: 0,
        depth: 0,
        stamp: 0,
        object: 0,
        count: 0,
        bound: 0,
        address: 0,
        bound_next: 0,
        bound_prev: 0,
    };

    /// Whether there is no capability.
    pub const fn is_empty(&self) -> bool {
        self.kind == ObjectType::Null as u8
    }

    /// What the capability allows.
    pub const fn rights(&self) -> Rights {
        Rights::from_bits_retain(self.rights)
    }
}

/// Every slot there is, by number; number 0 is none.
pub trait Slots {
    /// The slot with number `id`, which is not 0 and comes from a selector or from another slot.
    fn slot(&self, id: u32) -> &Slot;
    /// The same, to change.
    fn slot_mut(&mut self, id: u32) -> &mut Slot;
}
