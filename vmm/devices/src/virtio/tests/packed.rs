//! Packed queues, by a driver that keeps to 2.8, and by others.

use super::super::chain::Chain;
use super::super::queue::Queue;
use super::*;
use crate::guest_mem::VecMemory;
use proptest::prelude::*;
use std::collections::VecDeque;

extern crate std;

const RING: u64 = 0x1000;
const DRIVER_EVENT: u64 = 0x2000;
const DEVICE_EVENT: u64 = 0x2010;
const TABLES: u64 = 0x4000;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A chain that is in flight, as the driver knows it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u16,
    slots: u16,
    buffers: u16,
}

/// A driver of one packed queue.
struct Packed {
    memory: VecMemory,
    queue: Queue,
    size: u16,
    next: (u16, bool),
    used: (u16, bool),
    free: u16,
    /// By id; `None` for those that are free.
    sent: Vec<Option<Sent>>,
    offered: VecDeque<Sent>,
}

fn moved((slot, wrap): (u16, bool), by: u16, size: u16) -> (u16, bool) {
    if slot + by < size { (slot + by, wrap) } else { (slot + by - size, !wrap) }
}

impl Packed {
    fn new(size: u16, features: u64) -> Self {
        let mut queue = Queue::new(64);
        queue.set_size(size);
        let at = queue.addresses_mut();
        (at.descriptors, at.available, at.used) = (RING, DRIVER_EVENT, DEVICE_EVENT);
        queue.enable(features | RING_PACKED).unwrap();
        let memory = VecMemory::new(0x2_0000);
        let start = (0, true);
        let (sent, offered) = (vec![None; size.into()], VecDeque::new());
        Packed { memory, queue, size, next: start, used: start, free: size, sent, offered }
    }

    fn descriptor(slot: u16) -> u64 {
        RING + 16 * u64::from(slot)
    }

    /// Offers a chain of buffers, the last of which is for the device to write; `false` if the ring is full.
    fn offer(&mut self, buffers: u16, is_indirect: bool) -> bool {
        let slots = if is_indirect { 1 } else { buffers };
        let Some(id) = self.sent.iter().position(Option::is_none).filter(|_| slots <= self.free) else {
            return false;
        };
        let id = id as u16;
        let flags = |at: u16| if at + 1 == buffers { WRITE } else { 0 };
        let table = TABLES + u64::from(id) * 0x100;
        let first = self.next;
        for at in 0..slots {
            let (slot, wrap) = moved(first, at, self.size);
            let ownership = if wrap { AVAIL } else { USED };
            let (gpa, len, own) = if is_indirect {
                (table, 16 * u32::from(buffers), INDIRECT)
            } else {
                (0x8000 + u64::from(id), u32::from(at) + 1, flags(at) | if at + 1 < slots { NEXT } else { 0 })
            };
            self.put(Self::descriptor(slot), gpa, len, id);
            // The first becomes available last.
            if at > 0 {
                self.memory.write_u16(Self::descriptor(slot) + 14, own | ownership).unwrap();
            }
        }
        if is_indirect {
            for at in 0..buffers {
                let entry = table + 16 * u64::from(at);
                self.put(entry, 0x8000 + u64::from(id), u32::from(at) + 1, 0);
                // All but WRITE is reserved there, and means nothing.
                let reserved = if at % 2 == 0 { 0 } else { NEXT | INDIRECT };
                self.memory.write_u16(entry + 14, flags(at) | reserved).unwrap();
            }
        }
        let own = if is_indirect { INDIRECT } else { flags(0) | if slots > 1 { NEXT } else { 0 } };
        let ownership = if first.1 { AVAIL } else { USED };
        self.memory.write_u16(Self::descriptor(first.0) + 14, own | ownership).unwrap();
        self.next = moved(first, slots, self.size);
        self.free -= slots;
        let sent = Sent { id, slots, buffers };
        self.sent[usize::from(id)] = Some(sent);
        self.offered.push_back(sent);
        true
    }

    fn put(&mut self, gpa: u64, address: u64, len: u32, id: u16) {
        self.memory.write_u64(gpa, address).unwrap();
        self.memory.write_u32(gpa + 8, len).unwrap();
        self.memory.write_u16(gpa + 12, id).unwrap();
    }

