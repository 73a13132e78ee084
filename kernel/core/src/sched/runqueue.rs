//! The ready queue of one CPU: a list for each priority, and a bit for each list that is not empty.

/// Priorities: 0 is the idle one, 31 the highest.
pub const PRIORITIES: usize = 32;

/// Where queued things keep their links. An id is any number but 0, which means none.
pub trait Links {
    /// What comes after `id`.
    fn next(&self, id: u64) -> u64;
    /// Sets what comes after `id`.
    fn set_next(&mut self, id: u64, next: u64);
    /// What comes before `id`.
    fn prev(&self, id: u64) -> u64;
    /// Sets what comes before `id`.
    fn set_prev(&mut self, id: u64, prev: u64);
}

/// A ready queue. Every operation takes constant time.
///
/// Lists are circular, so that the links of a queued id are never 0, and those of others always are.
#[derive(Clone, Debug, Default)]
pub struct RunQueue {
    occupied: u32,
    heads: [u64; PRIORITIES],
}

impl RunQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        RunQueue { occupied: 0, heads: [0; PRIORITIES] }
    }

    /// Whether nothing is queued.
    pub const fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// Whether `id` is in a queue.
    pub fn is_queued<L: Links>(links: &L, id: u64) -> bool {
        links.next(id) != 0
    }

    /// The highest priority at which something is queued.
    pub const fn highest_priority(&self) -> Option<u8> {
        match self.occupied.checked_ilog2() {
            Some(priority) => Some(priority as u8),
            None => None,
        }
    }

    /// What [`Self::pop_highest`] would take.
    pub fn peek_highest(&self) -> Option<u64> {
        self.highest_priority().map(|priority| self.heads[usize::from(priority)])
    }

    /// Queues `id`, which is in no queue, behind everything of its priority (below [`PRIORITIES`]).
    pub fn enqueue_back<L: Links>(&mut self, links: &mut L, id: u64, priority: u8) {
        debug_assert!(id != 0 && !Self::is_queued(links, id));
        let priority = index(priority);
        match self.heads[priority] {
            0 => {
                links.set_next(id, id);
                links.set_prev(id, id);
                self.heads[priority] = id;
                self.occupied |= 1 << priority;
            }
            head => {
                let tail = links.prev(head);
                links.set_next(id, head);
                links.set_prev(id, tail);
                links.set_next(tail, id);
                links.set_prev(head, id);
            }
        }
    }

    /// Queues `id`, which is in no queue, before everything of its priority.
    pub fn enqueue_front<L: Links>(&mut self, links: &mut L, id: u64, priority: u8) {
        // The front of a circle is its back with another head.
        self.enqueue_back(links, id, priority);
        self.heads[index(priority)] = id;
    }

    /// Takes `id` out, wherever it is in the list of `priority`, at which it was queued.
    pub fn remove<L: Links>(&mut self, links: &mut L, id: u64, priority: u8) {
        debug_assert!(Self::is_queued(links, id));
        let priority = index(priority);
        let (next, prev) = (links.next(id), links.prev(id));
        if next == id {
            self.heads[priority] = 0;
            self.occupied &= !(1 << priority);
        } else {
            links.set_next(prev, next);
            links.set_prev(next, prev);
            if self.heads[priority] == id {
                self.heads[priority] = next;
            }
        }
        links.set_next(id, 0);
        links.set_prev(id, 0);
    }

    /// Takes the first of the highest priority.
    pub fn pop_highest<L: Links>(&mut self, links: &mut L) -> Option<u64> {
        let priority = self.highest_priority()?;
        let id = self.heads[index(priority)];
        self.remove(links, id, priority);
        Some(id)
    }
}

/// Priorities are checked where they come in; the mask only spares a bounds check here.
fn index(priority: u8) -> usize {
    debug_assert!(usize::from(priority) < PRIORITIES);
    usize::from(priority) % PRIORITIES
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Map(BTreeMap<u64, (u64, u64)>);

    impl Links for Map {
        fn next(&self, id: u64) -> u64 {
            self.0.get(&id).map_or(0, |links| links.0)
        }
        fn set_next(&mut self, id: u64, next: u64) {
            assert_ne!(id, 0);
            self.0.entry(id).or_default().0 = next;
        }
        fn prev(&self, id: u64) -> u64 {
            self.0.get(&id).map_or(0, |links| links.1)
        }
        fn set_prev(&mut self, id: u64, prev: u64) {
            assert_ne!(id, 0);
            self.0.entry(id).or_default().1 = prev;
        }
    }

    #[test]
    fn the_highest_priority_runs_first_and_equals_take_turns() {
        let (mut queue, mut links) = (RunQueue::new(), Map::default());
        for (id, priority) in [(10, 0), (20, 5), (21, 5), (30, 31)] {
            queue.enqueue_back(&mut links, id, priority);
        }
        queue.enqueue_front(&mut links, 22, 5);
        assert_eq!((queue.highest_priority(), queue.peek_highest()), (Some(31), Some(30)));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_highest(&mut links)).collect();
        assert_eq!(order, [30, 22, 20, 21, 10]);
        assert!(queue.is_empty() && queue.highest_priority().is_none());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Back(u64, u8),
        Front(u64, u8),
        Remove(u64),
        Pop,
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = 1u64..12;
        let priority = prop::sample::select(std::vec![0u8, 1, 7, 30, 31]);
        prop_oneof![
            (id.clone(), priority.clone()).prop_map(|(id, priority)| Op::Back(id, priority)),
            (id.clone(), priority).prop_map(|(id, priority)| Op::Front(id, priority)),
            id.prop_map(Op::Remove),
            Just(Op::Pop),
        ]
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_list_of_lists(ops in prop::collection::vec(op(), 0..100)) {
            let (mut queue, mut links) = (RunQueue::new(), Map::default());
            let mut model: BTreeMap<u8, VecDeque<u64>> = BTreeMap::new();
            for op in ops {
                let place = |model: &BTreeMap<u8, VecDeque<u64>>, id| {
                    model.iter().find(|(_, list)| list.contains(&id)).map(|(&priority, _)| priority)
                };
                match op {
                    Op::Back(id, priority) if place(&model, id).is_none() => {
                        queue.enqueue_back(&mut links, id, priority);
                        model.entry(priority).or_default().push_back(id);
                    }
                    Op::Front(id, priority) if place(&model, id).is_none() => {
                        queue.enqueue_front(&mut links, id, priority);
                        model.entry(priority).or_default().push_front(id);
                    }
                    Op::Remove(id) => {
                        if let Some(priority) = place(&model, id) {
                            queue.remove(&mut links, id, priority);
                            model.get_mut(&priority).unwrap().retain(|&other| other != id);
                        }
                    }
                    Op::Pop => {
                        let expected = model.values_mut().rev().find_map(VecDeque::pop_front);
                        prop_assert_eq!(queue.pop_highest(&mut links), expected);
                    }
                    _ => {}
                }
                let highest = model.iter().rev().find(|(_, list)| !list.is_empty());
                prop_assert_eq!(queue.highest_priority(), highest.map(|(&priority, _)| priority));
                prop_assert_eq!(queue.peek_highest(), highest.map(|(_, list)| list[0]));
                for id in 1..12 {
                    prop_assert_eq!(RunQueue::is_queued(&links, id), place(&model, id).is_some());
                }
            }
            let rest: Vec<_> = std::iter::from_fn(|| queue.pop_highest(&mut links)).collect();
            let expected: Vec<_> = model.into_values().rev().flatten().collect();
            prop_assert_eq!(rest, expected);
        }
    }
}
