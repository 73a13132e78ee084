//! The block device.

use super::*;
use crate::block::{Backend, BlockError, Completion, Geometry, Request, Token};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::task::Poll;
use proptest::prelude::*;

#[test]
fn a_driver_reads_writes_flushes_and_asks_for_the_name() {
    for features in [0, EVENT_IDX | INDIRECT_DESC] {
        let mut driver = Driver::new(block(false), features, 16);
        let two_sectors = [Buffer::Write(DATA, 100), Buffer::Write(DATA + 0x1000, 924)];
        assert_eq!(driver.request(0, 5, &two_sectors), (OK, 1025));
        assert_eq!(driver.bytes(DATA, 101), [vec![5; 100], vec![0]].concat());
        assert_eq!(driver.bytes(DATA + 0x1000, 924), [vec![5; 412], vec![6; 512]].concat());
        assert_eq!(driver.request(1, 9, &[Buffer::Read(DATA + 0x1000, 512)]), (OK, 1));
        assert_eq!(driver.request(4, 0, &[]), (OK, 1));
        assert_eq!(driver.request(0, 9, &[Buffer::Write(DATA, 512)]), (OK, 513));
        assert_eq!(driver.bytes(DATA, 512), [vec![5; 412], vec![6; 100]].concat());
        assert_eq!(driver.request(8, 0, &[Buffer::Write(DATA, 20)]), (OK, 21));
        assert_eq!(driver.bytes(DATA, 20), ID);
    }
}

#[test]
fn a_driver_may_cut_a_request_anywhere() {
    let mut driver = Driver::new(block(false), 0, 16);
    driver.header(1, 7);
    driver.memory.write(DATA, &[0x77; 512]).unwrap();
    // The end of the header lies right before the data.
    let end = driver.bytes(HEADER + 10, 6);
    driver.memory.write(DATA - 6, &end).unwrap();
    let write = [
        Buffer::Read(HEADER, 3),
        Buffer::Read(HEADER + 3, 7),
        Buffer::Read(0, 0),
        Buffer::Read(DATA - 6, 6 + 512),
        Buffer::Write(STATUS, 1),
    ];
    assert_eq!(driver.transfer(&write), 1);
    driver.header(0, 7);
    let read = [Buffer::Read(HEADER, 16), Buffer::Write(DATA + 0x1000, 513), Buffer::Write(0, 0)];
    assert_eq!(driver.transfer(&read), 513);
    assert_eq!(driver.bytes(DATA + 0x1000, 513), [vec![0x77; 512], vec![OK]].concat());
}

#[test]
fn sectors_are_discarded_and_zeroed() {
    let mut driver = Driver::new(block(false), 0, 16);
    let mut zero = |kind, sector: u64, count: u32, flags: u32| {
        driver.memory.write_u64(DATA, sector).unwrap();
        driver.memory.write_u32(DATA + 8, count).unwrap();
        driver.memory.write_u32(DATA + 12, flags).unwrap();
        driver.request(kind, 0, &[Buffer::Read(DATA, 16)]).0
    };
    assert_eq!(zero(11, 3, 2, 0), OK);
    assert_eq!(zero(13, 10, 1, 1), OK);
    assert_eq!(zero(11, 3, 2, 1), UNSUPP, "discarding always gives back");
    assert_eq!(zero(13, 3, 2, 2), UNSUPP);
    assert_eq!(zero(13, 3, u32::MAX, 0), UNSUPP);
    assert_eq!(zero(13, SECTORS, 1, 0), IOERR);
    for (sector, byte) in [(2, 2), (3, 0), (4, 0), (5, 5), (10, 0)] {
        driver.request(0, sector, &[Buffer::Write(DATA, 512)]);
        assert_eq!(driver.bytes(DATA, 512), [byte; 512], "sector {sector}");
    }
}

#[test]
fn requests_that_the_disk_cannot_do_fail_and_the_device_goes_on() {
    let mut driver = Driver::new(block(true), 0, 16);
    let data = [Buffer::Write(DATA, 512)];
    assert_eq!(driver.request(0, SECTORS, &data), (IOERR, 0));
    assert_eq!(driver.request(0, u64::MAX, &data), (IOERR, 0));
    assert_eq!(driver.request(0, 0, &[Buffer::Write(DATA, 511)]), (IOERR, 0));
    assert_eq!(driver.request(1, 0, &[Buffer::Read(DATA, 512)]), (IOERR, 0));
    assert_eq!(driver.request(0x55, 0, &data), (UNSUPP, 0));
    assert_eq!(driver.request(0, 0, &data), (OK, 513));
    assert!(!driver.needs_reset());
}

const FLUSH: u64 = 1 << 9;

