//! Both ends together, and each with a peer that means harm.

use crate::{Client, Server, Signal, Wait, Watch};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering;
use core::task::Poll;
use proptest::prelude::*;
use usys::Window;
use vdev::block::{Backend, BlockError, Completion, Request, Token};
use vdev::guest_mem::{GuestMemory, VecMemory};
use vdev::segment::Segment;
use vmm_protocol::block::*;

const DISK: DiskInfo = DiskInfo { sectors: 1024, is_read_only: false, has_cache: true };

#[derive(Clone, Debug, Default)]
struct Bell(Rc<Cell<u32>>);

impl Signal for Bell {
    fn signal(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A driver with sectors in memory.
struct Driver {
    server: Server<Bell>,
    content: Vec<u8>,
    flushes: u32,
}

impl Driver {
    fn new(window: Window, session: u32) -> Self {
        let server = Server::new(window, Bell::default(), session, DISK).unwrap();
        Driver { server, content: vec![0; DISK.sectors as usize * SECTOR_BYTES], flushes: 0 }
    }

    fn run(&mut self) {
        if self.server.is_asked_to_begin() {
            self.server.begin();
        }
        while let Some(request) = self.server.take() {
            let data = self.server.data(request.slot, request.bytes()).unwrap();
            let start = request.sector as usize * SECTOR_BYTES;
            let sectors = &mut self.content[start..start + request.bytes()];
            match request.operation {
                Operation::Read => data.write(0, sectors).unwrap(),
                Operation::Write => data.read(0, sectors).unwrap(),
                Operation::Flush => self.flushes += 1,
            }
            self.server.complete(request.slot, Status::Done);
        }
        self.server.notify();
    }
}

struct Fixture {
    window: Window,
    client: Client<Bell>,
    driver_bell: Bell,
    memory: VecMemory,
}

fn fixture() -> Fixture {
    let window = Window::leak(CHANNEL_BYTES);
    let driver_bell = Bell::default();
    let client = Client::new(window, driver_bell.clone()).unwrap();
    Fixture { window, client, driver_bell, memory: VecMemory::new(4 << 20) }
}

fn connected() -> (Fixture, Driver) {
    let mut fixture = fixture();
    let mut driver = Driver::new(fixture.window, 1);
    driver.run();
    assert_eq!(fixture.client.connect(), Some(DISK));
    (fixture, driver)
}

impl Fixture {
    fn submit(&mut self, token: u64, request: Request<'_>) -> Poll<Completion> {
        self.client.submit(&mut self.memory, Token(token), &request)
    }

    fn completed(&mut self) -> Vec<(u64, Completion)> {
        let mut all = Vec::new();
        while let Some((Token(token), result)) = self.client.take_completed(&mut self.memory) {
            all.push((token, result));
        }
        all
    }

    /// Lets the driver work until the client has nothing more to say.
    fn settle(&mut self, driver: &mut Driver) -> Vec<(u64, Completion)> {
        let mut all = Vec::new();
        for _ in 0..64 {
            driver.run();
            all.extend(self.completed());
        }
        all
    }
}

const ONE: [Segment; 1] = [Segment { gpa: 0, len: 512 }];

#[test]
fn what_is_written_is_read_back_however_long_and_scattered_it_is() {
    let (mut fixture, mut driver) = connected();
    for address in (0..400 << 10).step_by(8) {
        fixture.memory.write_u64(address, address | 0xabcd << 48).unwrap();
    }
    // 300 KiB: more than four slots; the pieces end nowhere near a slot's end.
    let from = [Segment { gpa: 100, len: 1000 }, Segment { gpa: 4096, len: (300 << 10) - 1000 }];
    let into = [Segment { gpa: 1 << 20, len: (300 << 10) - 17 }, Segment { gpa: 2 << 20, len: 17 }];
    assert!(fixture.submit(1, Request::Write { sector: 3, from: &from }).is_pending());
    assert!(fixture.submit(2, Request::Flush).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(1, Ok(())), (2, Ok(()))]);
    assert_eq!(driver.flushes, 1);
    assert!(fixture.submit(3, Request::Read { sector: 3, into: &into }).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(3, Ok(()))]);
    for offset in [0, 999, 1000, 65_535, 65_536, (300 << 10) - 18] {
        let source = if offset < 1000 { 100 + offset } else { 4096 + offset - 1000 };
        assert_eq!(fixture.memory.read_u8((1 << 20) + offset), fixture.memory.read_u8(source), "{offset}");
    }
    assert_eq!(fixture.memory.read_u64(2 << 20), fixture.memory.read_u64(4096 + (300 << 10) - 1017));
    let zeroes = Request::WriteZeroes { sector: 3, count: 500, may_discard: false };
    assert!(fixture.submit(4, zeroes).is_pending());
    fixture.settle(&mut driver);
    assert!(driver.content[3 * 512..503 * 512].iter().all(|&byte| byte == 0));
    assert!(driver.content[503 * 512..604 * 512].iter().any(|&byte| byte != 0));
}

