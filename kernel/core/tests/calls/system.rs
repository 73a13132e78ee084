//! Threads, handlers and a semaphore, and what they do next.

use crate::cpu::{Attention, Local, register};
use crate::entry::Frame;
use crate::hypercall::{self, Call, Outcome, ipc};
use crate::object::Header;
use crate::object::ec::{Ec, State};
use crate::object::pd::Pd;
use crate::object::portal::Portal;
use crate::object::sc::Sc;
use crate::object::signal::Signal;
use crate::{hardware, percpu, rules, sched};
use core::cell::RefCell;
use core::sync::atomic::AtomicU64;
use hypercall_abi::{ObjectType, Status};
use kcore::addr::PhysAddr;
use kcore::sched::budget::Budget;
use proptest::prelude::*;

const THREADS: usize = 5;
const HANDLERS: usize = 4;
/// Where hypercalls are made.
const RIP: u64 = 0x1000;
/// A slice, and what a step takes.
const SLICE: u64 = 1000;
const STEP: u64 = 300;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// The context that runs calls a handler.
    Call(usize),
    /// It calls a handler, and waits so long for it.
    CallFor(usize, u64),
    /// It replies, if it is a handler.
    Reply,
    /// It waits for the semaphore.
    Wait,
    /// It waits for the semaphore, or until a deadline.
    WaitFor(u64),
    /// It uses time.
    Run,
    /// It faults.
    Fault,
    /// An interrupt signals the semaphore.
    Signal,
    /// A thread is destroyed, with its scheduling context.
    Destroy(usize),
    /// A thread loses its scheduling context.
    Suspend(usize),
    /// It gets another one.
    Resume(usize),
    /// A handler is destroyed.
    DestroyHandler(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..HANDLERS).prop_map(Op::Call),
        6 => (0..HANDLERS, 1..5 * STEP).prop_map(|(handler, ticks)| Op::CallFor(handler, ticks)),
        6 => Just(Op::Reply),
        4 => Just(Op::Wait),
        2 => (1..5 * STEP).prop_map(Op::WaitFor),
        4 => Just(Op::Run),
        1 => Just(Op::Fault),
        6 => Just(Op::Signal),
        1 => (0..THREADS).prop_map(Op::Destroy),
        1 => (0..THREADS).prop_map(Op::Suspend),
        2 => (0..THREADS).prop_map(Op::Resume),
        1 => (0..HANDLERS).prop_map(Op::DestroyHandler),
    ]
}

/// Objects live as long as the test: the kernel's references are `'static`.
fn object<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

std::thread_local! {
    /// What this CPU is to let go of.
    static DOOMED: RefCell<Vec<Doomed>> = const { RefCell::new(Vec::new()) };
}

