//! The kernel's protocols between CPUs, in every interleaving that the memory model of C11 allows.
//!
//! The code is the kernel's own (`src/sync`), compiled with loom's atomics. A word that is used while another CPU may change it, a
//! wake-up that is lost, and CPUs that wait for each other are what loom finds.

#![allow(unreachable_pub, reason = "the files below are public modules elsewhere")]

use atomic::{AtomicBool, AtomicU32, Ordering, spin_loop};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Notify};
use loom::thread;

#[path = "../src/sync/grace.rs"]
mod grace;
#[path = "../src/sync/halt.rs"]
mod halt;
#[path = "../src/sync/posted.rs"]
mod posted;
#[path = "../src/sync/ticket.rs"]
mod ticket;

use grace::Request;
use halt::{Halted, Kick};
use posted::Posted;
use ticket::Tickets;

/// Loom's atomics. It takes an access of order `SeqCst` for one of `AcqRel`. What the kernel has that order for is a store of one word
/// before a load of another; so here a store has a fence behind it, as a CPU's has, and a load is plain.
mod atomic {
    #![allow(dead_code, reason = "each type has the methods of all")]

    use loom::sync::atomic::fence;
    pub(crate) use std::sync::atomic::Ordering;

    pub(crate) fn spin_loop() {
        loom::thread::yield_now();
    }

    fn fence_if_seq_cst(order: Ordering) {
        if order == Ordering::SeqCst {
            fence(Ordering::SeqCst);
        }
    }

    fn weaker(order: Ordering, replacement: Ordering) -> Ordering {
        if order == Ordering::SeqCst { replacement } else { order }
    }

    macro_rules! atomic {
        ($name:ident, $value:ty $(, $operation:ident)*) => {
            #[derive(Debug, Default)]
            pub(crate) struct $name(loom::sync::atomic::$name);

            impl $name {
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(weaker(order, Ordering::Acquire))
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, weaker(order, Ordering::Release));
                    fence_if_seq_cst(order);
                }

                pub(crate) fn compare_exchange(
                    &self, old: $value, new: $value, success: Ordering, failure: Ordering,
                ) -> Result<$value, $value> {
                    fence_if_seq_cst(success);
                    let failure = weaker(failure, Ordering::Acquire);
                    let result = self.0.compare_exchange(old, new, weaker(success, Ordering::AcqRel), failure);
                    fence_if_seq_cst(success);
                    result
                }

                $(pub(crate) fn $operation(&self, value: $value, order: Ordering) -> $value {
                    fence_if_seq_cst(order);
                    let old = self.0.$operation(value, weaker(order, Ordering::AcqRel));
                    fence_if_seq_cst(order);
                    old
                })*
            }
        };
    }

    atomic!(AtomicBool, bool, swap);
    atomic!(AtomicU32, u32, fetch_add);
    atomic!(AtomicU64, u64, swap, fetch_or);
}

/// Runs `cpus`, each on a CPU of its own, in every order.
fn explore<S: Send + Sync + 'static>(new: fn() -> S, cpus: &'static [fn(&S)]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let shared = Arc::new(new());
        let others: Vec<_> = cpus[1..]
            .iter()
            .map(|cpu| {
                let shared = shared.clone();
                thread::spawn(move || cpu(&shared))
            })
            .collect();
        cpus[0](&shared);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

/// A lock and what it guards.
#[derive(Default)]
struct Locked {
    tickets: Tickets,
    value: UnsafeCell<u32>,
}

// SAFETY: what the model checks.
unsafe impl Sync for Locked {}

impl Locked {
    /// With the lock: changes the value, and lets go of the lock.
    fn change_and_release(&self) {
        // SAFETY: loom fails the model if another CPU uses it now.
        self.value.with_mut(|value| unsafe { *value += 1 });
        self.tickets.release();
    }
}

#[test]
fn a_lock_has_one_holder_whether_waited_for_or_tried() {
    fn waits(lock: &Locked) {
        lock.tickets.take();
        lock.change_and_release();
    }
    fn tries(lock: &Locked) {
        while !lock.tickets.try_take() {
            spin_loop();
        }
        lock.change_and_release();
    }
    fn tries_once(lock: &Locked) {
        if lock.tickets.try_take() {
            lock.change_and_release();
        }
    }
    explore(Locked::default, &[waits, tries]);
    explore(Locked::default, &[tries, tries]);
    explore(Locked::default, &[waits, waits]);
    explore(Locked::default, &[waits, tries_once, tries_once]);
}

/// What look-ups without locks need: slots with objects, one for each of two CPUs, and a request to each CPU.
#[derive(Default)]
struct Machine {
    tree: Locked,
    slots: [AtomicU32; 2],
    objects: [UnsafeCell<u32>; 2],
    requests: [Request; 2],
    is_over: [AtomicBool; 2],
}

// SAFETY: what the model checks.
unsafe impl Sync for Machine {}

const LIVE: u32 = 1;
const FREED: u32 = 2;

impl Machine {
    fn new() -> Self {
        let machine = Machine::default();
        for (slot, object) in machine.slots.iter().zip(&machine.objects) {
            slot.store(LIVE, Ordering::Relaxed);
            // SAFETY: nobody else is there yet.
            object.with_mut(|object| unsafe { *object = LIVE });
        }
        machine
    }