/// A disk that takes its time, and cannot flush.
#[derive(Clone)]
struct Slow {
    pending: Rc<RefCell<VecDeque<(Token, Completion)>>>,
    /// How many requests it holds.
    room: usize,
    /// How often it was asked what it has completed.
    asked: Rc<Cell<u32>>,
}

impl Default for Slow {
    fn default() -> Self {
        Slow { pending: Rc::default(), room: usize::MAX, asked: Rc::default() }
    }
}

impl Backend for Slow {
    fn geometry(&self) -> Geometry {
        Geometry { sectors: 1 << 20, is_read_only: false, can_discard: false, has_cache: true }
    }

    fn submit(&mut self, _: &mut dyn GuestMemory, token: Token, request: &Request<'_>) -> Poll<Completion> {
        let completion = if *request == Request::Flush { Err(BlockError::Io) } else { Ok(()) };
        self.pending.borrow_mut().push_back((token, completion));
        Poll::Pending
    }

    fn has_room(&self) -> bool {
        self.pending.borrow().len() < self.room
    }

    fn take_completed(&mut self, _: &mut dyn GuestMemory) -> Option<(Token, Completion)> {
        self.asked.set(self.asked.get() + 1);
        self.pending.borrow_mut().pop_back()
    }

    fn abandon(&mut self) {
        self.pending.borrow_mut().clear();
    }

    fn abandon_one(&mut self, token: Token) {
        self.pending.borrow_mut().retain(|pending| pending.0 != token);
    }
}

fn slow_block(slow: &Slow, features: u64) -> Driver<Block> {
    Driver::new(Block::new(Disk::new(Box::new(slow.clone())), ID, 1), features | FLUSH, 8)
}

#[test]
fn requests_come_back_in_the_order_in_which_the_disk_completes_them() {
    let slow = Slow::default();
    let mut driver = slow_block(&slow, INDIRECT_DESC);
    for (at, kind) in [1, 4].into_iter().enumerate() {
        let at = at as u64 * 16;
        driver.memory.write_u32(HEADER + at, kind).unwrap();
        driver.offer(&[Buffer::Read(HEADER + at, 16), Buffer::Write(STATUS + at, 1)]);
    }
    driver.notify();
    assert!(driver.take_used().is_empty());
    driver.poll();
    assert_eq!(driver.take_used(), [(1, 0), (0, 1)]);
    assert_eq!((driver.bytes(STATUS, 1), driver.bytes(STATUS + 16, 1)), (vec![OK], vec![IOERR]));
    assert_eq!(driver.interrupts, 1);
    driver.poll();
    assert_eq!(driver.interrupts, 1);
}

#[test]
fn a_request_is_given_back_to_the_queue_that_it_came_by() {
    const MQ: u64 = 1 << 12;
    let slow = Slow::default();
    let mut driver =
        Driver::new(Block::new(Disk::new(Box::new(slow.clone())), ID, 3), MQ | FLUSH | EVENT_IDX, 8);
    assert_eq!(driver.device.read(0x100 + 34, 2), 3);
    for queue in [2, 0, 1] {
        driver.header(if queue == 0 { 4 } else { 1 }, 0);
        driver.select(queue);
        driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS + queue as u64, 1)]);
        driver.notify();
    }
    for queue in 0..3 {
        driver.select(queue);
        assert!(driver.take_used().is_empty());
    }
    driver.poll();
    for (queue, status) in [(2, OK), (0, IOERR), (1, OK)] {
        driver.select(queue);
        assert_eq!(driver.take_used(), [(0, u32::from(status == OK))], "queue {queue}");
        assert_eq!(driver.bytes(STATUS + queue as u64, 1), [status]);
    }
}

#[test]
fn after_a_reset_nothing_of_the_time_before_comes_back() {
    let slow = Slow::default();
    let mut driver = slow_block(&slow, 0);
    driver.header(1, 0);
    driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
    driver.notify();
    let late = slow.pending.borrow()[0];
    driver.start(0, 8);
    assert!(slow.pending.borrow().is_empty());
    // Even if a backend does not obey.
    slow.pending.borrow_mut().push_back(late);
    driver.poll();
    assert!(driver.take_used().is_empty());
    assert_eq!(driver.bytes(STATUS, 1), [0xaa]);
}

