//! The memory order of a queue (SPEC.md 11.3, rules 1 to 4), in every interleaving that the memory model of C11 allows.
//!
//! Both sides do what `queue.rs` and `vdev::pvring` do, access by access; entries are cells whose unordered use loom finds, and
//! a doorbell or an interrupt that is lost leaves both sides asleep, which loom finds as well.

use hypercall_abi::guest::ring::{Word, is_due};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Arc, Notify};
use loom::thread;

const SIZE: usize = 2;
const REQUESTS: u32 = 2;

struct Shared {
    driver: AtomicU64,
    device: AtomicU64,
    requests: [UnsafeCell<u32>; SIZE],
    completions: [UnsafeCell<u32>; SIZE],
    doorbell: Notify,
    interrupt: Notify,
}

impl Shared {
    fn new() -> Self {
        Shared {
            driver: AtomicU64::new(0),
            device: AtomicU64::new(0),
            requests: [UnsafeCell::new(0), UnsafeCell::new(0)],
            completions: [UnsafeCell::new(0), UnsafeCell::new(0)],
            doorbell: Notify::new(),
            interrupt: Notify::new(),
        }
    }
}

fn load(word: &AtomicU64, order: Ordering) -> Word {
    Word::decode(word.load(order))
}

fn store(word: &AtomicU64, produced: u32, threshold: u32) {
    word.store(Word { produced, threshold }.encode(), Ordering::Release);
}

fn place(count: u32) -> usize {
    count as usize % SIZE
}

/// Serves until everything is completed; sleeps where there is nothing to do.
fn device(shared: &Shared) {
    let (mut seen, mut signalled) = (0, 0);
    loop {
        let submitted = load(&shared.driver, Ordering::Acquire).produced;
        while seen != submitted {
            // SAFETY: this is what the model checks: the driver does not write this place now.
            let request = shared.requests[place(seen)].with(|request| unsafe { *request });
            // SAFETY: the driver does not read this place now.
            shared.completions[place(seen)].with_mut(|completion| unsafe { *completion = request * 10 });
            seen += 1;
        }
        store(&shared.device, seen, seen);
        fence(Ordering::SeqCst);
        let driver = load(&shared.driver, Ordering::Acquire);
        if driver.produced != seen {
            continue;
        }
        if is_due(driver.threshold, signalled, seen) {
            shared.interrupt.notify();
        }
        signalled = seen;
        if seen == REQUESTS {
            return;
        }
        shared.doorbell.wait();
    }
}

/// Submits one request after the other, all at once or each when the one before is done, and sleeps until they are.
fn driver(shared: &Shared, in_flight: u32) {
    let (mut submitted, mut collected, mut threshold) = (0, 0, u32::MAX);
    while collected < REQUESTS {
        while submitted < REQUESTS && submitted - collected < in_flight {
            // SAFETY: the device does not read this place now.
            shared.requests[place(submitted)].with_mut(|request| unsafe { *request = submitted + 1 });
            let old = submitted;
            submitted += 1;
            store(&shared.driver, submitted, threshold);
            fence(Ordering::SeqCst);
            if is_due(load(&shared.device, Ordering::Relaxed).threshold, old, submitted) {
                shared.doorbell.notify();
            }
        }
        if load(&shared.device, Ordering::Acquire).produced == collected {
            threshold = collected;
            store(&shared.driver, submitted, threshold);
            fence(Ordering::SeqCst);
            if load(&shared.device, Ordering::Acquire).produced == collected {
                shared.interrupt.wait();
            }
            continue;
        }
        // SAFETY: the device does not write this place now.
        let completion = shared.completions[place(collected)].with(|completion| unsafe { *completion });
        assert_eq!(completion, (collected + 1) * 10);
        collected += 1;
    }
}

fn check(in_flight: u32) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let shared = Arc::new(Shared::new());
        let of_device = shared.clone();
        let device = thread::spawn(move || device(&of_device));
        driver(&shared, in_flight);
        device.join().unwrap();
    });
}

#[test]
fn requests_one_after_the_other_are_neither_lost_nor_torn() {
    check(1);
}

#[test]
fn requests_in_flight_together_are_neither_lost_nor_torn() {
    check(2);
}
