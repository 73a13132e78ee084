use std::collections::BTreeMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::tree::*;
use super::*;

/// Slots 1 to the end; 0 is never touched.
struct Table(Vec<Slot>);

impl Slots for Table {
    fn slot(&self, id: u32) -> &Slot {
        assert_ne!(id, 0);
        &self.0[id as usize]
    }

    fn slot_mut(&mut self, id: u32) -> &mut Slot {
        assert_ne!(id, 0);
        &mut self.0[id as usize]
    }
}

/// The parent (0 for a root) and the object of each node.
type Model = BTreeMap<u32, (u32, u64)>;

impl Table {
    fn new(len: usize) -> Self {
        Table(std::vec![Slot::EMPTY; len + 1])
    }

    fn fill(&mut self, id: u32, object: u64) {
        *self.slot_mut(id) = Slot { kind: 16, object, ..Slot::EMPTY };
    }

    fn children(&self, id: u32) -> Vec<u32> {
        let next = |&child: &u32| Some(self.slot(child).next).filter(|&id| id != 0);
        let first = Some(self.slot(id).child).filter(|&id| id != 0);
        std::iter::successors(first, next).take(self.0.len()).collect()
    }

    /// Every link agrees with its counterpart, and all of them with the model.
    fn check(&self, model: &Model) {
        for id in 1..self.0.len() as u32 {
            let slot = self.slot(id);
            let Some(&(parent, object)) = model.get(&id) else {
                assert_eq!(*slot, Slot::EMPTY, "slot {id}");
                continue;
            };
            assert_eq!((slot.parent, slot.object), (parent, object), "slot {id}");
            let depth =
                std::iter::successors(Some(parent), |&p| model.get(&p).map(|node| node.0)).count() - 1;
            assert_eq!(slot.depth as usize, depth, "slot {id}");
            let mut prev = 0;
            for child in self.children(id) {
                assert_eq!(
                    (self.slot(child).parent, self.slot(child).prev),
                    (id, prev),
                    "child {child} of {id}"
                );
                prev = child;
            }
            let mut children = self.children(id);
            children.sort_unstable();
            let expected: Vec<u32> =
                model.iter().filter(|(_, node)| node.0 == id).map(|(&id, _)| id).collect();
            assert_eq!(children, expected, "children of {id}");
        }
    }
}

fn is_below(model: &Model, id: u32, root: u32) -> bool {
    std::iter::successors(model.get(&id).map(|node| node.0), |p| model.get(p).map(|node| node.0))
        .any(|p| p == root)
}

#[derive(Clone, Debug)]
enum Op {
    Root(u32),
    Derive(prop::sample::Index, u32),
    RemoveLeaf(prop::sample::Index),
    /// Revoke, and give up after so many steps.
    Revoke(prop::sample::Index, usize),
}

const LEN: u32 = 24;

fn op() -> impl Strategy<Value = Op> {
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        1 => (1..=LEN).prop_map(Op::Root),
        6 => (pick(), 1..=LEN).prop_map(|(parent, id)| Op::Derive(parent, id)),
        1 => pick().prop_map(Op::RemoveLeaf),
        1 => (pick(), 0usize..30).prop_map(|(root, steps)| Op::Revoke(root, steps)),
    ]
}

fn remove(table: &mut Table, model: &mut Model, id: u32) {
    assert!(remove_leaf(table, id));
    *table.slot_mut(id) = Slot::EMPTY;
    model.remove(&id);
}

fn apply(table: &mut Table, model: &mut Model, op: &Op, object: u64) {
    let nodes: Vec<u32> = model.keys().copied().collect();
    let pick = |index: &prop::sample::Index| (!nodes.is_empty()).then(|| nodes[index.index(nodes.len())]);
    match op {
        Op::Root(id) if !model.contains_key(id) => {
            table.fill(*id, object);
            insert_root(table, *id);
            model.insert(*id, (0, object));
        }
        Op::Derive(index, id) if !model.contains_key(id) => {
            let Some(parent) = pick(index) else { return };
            table.fill(*id, object);
            insert_child(table, parent, *id).unwrap();
            model.insert(*id, (parent, object));
        }
        Op::RemoveLeaf(index) => {
            let Some(id) = pick(index) else { return };
            if model.values().any(|node| node.0 == id) {
                assert!(!remove_leaf(table, id));
            } else {
                remove(table, model, id);
            }
        }
        Op::Revoke(index, steps) => {
            let Some(root) = pick(index) else { return };
            for _ in 0..*steps {
                let Some(leaf) = first_leaf_below(table, root) else {
                    assert!(!nodes.iter().any(|&id| is_below(model, id, root)));
                    break;
                };
                assert!(is_below(model, leaf, root));
                remove(table, model, leaf);
            }
        }
        _ => {}
    }
}

#[test]
fn revocation_takes_descendants_before_their_ancestors() {
    let mut table = Table::new(5);
    for (parent, id) in [(1, 2), (2, 3), (2, 4), (1, 5)] {
        insert_child(&mut table, parent, id).unwrap();
    }
    let mut order = Vec::new();
    while let Some(leaf) = first_leaf_below(&table, 1) {
        assert!(remove_leaf(&mut table, leaf));
        order.push(leaf);
    }
    assert_eq!(order, [5, 4, 3, 2]);
    assert!(remove_leaf(&mut table, 1));
}

#[test]
fn depth_is_bounded_and_a_refusal_changes_nothing() {
    let last = u32::from(MAX_DEPTH) + 1;
    let mut table = Table::new(last as usize + 1);
    for id in 1..last {
        insert_child(&mut table, id, id + 1).unwrap();
    }
    let before = table.0.clone();
    assert_eq!(insert_child(&mut table, last, last + 1), Err(TooDeep));
    assert_eq!(table.0, before);
    assert_eq!(first_leaf_below(&table, 1), Some(last));
}

proptest! {
    #[test]
    fn the_tree_agrees_with_a_list_of_parents(ops in prop::collection::vec(op(), 0..80)) {
        let (mut table, mut model) = (Table::new(LEN as usize), Model::new());
        for (object, op) in ops.iter().enumerate() {
            apply(&mut table, &mut model, op, object as u64);
            table.check(&model);
        }
    }
}