enum Doomed {
    Sc(&'static Sc),
    Ec(&'static Ec),
}

/// What `reclaim::let_go` does.
pub fn let_go(local: &'static Local) {
    for doomed in DOOMED.take() {
        let ec = match doomed {
            Doomed::Ec(ec) => ec,
            Doomed::Sc(sc) => {
                ipc::withdraw(sc);
                continue;
            }
        };
        ec.state.set(State::Dead);
        ipc::abandon(ec);
        if let Some(sc) = ec.sc.take() {
            sched::retire(sc);
        }
        if local.active.get().is_some_and(|active| core::ptr::eq(active, ec)) {
            local.active.set(None);
        }
    }
}

/// Gives a thread a scheduling context.
fn start(ec: &'static Ec, priority: u8) -> &'static Sc {
    let budget = Budget::new(SLICE, SLICE);
    let sc: &Sc = object(Sc::new(Header::new(ObjectType::Sc), ec, priority, budget));
    ec.own_sc.set(Some(sc));
    sched::start(sc);
    sc
}

pub struct System {
    pub local: &'static Local,
    pub threads: Vec<&'static Ec>,
    pub handlers: Vec<&'static Ec>,
    pub scs: Vec<&'static Sc>,
    portals: Vec<&'static Portal>,
    semaphore: &'static Signal,
    /// Nobody signals it.
    never: &'static Signal,
    /// The call that a context made last, and its deadline.
    calls: Vec<(&'static Ec, &'static Portal, u64)>,
}

impl System {
    fn new(priorities: &[u8]) -> Self {
        let local: &Local = object(Local::new(percpu::id(), core::ptr::null_mut()));
        hardware::install(local as *const Local as u64);
        register(local);
        DOOMED.take();
        let pd = object(Pd { root: PhysAddr(0), id: 1, io_version: AtomicU64::new(0) });
        let context = |is_handler| -> &'static Ec {
            let frame = Frame { rip: RIP, ..Frame::default() };
            object(Ec::new(Header::new(ObjectType::Ec), pd, percpu::id() as u16, is_handler, frame))
        };
        let signal = || -> &'static Signal { object(Signal::new(Header::new(ObjectType::Sm), 0)) };
        // The last thread only idles.
        let threads: Vec<_> = (0..=priorities.len()).map(|_| context(false)).collect();
        let handlers: Vec<_> = (0..HANDLERS).map(|_| context(true)).collect();
        let portals = handlers.iter().map(|handler| -> &'static Portal {
            object(Portal::new(Header::new(ObjectType::Pt), handler, RIP, 0))
        });
        let scs =
            threads.iter().zip(priorities.iter().chain(&[0])).map(|(ec, &priority)| start(ec, priority));
        let mut system = System {
            local,
            portals: portals.collect(),
            scs: scs.collect(),
            threads,
            handlers,
            semaphore: signal(),
            never: signal(),
            calls: Vec::new(),
        };
        sched::schedule(local);
        system.settle();
        system
    }

    /// Who runs.
    pub fn current(&self) -> &'static Ec {
        self.local.ec.get().expect("after the kernel somebody runs")
    }

    fn is_idle(&self) -> bool {
        self.threads.last().is_some_and(|idles| core::ptr::eq(self.current(), *idles))
    }

    /// Lets timers fire and the rules be checked.
    fn settle(&mut self) {
        while hardware::fires() {
            sched::timer_expired(self.local);
            sched::resume(self.local);
        }
        rules::check(self);
    }

    /// A hypercall of the context that runs came to this.
    fn leave(&mut self, ec: &'static Ec, outcome: hypercall::Result) {
        match outcome {
            Ok(Outcome::Block) => sched::schedule(self.local),
            Ok(Outcome::Switch) => sched::resume(self.local),
            Err(failure) => {
                ec.frame().rax = failure.0 as u64;
                sched::resume(self.local)
            }
        };
    }

    fn call(&mut self, portal: &'static Portal, deadline: u64) {
        let ec = self.current();
        ec.frame().rip = RIP;
        self.calls.retain(|(caller, ..)| !core::ptr::eq(*caller, ec));
        self.calls.push((ec, portal, deadline));
        let outcome = hypercall::make(&Call { local: self.local, ec, portal: Some(portal), deadline });
        self.leave(ec, outcome);
    }

    fn reply(&mut self) {
        let ec = self.current();
        let outcome = hypercall::make(&Call { local: self.local, ec, portal: None, deadline: u64::MAX });
        self.leave(ec, outcome);
    }

    /// The hypercall Wait.
    fn wait(&mut self, signal: &'static Signal, deadline: u64) {
        let ec = self.current();
        sched::block(ec, deadline);
        match signal.take_or_enqueue(ec) {
            Ok(None) => sched::schedule(self.local),
            _ => {
                sched::unblock_current(ec);
                sched::resume(self.local)
            }
        };
    }

    fn fault(&mut self) {
        let ec = self.current();
        ec.state.set(State::Faulted);
        ipc::abandon(ec);
        sched::resume(self.local);
    }

    /// Takes objects away, as another CPU does whose request this one serves.
    fn destroy(&mut self, objects: impl IntoIterator<Item = Doomed>) {
        for doomed in objects {
            if let Doomed::Sc(sc) = doomed {
                sc.owner.own_sc.set(None);
                sched::retire(sc);
            }
            DOOMED.with_borrow_mut(|list| list.push(doomed));
        }
        self.local.attention.add(Attention::SWITCH);
        sched::resume(self.local);
    }