#[test]
fn a_queue_that_its_driver_takes_back_is_left_alone() {
    const MQ: u64 = 1 << 12;
    let slow = Slow::default();
    let block = Block::new(Disk::new(Box::new(slow.clone())), ID, 2);
    let mut driver = Driver::new(block, MQ | FLUSH, 8);
    for queue in 0..2 {
        driver.header(1, 0);
        driver.memory.write_u8(STATUS + queue, 0xaa).unwrap();
        driver.select(queue as usize);
        driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS + queue, 1)]);
        driver.notify();
    }
    // QueueReady of queue 0.
    driver.write(0x030, 0);
    driver.write(0x044, 0);
    assert_eq!(slow.pending.borrow().len(), 1);
    driver.write(0x044, 1);
    driver.poll();
    assert_eq!(driver.bytes(STATUS, 2), [0xaa, OK]);
    driver.select(0);
    assert!(driver.take_used().is_empty());
    driver.select(1);
    assert_eq!(driver.take_used(), [(0, 1)]);
}

#[test]
fn what_a_driver_that_cannot_flush_has_written_is_flushed_before_it_is_done() {
    // The disk fails what flushes, which shows in the status.
    for (kind, without, with) in [(1, IOERR, OK), (13, IOERR, OK), (0, OK, OK), (4, IOERR, IOERR)] {
        for (features, expected) in [(0, without), (FLUSH, with)] {
            let slow = Slow::default();
            let block = Block::new(Disk::new(Box::new(slow.clone())), ID, 1);
            let mut driver = Driver::new(block, features, 8);
            driver.header(kind, 0);
            driver.memory.write(DATA, &[0; 16]).unwrap();
            let data = [Buffer::Read(DATA, 16)];
            let data = if kind == 13 { &data[..] } else { &[] };
            driver.offer(&[&[Buffer::Read(HEADER, 16)], data, &[Buffer::Write(STATUS, 1)]].concat());
            driver.notify();
            assert!(driver.take_used().is_empty());
            driver.poll();
            assert_eq!(driver.bytes(STATUS, 1), [expected], "request {kind} with features {features:#x}");
            assert_eq!(driver.take_used().len(), 1);
        }
    }
}

#[test]
fn requests_stay_in_the_ring_while_the_disk_has_no_room() {
    let slow = Slow { room: 2, ..Slow::default() };
    let mut driver = slow_block(&slow, INDIRECT_DESC | EVENT_IDX);
    driver.header(1, 0);
    for _ in 0..5 {
        driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
        driver.notify();
        assert!(slow.pending.borrow().len() <= 2);
    }
    for done in [2, 2, 1, 0] {
        driver.poll();
        driver.run();
        assert_eq!(driver.take_used().len(), done);
    }
    // The next one is asked for as usual.
    let old = driver.available_index();
    driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
    assert!(driver.must_notify(old));
}

#[test]
fn a_disk_is_asked_for_news_though_nothing_is_in_flight() {
    let slow = Slow::default();
    let mut driver = slow_block(&slow, 0);
    driver.poll();
    assert_eq!((slow.asked.get(), driver.interrupts), (1, 0));
}

#[test]
fn a_chain_that_is_offered_again_and_again_fills_no_memory() {
    let slow = Slow::default();
    let mut driver = slow_block(&slow, 0);
    driver.header(1, 0);
    let head = driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
    while !driver.needs_reset() {
        driver.put_available(head);
        driver.notify();
        assert!(slow.pending.borrow().len() <= 256);
    }
    assert_eq!(driver.device.take_error(), Some(DriverError::InFlight));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_disk_reads_as_what_was_written_last(
        requests in prop::collection::vec((any::<bool>(), 0..SECTORS, 1u64..5, prop::collection::vec(1u32..1500, 1..6), any::<u8>()), 1..60),
        features in prop::sample::select(vec![0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC]),
    ) {
        let mut driver = Driver::new(block(false), features, 16);
        let mut model: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8; 512]).collect();
        for (is_write, sector, count, cuts, byte) in requests {
            let count = count.min(SECTORS - sector);
            let mut left = count as u32 * 512;
            let mut gpa = DATA;
            let mut buffers = Vec::new();
            for cut in cuts.into_iter().chain([u32::MAX]) {
                let len = cut.min(left);
                if len > 0 {
                    buffers.push(if is_write { Buffer::Read(gpa, len) } else { Buffer::Write(gpa, len) });
                }
                gpa += u64::from(len);
                left -= len;
            }
            let range = sector as usize * 512..(sector + count) as usize * 512;
            if is_write {
                let bytes: Vec<u8> = (0..range.len()).map(|at| (at / 7) as u8 ^ byte).collect();
                driver.memory.write(DATA, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
                prop_assert_eq!(driver.request(1, sector, &buffers), (OK, 1));
            } else {
                prop_assert_eq!(driver.request(0, sector, &buffers), (OK, range.len() as u32 + 1));
                prop_assert_eq!(&driver.bytes(DATA, range.len()), &model[range]);
            }
        }
    }
}
