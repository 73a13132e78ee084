//! The derivation tree: which capability was derived from which.
//!
//! Children are a doubly linked list, newest first. Nodes come and go at any time between two steps of a revocation,
//! which keeps no position: it takes [`first_leaf_below`] its root away until there is none. That is complete whoever
//! else revokes or derives meanwhile, as long as nothing new is derived from a capability that is being revoked.

use super::{Slot, Slots};

/// Largest depth of a tree: bounds the walk to a leaf. Real delegation is a handful deep.
pub const MAX_DEPTH: u16 = 64;

/// The parent is [`MAX_DEPTH`] derivations away from its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooDeep;

/// Makes `id` the root of a new tree.
pub fn insert_root<S: Slots>(slots: &mut S, id: u32) {
    let slot = slots.slot_mut(id);
    (slot.parent, slot.child, slot.next, slot.prev, slot.depth) = (0, 0, 0, 0, 0);
}

/// Whether something may still be derived from a slot.
pub const fn can_have_child(slot: &Slot) -> bool {
    slot.depth < MAX_DEPTH
}

/// Makes `child`, which is in no tree, the first child of `parent`. Changes nothing if the tree would be too deep.
pub fn insert_child<S: Slots>(slots: &mut S, parent: u32, child: u32) -> Result<(), TooDeep> {
    let above = slots.slot_mut(parent);
    if !can_have_child(above) {
        return Err(TooDeep);
    }
    let depth = above.depth + 1;
    let next = core::mem::replace(&mut above.child, child);
    if next != 0 {
        slots.slot_mut(next).prev = child;
    }
    let slot = slots.slot_mut(child);
    (slot.parent, slot.child, slot.next, slot.prev, slot.depth) = (parent, 0, next, 0, depth);
    Ok(())
}

/// Takes a node without children out of its tree; false, and no change, if it has some. The rest of the slot is the
/// caller's to clear.
#[must_use]
pub fn remove_leaf<S: Slots>(slots: &mut S, id: u32) -> bool {
    let Slot { parent, child, next, prev, .. } = *slots.slot(id);
    if child != 0 {
        return false;
    }
    set_forward(slots, parent, prev, next);
    if next != 0 {
        slots.slot_mut(next).prev = prev;
    }
    insert_root(slots, id);
    true
}

/// The first leaf in post-order below `root`, `None` if `root` has no children; at most [`MAX_DEPTH`] steps.
pub fn first_leaf_below<S: Slots>(slots: &S, root: u32) -> Option<u32> {
    let mut id = slots.slot(root).child;
    if id == 0 {
        return None;
    }
    loop {
        match slots.slot(id).child {
            0 => return Some(id),
            child => id = child,
        }
    }
}

/// Makes what led to a node lead to `id`: its previous sibling, or its parent if it is the first.
fn set_forward<S: Slots>(slots: &mut S, parent: u32, prev: u32, id: u32) {
    if prev != 0 {
        slots.slot_mut(prev).next = id;
    } else if parent != 0 {
        slots.slot_mut(parent).child = id;
    }
}