#[test]
fn more_requests_than_slots_wait_for_their_turn() {
    let (mut fixture, mut driver) = connected();
    for token in 0..200 {
        assert!(fixture.submit(token, Request::Write { sector: token, from: &ONE }).is_pending());
    }
    let tokens: Vec<u64> = fixture.settle(&mut driver).into_iter().map(|(token, _)| token).collect();
    assert_eq!(tokens, (0..200).collect::<Vec<_>>());
}

#[test]
fn a_sleeping_driver_is_signalled_once() {
    let (mut fixture, mut driver) = connected();
    let before = fixture.driver_bell.0.get();
    let _ = fixture.submit(0, Request::Flush);
    assert_eq!(fixture.driver_bell.0.get(), before, "it is awake");
    assert_eq!(driver.server.prepare_to_wait(), Wait::Serve);
    driver.run();
    assert_eq!(driver.server.prepare_to_wait(), Wait::Sleep);
    let _ = fixture.submit(1, Request::Flush);
    let _ = fixture.submit(2, Request::Flush);
    assert_eq!(fixture.driver_bell.0.get(), before + 1);
}

#[test]
fn the_guests_bad_memory_fails_its_request_alone() {
    let (mut fixture, mut driver) = connected();
    let nowhere = [Segment { gpa: u64::MAX - 100, len: 512 }];
    let write = fixture.submit(1, Request::Write { sector: 0, from: &nowhere });
    assert!(matches!(write, Poll::Ready(Err(BlockError::Memory(_)))));
    assert!(fixture.submit(2, Request::Read { sector: 0, into: &nowhere }).is_pending());
    assert!(fixture.submit(3, Request::Read { sector: 0, into: &ONE }).is_pending());
    let completed = fixture.settle(&mut driver);
    assert!(matches!(completed[..], [(2, Err(BlockError::Memory(_))), (3, Ok(()))]), "{completed:?}");
}

#[test]
fn a_driver_that_dies_leaves_errors_and_its_successor_serves_on() {
    let (mut fixture, mut driver) = connected();
    for token in 0..40 {
        assert!(fixture.submit(token, Request::Read { sector: token, into: &ONE }).is_pending());
    }
    // The root task says so.
    fixture.window.atomic_u64(SERVED).unwrap().store(0, Ordering::Release);
    let completed = fixture.completed();
    assert_eq!(completed.len(), 40);
    assert!(completed.iter().all(|&(_, result)| result == Err(BlockError::Io)));
    let refused = fixture.submit(40, Request::Flush);
    assert_eq!(refused, Poll::Ready(Err(BlockError::Io)), "nobody is there");
    driver = Driver { content: driver.content, ..Driver::new(fixture.window, 2) };
    driver.run();
    assert!(fixture.submit(41, Request::Write { sector: 0, from: &ONE }).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(41, Ok(()))]);
}

#[test]
fn a_restart_that_is_too_quick_to_be_seen_is_noticed() {
    let (mut fixture, _) = connected();
    fixture.memory.write_u64(0, 7).unwrap();
    assert!(fixture.submit(1, Request::Write { sector: 0, from: &ONE }).is_pending());
    let mut driver = Driver::new(fixture.window, 2);
    driver.run();
    assert_eq!(driver.content[0], 0, "a request to the last driver is not this one's");
    assert_eq!(fixture.settle(&mut driver), [(1, Err(BlockError::Io))]);
    assert!(fixture.submit(2, Request::Write { sector: 0, from: &ONE }).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(2, Ok(()))]);
    assert_eq!(driver.content[0], 7);
}

#[test]
fn a_vmm_that_restarts_begins_with_empty_rings() {
    let (mut fixture, mut driver) = connected();
    assert!(fixture.submit(1, Request::Write { sector: 0, from: &ONE }).is_pending());
    fixture.client = Client::new(fixture.window, Bell::default()).unwrap();
    assert_eq!(fixture.client.connect(), None, "the driver has not seen it");
    assert_eq!(driver.server.prepare_to_wait(), Wait::Begin, "it may have to wait for its device first");
    driver.run();
    assert_eq!(fixture.client.connect(), Some(DISK));
    assert!(fixture.submit(9, Request::Read { sector: 0, into: &ONE }).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(9, Ok(()))]);
}

#[test]
fn another_disk_is_not_taken_for_the_one_the_guest_knows() {
    let (mut fixture, _) = connected();
    let other = DiskInfo { sectors: 5, ..DISK };
    let mut server = Server::new(fixture.window, Bell::default(), 2, other).unwrap();
    server.begin();
    let _ = fixture.completed();
    server.begin();
    let refused = fixture.submit(1, Request::Flush);
    assert_eq!(refused, Poll::Ready(Err(BlockError::Io)));
}