    fn destroy_context(&mut self, ec: &'static Ec) {
        if ec.state.get() != State::Dead {
            self.destroy(ec.own_sc.get().map(Doomed::Sc).into_iter().chain([Doomed::Ec(ec)]));
        }
    }

    fn step(&mut self, op: Op) {
        let ec = self.current();
        // A context that is to make its call again does nothing else.
        let last = self.calls.iter().find(|(caller, ..)| core::ptr::eq(*caller, ec)).copied();
        let again = last.filter(|_| ec.frame().rip == RIP - hypercall::SYSCALL_BYTES);
        match op {
            Op::Signal => {
                self.semaphore.signal(1);
                sched::resume(self.local);
            }
            Op::Destroy(thread) => self.destroy_context(self.threads[thread]),
            Op::DestroyHandler(handler) => self.destroy_context(self.handlers[handler]),
            Op::Suspend(thread) => self.destroy(self.threads[thread].own_sc.get().map(Doomed::Sc)),
            Op::Resume(thread) => {
                let ec = self.threads[thread];
                if ec.own_sc.get().is_none() && !matches!(ec.state.get(), State::Faulted | State::Dead) {
                    self.scs.push(start(ec, thread as u8 + 1));
                    sched::resume(self.local);
                }
            }
            _ if let Some((_, portal, deadline)) = again => self.call(portal, deadline),
            _ if self.is_idle() => {}
            Op::Call(handler) => self.call(self.portals[handler], u64::MAX),
            Op::CallFor(handler, ticks) => {
                self.call(self.portals[handler], crate::cpu::tsc::read() + ticks);
            }
            Op::Reply if ec.is_handler => self.reply(),
            Op::Wait => self.wait(self.semaphore, u64::MAX),
            Op::WaitFor(ticks) => self.wait(self.semaphore, crate::cpu::tsc::read() + ticks),
            Op::Fault => self.fault(),
            Op::Run | Op::Reply => {}
        }
        hardware::pass(STEP);
        self.settle();
    }

    /// Has everybody finish what there is to finish: handlers reply, waits end, threads stop.
    fn wind_up(&mut self) {
        for _ in 0..1000 {
            let ec = self.current();
            if !self.is_idle() {
                if ec.is_handler || ec.frame().rip != RIP {
                    self.step(Op::Reply);
                } else {
                    self.wait(self.never, u64::MAX);
                    self.settle();
                }
            } else if rules::waits_on(self, self.semaphore) {
                self.step(Op::Signal);
            } else {
                return;
            }
        }
        panic!("it does not come to an end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn who_runs_is_the_end_of_the_most_urgent_chain_and_nobody_is_lost(
        priorities in prop::array::uniform5(1u8..6),
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut system = System::new(&priorities);
        for op in ops {
            system.step(op);
        }
        system.wind_up();
        rules::check_end(&system);
    }
}

#[test]
fn a_status_tells_a_caller_that_its_handler_ended() {
    let mut system = System::new(&[5, 1, 1, 1, 1]);
    let caller = system.current();
    system.step(Op::Call(0));
    assert!(core::ptr::eq(system.current(), system.handlers[0]));
    system.step(Op::Fault);
    assert!(core::ptr::eq(system.current(), caller));
    assert_eq!(caller.frame().rax, Status::Aborted as u64);
}

#[test]
fn callers_that_are_many_go_on_although_their_handler_calls_in_between() {
    const CALLERS: usize = 80;
    let mut system = System::new(&[3; CALLERS]);
    system.step(Op::Call(0));
    system.step(Op::Wait);
    while !system.is_idle() {
        system.step(Op::Call(0));
    }
    let helpers = || system.handlers[0].helper_count.get() as usize;
    assert_eq!(helpers(), CALLERS - 1, "all wait with the handler");
    // The handler goes on, and is in a call before the timer fires for the rest of them.
    system.semaphore.signal(1);
    sched::resume(system.local);
    assert!(helpers() > 0 && core::ptr::eq(system.current(), system.handlers[0]));
    system.step(Op::Call(1));
    system.wind_up();
    rules::check_end(&system);
}