    /// Takes back what the device has used: ids and lengths.
    fn take_used(&mut self) -> Vec<(u16, u32)> {
        let mut all = Vec::new();
        loop {
            let at = Self::descriptor(self.used.0);
            let flags = self.memory.read_u16(at + 14).unwrap();
            let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
            if avail != used || used != self.used.1 {
                return all;
            }
            let id = self.memory.read_u16(at + 12).unwrap();
            let sent = self.sent[usize::from(id)].take().expect("an id that is in flight");
            self.used = moved(self.used, sent.slots, self.size);
            self.free += sent.slots;
            let len = self.memory.read_u32(at + 8).unwrap();
            assert_eq!(flags & WRITE != 0, len > 0, "it says whether something was written");
            all.push((id, len));
        }
    }

    /// Lets the device take a chain, which must be the one that was offered first.
    fn pop(&mut self) -> Option<Chain> {
        let mut chain = Chain::new();
        let is_there = self.queue.pop_or_arm(&mut self.memory, &mut chain).unwrap();
        let expected = self.offered.pop_front();
        assert_eq!(is_there, expected.is_some());
        let expected = expected?;
        assert_eq!((chain.head().id, chain.head().slots), (expected.id, expected.slots));
        assert_eq!((chain.readable().len() as u16, chain.writable().len()), (expected.buffers - 1, 1));
        assert_eq!(chain.writable()[0].len, expected.buffers.into());
        Some(chain)
    }

    fn push(&mut self, chain: &Chain, len: u32) {
        self.queue.push(&mut self.memory, chain.head(), len).unwrap();
    }