#[test]
fn a_reset_device_hears_nothing_of_what_it_asked_before() {
    let (mut fixture, mut driver) = connected();
    for token in 0..40 {
        assert!(fixture.submit(token, Request::Read { sector: 0, into: &ONE }).is_pending());
    }
    driver.content.fill(0xff);
    fixture.client.abandon();
    assert!(fixture.submit(0, Request::Flush).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(0, Ok(()))]);
    assert_eq!(fixture.memory.read_u64(0), Ok(0), "an abandoned read touches no memory");
}

#[test]
fn a_device_that_was_reset_with_every_slot_taken_works() {
    let (mut fixture, mut driver) = connected();
    for token in 0..40 {
        assert!(fixture.submit(token, Request::Read { sector: 0, into: &ONE }).is_pending());
    }
    fixture.client.abandon();
    // Whoever is signalled for these has nothing in flight, and does not look.
    driver.run();
    assert_eq!(driver.server.prepare_to_wait(), Wait::Sleep);
    let before = fixture.driver_bell.0.get();
    assert!(fixture.submit(0, Request::Read { sector: 0, into: &ONE }).is_pending());
    assert_eq!(fixture.driver_bell.0.get(), before + 1, "it is at the driver");
    assert_eq!(fixture.settle(&mut driver), [(0, Ok(()))]);
}

#[test]
fn one_request_is_abandoned_and_the_others_go_on() {
    let (mut fixture, mut driver) = connected();
    for token in 0..40 {
        assert!(fixture.submit(token, Request::Write { sector: token, from: &ONE }).is_pending());
    }
    // One at the driver, and one that waits for a slot.
    fixture.client.abandon_one(Token(3));
    fixture.client.abandon_one(Token(39));
    let tokens: Vec<u64> = fixture.settle(&mut driver).into_iter().map(|(token, _)| token).collect();
    assert_eq!(tokens, (0..39).filter(|&token| token != 3).collect::<Vec<_>>());
}

#[test]
fn a_driver_that_restarts_while_nothing_is_asked_costs_nothing() {
    let (mut fixture, _) = connected();
    let mut driver = Driver::new(fixture.window, 2);
    assert_eq!(fixture.completed(), [], "it signals, and the client looks");
    driver.run();
    assert!(fixture.submit(1, Request::Write { sector: 0, from: &ONE }).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(1, Ok(()))]);
}

#[test]
fn a_driver_that_restarts_while_nobody_looks_costs_nothing_either() {
    let (mut fixture, _) = connected();
    let mut driver = Driver::new(fixture.window, 2);
    driver.run();
    assert!(fixture.submit(1, Request::Write { sector: 0, from: &ONE }).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(1, Ok(()))]);
}

#[test]
fn what_is_asked_of_a_driver_that_starts_waits_for_it_or_fails_with_it() {
    let (mut fixture, _) = connected();
    assert!(fixture.submit(1, Request::Write { sector: 0, from: &ONE }).is_pending());
    // The root task ends the driver, and says that the next one comes.
    let announce = |fixture: &Fixture, session| {
        let served = Served { session, epoch: 0 }.encode();
        fixture.window.atomic_u64(SERVED).unwrap().store(served, Ordering::Release);
    };
    announce(&fixture, 2);
    assert_eq!(fixture.completed(), [(1, Err(BlockError::Io))], "that one is lost");
    for token in 2..4 {
        assert!(fixture.submit(token, Request::Read { sector: 0, into: &ONE }).is_pending());
    }
    assert_eq!(fixture.completed(), []);
    announce(&fixture, 3);
    assert_eq!(fixture.completed(), [(2, Err(BlockError::Io)), (3, Err(BlockError::Io))]);
    assert!(fixture.submit(4, Request::Flush).is_pending());
    let mut driver = Driver::new(fixture.window, 3);
    assert_eq!(fixture.settle(&mut driver), [(4, Ok(()))]);
    announce(&fixture, 4);
    assert_eq!(fixture.submit(5, Request::Flush), Poll::Pending);
    announce(&fixture, 0);
    assert_eq!(fixture.completed(), [(5, Err(BlockError::Io))], "none comes any more");
}

#[test]
fn requests_the_disk_cannot_do_are_the_users_own_trouble() {
    let (mut fixture, mut driver) = connected();
    let beyond = Request::Read { sector: 1024, into: &ONE };
    assert!(fixture.submit(1, beyond).is_pending(), "the front end checks; this one did not");
    assert_eq!(fixture.settle(&mut driver), [(1, Err(BlockError::OutOfRange))]);
}

