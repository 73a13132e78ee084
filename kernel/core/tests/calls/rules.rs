//! What is true between two steps.

use crate::object::ec::{Ec, State};
use crate::object::sc::{Place, Sc};
use crate::object::signal::Signal;
use crate::system::System;

/// What a scheduling context is good for.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// This context would run on it.
    Runs(&'static Ec),
    /// It waits with this one, which is blocked.
    WaitsWith(&'static Ec),
    /// Its own context waits for something, or stopped.
    Nothing,
    /// Callers that wait for each other in a circle.
    Circle,
}

fn is(a: &Ec, b: &Ec) -> bool {
    core::ptr::eq(a, b)
}

/// The end of a chain of calls, link by link.
fn end_of_chain(mut ec: &'static Ec) -> &'static Ec {
    while let Some(callee) = ec.callee.get() {
        ec = callee;
    }
    ec
}

/// What helping is meant to come to: the end of the chain that the busy handler is in, and so on.
fn use_of(sc: &Sc) -> Use {
    let own = end_of_chain(sc.owner);
    let mut ec = own;
    for _ in 0..32 {
        match ec.waits_for.get() {
            // It makes its call.
            Some(handler) if handler.state.get() == State::Idle => return Use::Runs(ec),
            Some(handler) => ec = end_of_chain(handler),
            None if ec.state.get() == State::Active => return Use::Runs(ec),
            None if is(ec, own) => return Use::Nothing,
            None => return Use::WaitsWith(ec),
        }
    }
    Use::Circle
}

fn contexts(system: &System) -> impl Iterator<Item = &'static Ec> {
    system.threads.iter().chain(&system.handlers).copied()
}

fn live(system: &System) -> impl Iterator<Item = &'static Sc> {
    system.scs.iter().copied().filter(|sc| sc.place.get() != Place::Dead)
}

/// All of it.
pub fn check(system: &System) {
    live(system).for_each(check_chain);
    contexts(system).for_each(check_context);
    live(system).for_each(|sc| check_place(system, sc));
    check_choice(system);
}

/// A chain of calls is linked both ways, and its end alone has the scheduling context.
fn check_chain(sc: &'static Sc) {
    let mut ec = sc.owner;
    while let Some(callee) = ec.callee.get() {
        assert!(callee.caller.get().is_some_and(|caller| is(caller, ec)), "a callee knows its caller");
        assert!(callee.chain_sc.get().is_some_and(|chain| core::ptr::eq(chain, sc)), "whose chain it is");
        assert_eq!(ec.state.get(), State::Blocked, "a caller waits");
        assert!(ec.sc.get().is_none(), "a caller lends what it runs on");
        ec = callee;
    }
    assert!(is(sc.running.get(), ec), "the end of the chain runs");
    assert!(ec.sc.get().is_some_and(|held| core::ptr::eq(held, sc)), "on the chain's scheduling context");
}

fn check_context(ec: &'static Ec) {
    if let Some(sc) = ec.sc.get() {
        assert!(is(sc.running.get(), ec), "one context has a scheduling context");
    }
    if let Some(handler) = ec.waits_for.get() {
        assert_eq!(ec.state.get(), State::Blocked, "who waits for a handler is blocked");
        assert!(matches!(handler.state.get(), State::Active | State::Blocked | State::Idle), "it may reply");
    }
    if ec.state.get() == State::Idle {
        assert!(ec.sc.get().is_none() && ec.caller.get().is_none() && ec.callee.get().is_none());
    }
    if matches!(ec.state.get(), State::Faulted | State::Dead) {
        assert!(ec.callee.get().is_none() && ec.caller.get().is_none() && ec.queued_callers.is_empty());
    }
    let is_waited_with = ec.state.get() == State::Blocked;
    assert!(ec.helpers.is_empty() || is_waited_with, "helpers wait with who is blocked");
    assert_eq!(ec.to_release.get(), 0, "who is to look again has done so");
}

/// A scheduling context of use is where the scheduler finds it, and no other is.
fn check_place(system: &System, sc: &'static Sc) {
    let is_current = system.local.sc.get().is_some_and(|current| core::ptr::eq(current, sc));
    let place = sc.place.get();
    match use_of(sc) {
        _ if is_current => assert_eq!(place, Place::Nowhere),
        Use::Runs(_) => assert_eq!(place, Place::Ready, "it can run"),
        Use::WaitsWith(ec) if place == Place::Helping => {
            assert!(sc.helps.get().is_some_and(|helped| is(helped, ec)), "it waits with the right one");
        }
        // Nobody has looked yet.
        Use::WaitsWith(_) | Use::Circle => assert!(matches!(place, Place::Ready | Place::Helping)),
        // It may still be in the queue: who picks it sees that it is of no use.
        Use::Nothing => assert!(matches!(place, Place::Nowhere | Place::Ready)),
    }
}

/// Who runs is whom the most urgent scheduling context of use comes to.
fn check_choice(system: &System) {
    let current = system.local.sc.get().expect("somebody pays");
    match use_of(current) {
        Use::Runs(ec) => assert!(is(ec, system.current()), "the end of the chain runs"),
        other => panic!("the CPU is given to {other:?}"),
    }
    let is_urgent = |sc: &&Sc| sc.priority > current.priority && matches!(use_of(sc), Use::Runs(_));
    assert!(!live(system).any(|sc| is_urgent(&sc)), "nobody more urgent waits");
}

/// Whether somebody waits on `signal`.
pub fn waits_on(system: &System, signal: &'static Signal) -> bool {
    contexts(system).any(|ec| ec.waits_on.get().is_some_and(|waits_on| core::ptr::eq(waits_on, signal)))
}

/// When all is done, every handler is idle again, or stopped; but for those in a circle, and those that wait for them.
pub fn check_end(system: &System) {
    let circles = || live(system).any(|sc| matches!(use_of(sc), Use::Circle));
    for handler in &system.handlers {
        let is_done = matches!(handler.state.get(), State::Idle | State::Faulted | State::Dead);
        assert!(is_done || circles(), "{:?}", handler.state.get());
    }
}