    /// A kernel entry that looks a slot up and uses what it found; whether it found something.
    fn look_up(&self, slot: usize) -> bool {
        // As plain as the kernel's loads.
        let is_there = self.slots[slot].load(Ordering::Relaxed) == LIVE;
        if is_there {
            // SAFETY: loom fails the model if it is freed now.
            self.objects[slot].with(|object| assert_eq!(unsafe { *object }, LIVE));
        }
        is_there
    }

    /// Takes CPU `me`'s object away and frees it, when the other CPU has let go of it.
    fn reclaim(&self, me: usize) {
        self.slots[me].store(0, Ordering::Relaxed);
        self.requests[1 - me].ask();
        while !self.requests[1 - me].is_served() {
            spin_loop();
        }
        // SAFETY: as in `look_up`.
        self.objects[me].with_mut(|object| unsafe { *object = FREED });
    }
}

#[test]
fn an_object_is_freed_when_no_look_up_can_find_it_any_more() {
    fn reclaims(machine: &Machine) {
        machine.reclaim(0);
    }
    fn looks_up(machine: &Machine) {
        let mut has_served = false;
        loop {
            machine.look_up(0);
            machine.requests[1].serve(|| has_served = true);
            if has_served {
                break;
            }
            spin_loop();
        }
        assert!(!machine.look_up(0), "what was taken away before the request is not found after it");
    }
    explore(Machine::new, &[reclaims, looks_up]);
}

/// What `lock_tree` and the dispatcher do: try, and serve whoever waits for this CPU meanwhile.
fn reclaims_under_the_tree_lock(machine: &Machine, me: usize) {
    while !machine.tree.tickets.try_take() {
        machine.look_up(1 - me);
        if machine.requests[me].is_open() {
            machine.requests[me].serve(|| {});
        }
        spin_loop();
    }
    machine.reclaim(me);
    machine.tree.change_and_release();
    machine.is_over[me].store(true, Ordering::Release);
    // Other kernel entries.
    while !machine.is_over[1 - me].load(Ordering::Acquire) {
        machine.requests[me].serve(|| {});
        spin_loop();
    }
}

#[test]
fn cpus_that_reclaim_at_once_do_not_wait_for_each_other_for_ever() {
    explore(
        Machine::new,
        &[
            |machine| reclaims_under_the_tree_lock(machine, 0),
            |machine| reclaims_under_the_tree_lock(machine, 1),
        ],
    );
}

/// A vCPU, and what its CPU is told by others.
#[derive(Default)]
struct Vcpu {
    halted: Halted,
    /// Pokes and bits of a notification.
    reasons: [AtomicBool; 2],
    posted: Posted,
    wakes: Notify,
    interrupts: Notify,
}

impl Vcpu {
    fn kick(&self) {
        match self.halted.kick() {
            Kick::Wake => self.wakes.notify(),
            Kick::Interrupt => self.interrupts.notify(),
            Kick::Nothing => {}
        }
    }

    fn give(&self, reason: usize) {
        self.reasons[reason].store(true, Ordering::SeqCst);
        self.kick();
    }

    fn raise(&self, vector: u8) {
        if self.posted.add(vector) {
            self.kick();
        }
    }

    /// Halts, or runs the guest until an interrupt, unless there is a reason not to. A wait ends by a deadline, too, which to loom is a
    /// spurious one.
    fn pause(&self, halts: bool, has_reason: impl FnOnce() -> bool) {
        if !halts {
            self.interrupts.wait();
        } else if self.halted.halt(has_reason) {
            self.wakes.wait();
            self.halted.clear();
        }
    }

    /// Goes on until it saw both reasons.
    fn run(&self, mut halts: bool) {
        let mut seen = 0;
        loop {
            for reason in &self.reasons {
                if reason.load(Ordering::SeqCst) && reason.swap(false, Ordering::SeqCst) {
                    seen += 1;
                }
            }
            if seen == self.reasons.len() {
                return;
            }
            self.pause(halts, || self.reasons.iter().any(|reason| reason.load(Ordering::SeqCst)));
            halts = !halts;
        }
    }

    /// Goes on until it took these vectors of the second word.
    fn take(&self, vectors: u64, mut halts: bool) {
        let mut taken = 0;
        loop {
            self.posted.take(|index, vectors| {
                assert!(vectors == 0 || index == 1);
                assert_eq!(taken & vectors, 0, "a vector comes once");
                taken |= vectors;
            });
            if taken == vectors {
                return;
            }
            self.pause(halts, || self.posted.is_some());
            halts = !halts;
        }
    }
}

#[test]
fn a_vcpu_that_halts_or_runs_sees_each_reason_to_return() {
    explore(Vcpu::default, &[|vcpu| vcpu.run(true), |vcpu| vcpu.give(0), |vcpu| vcpu.give(1)]);
    explore(Vcpu::default, &[|vcpu| vcpu.run(false), |vcpu| vcpu.give(0), |vcpu| vcpu.give(1)]);
}

#[test]
fn a_vcpu_that_halts_or_runs_gets_each_vector_once() {
    explore(Vcpu::default, &[|vcpu| vcpu.take(6, true), |vcpu| vcpu.raise(65), |vcpu| vcpu.raise(66)]);
    explore(Vcpu::default, &[|vcpu| vcpu.take(6, false), |vcpu| vcpu.raise(65), |vcpu| vcpu.raise(66)]);
}