#[test]
fn a_driver_that_completes_what_nobody_asked_for_is_dropped() {
    for lie in 0..2 {
        let (mut fixture, mut driver) = connected();
        assert!(fixture.submit(1, Request::Flush).is_pending());
        match lie {
            0 => driver.server.complete(17, Status::Done),
            _ => fixture.window.atomic_u32(COMPLETION_HEAD).unwrap().store(1000, Ordering::Release),
        }
        assert_eq!(fixture.completed(), [(1, Err(BlockError::Io))]);
        driver.run();
        assert!(fixture.submit(2, Request::Flush).is_pending(), "it gets another chance");
        assert_eq!(fixture.settle(&mut driver), [(2, Ok(()))]);
    }
}

#[test]
fn a_driver_that_does_nothing_is_stuck_and_an_idle_or_a_slow_one_is_not() {
    let mut fixture = fixture();
    let mut watch = Watch::new(fixture.window).unwrap();
    assert!(!watch.is_stuck(), "it may need its time to find its disk");
    assert!(watch.is_stuck(), "but it begins no epoch");
    watch.forget();
    assert!(!watch.is_stuck(), "the next one has its time too");
    let mut driver = Driver::new(fixture.window, 1);
    driver.run();
    assert_eq!(fixture.client.connect(), Some(DISK));
    for _ in 0..3 {
        assert!(!watch.is_stuck(), "it has nothing to do");
    }
    for token in 0..9 {
        assert!(fixture.submit(token, Request::Read { sector: token, into: &ONE }).is_pending());
    }
    assert!(!watch.is_stuck(), "that was just now");
    for _ in 0..3 {
        let request = driver.server.take().unwrap();
        driver.server.complete(request.slot, Status::Done);
        assert!(!watch.is_stuck(), "it has done one of many");
    }
    assert!(watch.is_stuck(), "and then no more");
}

#[test]
fn a_user_that_floods_the_ring_is_not_served_before_it_begins_again() {
    let (mut fixture, mut driver) = connected();
    fixture.window.atomic_u32(REQUEST_HEAD).unwrap().store(33, Ordering::Release);
    assert_eq!(driver.server.take(), None);
    fixture.window.atomic_u32(REQUEST_HEAD).unwrap().store(1, Ordering::Release);
    assert_eq!(driver.server.take(), None);
    assert_eq!(driver.server.prepare_to_wait(), Wait::Sleep, "and does not keep the driver busy");
    fixture.client = Client::new(fixture.window, Bell::default()).unwrap();
    driver.run();
    assert!(fixture.submit(1, Request::Flush).is_pending());
    assert_eq!(fixture.settle(&mut driver), [(1, Ok(()))]);
}

/// What a stranger does to the channel between two steps of one end.
#[derive(Clone, Debug)]
enum Harm {
    Word { offset: usize, value: u32 },
    Nothing,
}

fn harm() -> impl Strategy<Value = Harm> {
    let control = prop_oneof![
        Just(SERVED),
        Just(SERVED + 4),
        Just(SECTORS),
        Just(FLAGS),
        Just(EPOCH),
        Just(REQUEST_HEAD),
        Just(DRIVER_SLEEPS),
        Just(COMPLETION_HEAD)
    ];
    let ring = (0..512usize).prop_map(|index| 1024 + index * 4);
    let value = prop_oneof![0..40u32, any::<u32>()];
    prop_oneof![
        (prop_oneof![control, ring], value).prop_map(|(offset, value)| Harm::Word { offset, value }),
        Just(Harm::Nothing),
    ]
}

fn inflict(window: Window, harm: &Harm) {
    if let Harm::Word { offset, value } = *harm {
        window.atomic_u32(offset).unwrap().store(value, Ordering::Release);
    }
}

proptest! {
    #[test]
    fn no_driver_makes_a_client_lose_count(harms in prop::collection::vec(harm(), 1..60)) {
        let (mut fixture, mut driver) = connected();
        let (mut pending, mut next) = (Vec::new(), 0);
        for harm in harms {
            let request = Request::Read { sector: next % 1000, into: &ONE };
            if fixture.submit(next, request).is_pending() {
                pending.push(next);
            }
            next += 1;
            driver.run();
            inflict(fixture.window, &harm);
            for (token, _) in fixture.completed() {
                let at = pending.iter().position(|&other| other == token);
                prop_assert!(at.is_some(), "{token} was completed twice, or never asked for");
                pending.swap_remove(at.unwrap());
            }
        }
    }

    #[test]
    fn no_user_makes_a_server_leave_its_disk_or_its_memory(harms in prop::collection::vec(harm(), 1..60)) {
        let (fixture, mut driver) = connected();
        for harm in harms {
            inflict(fixture.window, &harm);
            // `run` would panic on a request outside.
            driver.run();
            let _ = driver.server.prepare_to_wait();
        }
    }
}
