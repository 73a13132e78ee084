//! What happens first: an intrusive priority queue whose every operation takes at most [`MAX_STEPS`] steps, however many entries it has.
//!
//! A heap-ordered digital search tree: a node's key is not above those below it, and which side of a node of depth *d* an entry is on
//! is bit *d*, from the top, of its key followed by its id. Ids differ, so no path is longer than those bits.

/// One more than the bits that tell entries apart: so many nodes lie on a path at most.
pub const MAX_STEPS: u32 = 2 * u64::BITS + 1;

/// Where entries keep their key and links. An id is any number but 0, which means none.
pub trait Nodes {
    /// When it is due. Constant while it is in a queue.
    fn key(&self, id: u64) -> u64;
    /// The entry below it on a side (0 or 1).
    fn child(&self, id: u64, side: usize) -> u64;
    /// Sets that.
    fn set_child(&mut self, id: u64, side: usize, child: u64);
    /// The entry above it.
    fn parent(&self, id: u64) -> u64;
    /// Sets that.
    fn set_parent(&mut self, id: u64, parent: u64);
}

/// Entries by their keys.
#[derive(Clone, Debug, Default)]
pub struct Deadlines {
    root: u64,
}

impl Deadlines {
    /// An empty queue.
    pub const fn new() -> Self {
        Deadlines { root: 0 }
    }

    /// The entry with the smallest key, 0 if there is none.
    pub const fn first(&self) -> u64 {
        self.root
    }

    /// Adds an entry that is in no queue.
    pub fn insert<N: Nodes>(&mut self, nodes: &mut N, id: u64) {
        let (mut carried, mut above, mut side) = (id, 0, 0);
        for depth in 0..MAX_STEPS {
            let here = self.below(nodes, above, side);
            if here == 0 {
                self.link(nodes, above, side, carried);
                nodes.set_child(carried, 0, 0);
                nodes.set_child(carried, 1, 0);
                return;
            }
            let mut placed = here;
            if nodes.key(carried) < nodes.key(here) {
                // The carried entry takes this place, and what was here goes further down.
                self.link(nodes, above, side, carried);
                for side in [0, 1] {
                    let child = nodes.child(here, side);
                    adopt(nodes, carried, side, child);
                }
                placed = core::mem::replace(&mut carried, here);
            }
            (above, side) = (placed, bit(nodes, carried, depth));
        }
        debug_assert!(false, "two entries with one id");
    }

    /// Takes out an entry that is in this queue.
    pub fn remove<N: Nodes>(&mut self, nodes: &mut N, id: u64) {
        let mut above = nodes.parent(id);
        let mut side = usize::from(above != 0 && nodes.child(above, 1) == id);
        let mut children = [nodes.child(id, 0), nodes.child(id, 1)];
        loop {
            // The more urgent child moves up: what is true of the path to it is true of the shorter one.
            let [left, right] = children;
            let takes_left = left != 0 && (right == 0 || nodes.key(left) <= nodes.key(right));
            let (next, next_side) = if takes_left { (left, 0) } else { (right, 1) };
            self.link(nodes, above, side, next);
            if next == 0 {
                return;
            }
            let other = children[1 - next_side];
            children = [nodes.child(next, 0), nodes.child(next, 1)];
            adopt(nodes, next, 1 - next_side, other);
            (above, side) = (next, next_side);
        }
    }

    fn below<N: Nodes>(&self, nodes: &N, above: u64, side: usize) -> u64 {
        match above {
            0 => self.root,
            _ => nodes.child(above, side),
        }
    }

    fn link<N: Nodes>(&mut self, nodes: &mut N, above: u64, side: usize, id: u64) {
        if above != 0 {
            return adopt(nodes, above, side, id);
        }
        self.root = id;
        if id != 0 {
            nodes.set_parent(id, 0);
        }
    }
}

/// Puts `id`, which may be none, below `above`.
fn adopt<N: Nodes>(nodes: &mut N, above: u64, side: usize, id: u64) {
    nodes.set_child(above, side, id);
    if id != 0 {
        nodes.set_parent(id, above);
    }
}

/// Bit `depth`, from the top, of the key followed by the id.
fn bit<N: Nodes>(nodes: &N, id: u64, depth: u32) -> usize {
    let word = if depth < u64::BITS { nodes.key(id) } else { id };
    (word.rotate_left(depth + 1) & 1) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Default)]
    struct Node {
        key: u64,
        children: [u64; 2],
        parent: u64,
    }

    #[derive(Default)]
    struct Map(BTreeMap<u64, Node>);

    impl Nodes for Map {
        fn key(&self, id: u64) -> u64 {
            self.0[&id].key
        }
        fn child(&self, id: u64, side: usize) -> u64 {
            self.0[&id].children[side]
        }
        fn set_child(&mut self, id: u64, side: usize, child: u64) {
            self.0.get_mut(&id).unwrap().children[side] = child;
        }
        fn parent(&self, id: u64) -> u64 {
            self.0[&id].parent
        }
        fn set_parent(&mut self, id: u64, parent: u64) {
            self.0.get_mut(&id).unwrap().parent = parent;
        }
    }

    impl Map {
        fn depth(&self, id: u64) -> u32 {
            match id {
                0 => 0,
                _ => 1 + self.0[&id].children.map(|child| self.depth(child)).into_iter().max().unwrap(),
            }
        }
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_sorted_set(
            ops in prop::collection::vec((1u64..40, prop::sample::select(
                std::vec![0, 1, 2, 3, 1 << 40, (1 << 40) + 1, 1 << 63, u64::MAX - 1, u64::MAX])), 0..200),
        ) {
            let (mut queue, mut nodes) = (Deadlines::new(), Map::default());
            let mut model = BTreeSet::new();
            for (id, key) in ops {
                if nodes.0.get(&id).is_some_and(|node| model.remove(&(node.key, id))) {
                    queue.remove(&mut nodes, id);
                } else {
                    nodes.0.insert(id, Node { key, ..Node::default() });
                    queue.insert(&mut nodes, id);
                    model.insert((key, id));
                }
                let first = queue.first();
                prop_assert_eq!(first == 0, model.is_empty());
                if first != 0 {
                    prop_assert_eq!(nodes.key(first), model.first().unwrap().0);
                }
                prop_assert!(nodes.depth(first) <= MAX_STEPS);
            }
            let mut rest = Vec::new();
            while queue.first() != 0 {
                let id = queue.first();
                rest.push(nodes.key(id));
                queue.remove(&mut nodes, id);
            }
            let expected: Vec<_> = model.into_iter().map(|(key, _)| key).collect();
            prop_assert_eq!(rest, expected);
        }
    }

    #[test]
    fn a_thousand_equal_keys_make_no_path_longer_than_the_bits() {
        let (mut queue, mut nodes) = (Deadlines::new(), Map::default());
        for id in 1..=1000 {
            nodes.0.insert(id, Node { key: 7, ..Node::default() });
            queue.insert(&mut nodes, id);
        }
        assert!(nodes.depth(queue.first()) <= MAX_STEPS);
    }
}