    /// Wants an interrupt when the device uses this place.
    fn want(&mut self, (slot, wrap): (u16, bool)) {
        let event = u32::from(slot) | u32::from(wrap) << 15 | 2 << 16;
        self.memory.write_u32(DRIVER_EVENT, event).unwrap();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Offer(u16, bool),
    Pop,
    Unpop(usize),
    Push(usize, u32),
    Batch(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u16..5, any::<bool>()).prop_map(|(buffers, is_indirect)| Step::Offer(buffers, is_indirect)),
        2 => Just(Step::Pop),
        1 => (1usize..3).prop_map(Step::Unpop),
        2 => (any::<prop::sample::Index>(), prop_oneof![Just(0), any::<u32>()]).prop_map(|(at, len)| Step::Push(at.index(64), len)),
        1 => (1usize..4).prop_map(Step::Batch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn chains_come_in_order_and_go_back_in_any(
        size in 1u16..20,
        event in any::<bool>(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let features = INDIRECT_DESC | if event { EVENT_IDX } else { 0 };
        let mut driver = Packed::new(size, features);
        let mut taken: Vec<(Chain, Sent)> = Vec::new();
        for step in steps {
            match step {
                Step::Offer(buffers, is_indirect) => {
                    // Nor is a table longer than the ring.
                    driver.offer(buffers.min(size), is_indirect);
                }
                Step::Pop => {
                    let next = driver.offered.front().copied();
                    taken.extend(driver.pop().zip(next));
                }
                Step::Unpop(count) => {
                    let offered = driver.offered.clone();
                    let chains: Vec<Chain> = (0..count).map_while(|_| driver.pop()).collect();
                    driver.queue.unpop(chains.iter().map(Chain::head));
                    driver.offered = offered;
                }
                Step::Push(at, len) if !taken.is_empty() => {
                    let (chain, sent) = taken.remove(at % taken.len());
                    driver.push(&chain, len);
                    prop_assert_eq!(driver.take_used(), [(sent.id, len)]);
                }
                Step::Batch(count) => {
                    let batch: Vec<_> = taken.drain(..count.min(taken.len())).collect();
                    for (chain, _) in &batch {
                        driver.queue.put(&mut driver.memory, chain.head(), 7).unwrap();
                        prop_assert!(driver.take_used().is_empty(), "nothing shows before all does");
                    }
                    driver.queue.publish(&mut driver.memory).unwrap();
                    let ids: Vec<_> = batch.iter().map(|(_, sent)| (sent.id, 7)).collect();
                    prop_assert_eq!(driver.take_used(), ids);
                }
                Step::Push(..) => {}
            }
        }
    }
}

#[test]
fn an_interrupt_comes_when_the_place_is_used_that_was_asked_for() {
    for size in [3, 4, 7] {
        let mut driver = Packed::new(size, EVENT_IDX | INDIRECT_DESC);
        for round in 0..40 {
            let place = moved(driver.used, 1, size);
            driver.want(place);
            for turn in 0..2 {
                assert!(driver.offer(1, false));
                let chain = driver.pop().unwrap();
                driver.push(&chain, 0);
                let wants = driver.queue.wants_interrupt(&driver.memory).unwrap();
                assert_eq!(wants, turn == 1, "size {size}, round {round}, turn {turn}");
                assert!(!driver.queue.wants_interrupt(&driver.memory).unwrap(), "once");
                driver.take_used();
            }
        }
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let mut driver = Packed::new(4, 0);
    for (flags, wanted) in [(1u32, false), (0, true)] {
        driver.memory.write_u32(DRIVER_EVENT, flags << 16).unwrap();
        driver.offer(2, false);
        let chain = driver.pop().unwrap();
        driver.push(&chain, 0);
        assert_eq!(driver.queue.wants_interrupt(&driver.memory), Ok(wanted));
        driver.take_used();
    }
}

#[test]
fn the_device_asks_for_a_notification_where_it_stopped() {
    let mut driver = Packed::new(3, EVENT_IDX);
    for round in 0..10u16 {
        assert!(driver.pop().is_none());
        let (slot, wrap) = (round % 3, round / 3 % 2 == 0);
        let event = u32::from(slot) | u32::from(wrap) << 15 | 2 << 16;
        assert_eq!(driver.memory.read_u32(DEVICE_EVENT), Ok(event));
        driver.offer(1, false);
        let chain = driver.pop().unwrap();
        driver.push(&chain, 0);
        driver.take_used();
    }
}

/// What comes of a ring whose first descriptors are these: length, id, flags.
fn refused(features: u64, descriptors: &[(u32, u16, u16)]) -> DriverError {
    let mut driver = Packed::new(4, features);
    for (slot, &(len, id, flags)) in (0..).zip(descriptors) {
        driver.put(Packed::descriptor(slot), TABLES, len, id);
        driver.memory.write_u16(Packed::descriptor(slot) + 14, flags).unwrap();
    }
    driver.queue.pop(&driver.memory, &mut Chain::new()).unwrap_err()
}

#[test]
fn what_no_driver_may_offer_is_refused() {
    let endless = [(1, 0, AVAIL | NEXT); 4];
    assert_eq!(refused(0, &endless), DriverError::ChainLength);
    assert_eq!(refused(0, &[(16, 0, AVAIL | INDIRECT)]), DriverError::IndirectTable);
    let table = INDIRECT_DESC;
    assert_eq!(refused(table, &[(16, 0, AVAIL | INDIRECT | NEXT)]), DriverError::IndirectTable);
    assert_eq!(refused(table, &[(17, 0, AVAIL | INDIRECT)]), DriverError::IndirectTable);
    assert_eq!(refused(table, &[(0, 0, AVAIL | INDIRECT)]), DriverError::IndirectTable);
    assert_eq!(refused(table, &[(16 * 5, 0, AVAIL | INDIRECT)]), DriverError::ChainLength);
    assert_eq!(refused(0, &[(1, 0, AVAIL | NEXT | WRITE), (1, 0, AVAIL)]), DriverError::ChainOrder);
    let both = [(u32::MAX, 0, AVAIL | NEXT), (u32::MAX, 0, AVAIL)];
    assert_eq!(refused(0, &both), DriverError::ChainBytes);
}

#[test]
fn a_driver_that_offers_slots_which_the_device_has_is_refused() {
    let mut driver = Packed::new(2, 0);
    driver.offer(1, false);
    driver.offer(1, false);
    let _both = (driver.pop().unwrap(), driver.pop().unwrap());
    // The second round, as if the first had been given back.
    driver.memory.write_u16(Packed::descriptor(0) + 14, USED).unwrap();
    let error = driver.queue.pop(&driver.memory, &mut Chain::new());
    assert_eq!(error, Err(DriverError::InFlight));
}

#[test]
fn a_packed_ring_has_any_size_up_to_the_largest() {
    for (size, is_good) in [(1, true), (3, true), (64, true), (0, false), (65, false)] {
        let mut queue = Queue::new(64);
        queue.set_size(size);
        assert_eq!(queue.enable(RING_PACKED).is_ok(), is_good, "{size}");
    }
    let mut queue = Queue::new(64);
    queue.addresses_mut().available = 2;
    assert_eq!(queue.enable(RING_PACKED), Err(DriverError::QueueAddress(2)));
}
