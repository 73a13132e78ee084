//! Portal calls: synchronous, on one CPU, on the caller's scheduling context.
//!
//! Message words travel in registers. A call copies them into the handler's frame and starts the handler at the portal; a
//! reply copies them back. A caller that finds the handler busy waits until it is idle, and helps it meanwhile: whenever the
//! scheduler picks the caller's scheduling context, the context that the handler waits for in the end runs on it.
//!
//! A chain of calls is linked both ways (`callee`, `caller`). Exactly one context holds the scheduling context: the last of the
//! chain.

use super::{Call, Outcome, Result, SYSCALL_BYTES};
use crate::cpu;
use crate::object::ec::{Ec, State, WaitResult};
use crate::object::portal::Portal;
use crate::object::sc::{Place, Sc};
use crate::sched;
use hypercall_abi::{Rights, Status};
use khw::cpu::tsc;
use khw::entry::{Frame, SYSCALL};

/// Calls a portal.
pub(super) fn call(call: &Call) -> Result {
    let portal = call.capability()?.cast::<Portal>(Rights::PT_CALL)?;
    if !is_ready(call, portal.handler, u64::MAX)? {
        return Ok(Outcome::Block);
    }
    enter(call.ec, portal);
    call.local.ec.set(Some(portal.handler));
    Ok(Outcome::Switch)
}

/// Whether a handler can be entered. If it is busy the caller waits for it until `deadline`, helps, and calls again.
pub(super) fn is_ready(
    call: &Call,
    handler: &'static Ec,
    deadline: u64,
) -> core::result::Result<bool, Status> {
    if handler.cpu != call.ec.cpu {
        return Err(Status::WrongCpu);
    }
    match handler.state.get() {
        State::Idle => Ok(true),
        State::Active | State::Blocked if deadline != u64::MAX && deadline <= tsc::read() => {
            Err(Status::Timeout)
        }
        State::Active | State::Blocked => {
            sched::block(call.ec, deadline);
            call.ec.waits_for.set(Some(handler));
            handler.queued_callers.push_back(call.ec);
            Ok(false)
        }
        State::Faulted | State::Dead => Err(Status::Aborted),
    }
}

/// The handler that a caller waits for is idle: the caller makes its call again.
pub fn retry(ec: &'static Ec) {
    leave_queue(ec);
    ec.frame().rip -= SYSCALL_BYTES;
    sched::unblock_current(ec);
}

/// Takes a caller out of the queue of its handler, which is busy: whether it was in one.
pub fn stop_waiting(ec: &'static Ec) -> bool {
    ec.waits_for.get().is_some() && {
        sched::leave_wait(ec);
        leave_queue(ec);
        true
    }
}

fn leave_queue(ec: &'static Ec) {
    if let Some(handler) = ec.waits_for.take() {
        handler.queued_callers.remove(ec);
    }
}

/// Starts an idle handler for `caller`.
pub(super) fn enter(caller: &'static Ec, portal: &'static Portal) {
    let handler = portal.handler;
    caller.state.set(State::Blocked);
    caller.callee.set(Some(handler));
    handler.caller.set(Some(caller));
    handler.state.set(State::Active);
    handler.chain_sc.set(caller.sc.get());
    pass_sc(caller, handler);
    let (from, to) = (caller.frame(), handler.frame());
    copy_words(from, to);
    to.rax = portal.id;
    to.rip = portal.ip;
    to.rsp = handler.handler_sp;
    to.rflags = 0x202;
    // Start from registers the handler cannot tell anything by.
    (to.rbx, to.rbp, to.r14, to.r15, to.rcx, to.r11) = (0, 0, 0, 0, 0, 0);
    to.vector = SYSCALL;
}

fn pass_sc(from: &'static Ec, to: &'static Ec) {
    let sc = from.sc.take();
    to.sc.set(sc);
    if let Some(sc) = sc {
        sc.running.set(to);
    }
}

fn copy_words(from: &Frame, to: &mut Frame) {
    (to.rdi, to.rsi, to.rdx, to.r8) = (from.rdi, from.rsi, from.rdx, from.r8);
    (to.r9, to.r10, to.r12, to.r13) = (from.r9, from.r10, from.r12, from.r13);
}

/// Replies to the caller and waits for the next call.
pub(super) fn reply(call: &Call) -> Result {
    let handler = call.ec;
    if !handler.is_handler {
        return Err(Status::BadType.into());
    }
    finish(call);
    Ok(Outcome::Switch)
}

/// Ends the call that a handler serves.
pub(super) fn finish(call: &Call) {
    let handler = call.ec;
    handler.state.set(State::Idle);
    // A handler runs only inside a call, so there is a caller.
    if let Some(caller) = handler.caller.take() {
        caller.callee.set(None);
        let frame = caller.frame();
        copy_words(handler.frame(), frame);
        frame.rax = Status::Success as u64;
        caller.state.set(State::Active);
        let sc = handler.sc.get();
        pass_sc(handler, caller);
        if let Some(sc) = sc {
            go_on(sc, handler, caller);
        }
    }
}

/// If `from` runs, `to` goes on in its place, if what it runs on is `sc`: not if somebody helps.
fn go_on(sc: &'static Sc, from: &'static Ec, to: &'static Ec) {
    let local = cpu::local();
    sc.running.set(to);
    if local.ec.get().is_some_and(|current| core::ptr::eq(current, from)) {
        let pays = local.sc.get().is_some_and(|current| core::ptr::eq(current, sc));
        local.ec.set(pays.then_some(to));
    }
}

/// A context stopped or goes away. Whom it called is made idle, its caller gets an error and goes on, and so do the callers that
/// queued for it. Runs on its CPU, and lets interrupts in.
pub fn abandon(ec: &'static Ec) {
    let local = cpu::local();
    strand_callees(ec);
    detach(ec);
    sched::release_helpers(local, ec);
    if let Some(caller) = ec.caller.take() {
        caller.callee.set(None);
        let sc = ec.sc.take();
        caller.frame().rax = Status::Aborted as u64;
        caller.state.set(State::Active);
        caller.sc.set(sc);
        if let Some(sc) = sc {
            hand_over(sc, ec, caller);
        }
    }
    while let Some(waiting) = ec.queued_callers.pop_front() {
        waiting.waits_for.set(None);
        sched::wake(waiting, WaitResult::Failed(Status::Aborted));
        sched::preemption_point(local);
    }
}

/// `to` goes on where `from` was with `sc`: running, queued, or blocked.
fn hand_over(sc: &'static Sc, from: &'static Ec, to: &'static Ec) {
    go_on(sc, from, to);
    let is_current = cpu::local().sc.get().is_some_and(|current| core::ptr::eq(current, sc));
    if !is_current && matches!(sc.place.get(), Place::Nowhere | Place::Helping) {
        // `from` was blocked, maybe behind a busy handler: there is nothing to wait for any more.
        to.state.set(State::Blocked);
        sched::wake(to, WaitResult::Failed(Status::Aborted));
    }
}

/// The scheduling context of a chain of calls goes away. Its owner's call ends with an error, which the owner sees when it is given
/// another one. Runs on its CPU.
pub fn withdraw(sc: &'static Sc) {
    let (owner, running) = (sc.owner, sc.running.get());
    running.sc.set(None);
    if !core::ptr::eq(owner, running) {
        strand_callees(owner);
        owner.sc.set(None);
        if owner.state.get() == State::Blocked {
            owner.frame().rax = Status::Aborted as u64;
            owner.state.set(State::Active);
        }
    }
}

/// Takes apart the chain of calls below `ec`: each handler is made idle again, at its entry. What `ec` runs on comes back to it.
///
/// What a handler was doing for the vanished caller is lost; it starts with a clean stack at its next call. A server that keeps state
/// across calls must expect this, as it must expect that a caller dies. Lets interrupts in after each.
fn strand_callees(ec: &'static Ec) {
    let local = cpu::local();
    let mut next = ec.callee.take();
    while let Some(handler) = next {
        next = handler.callee.take();
        handler.caller.set(None);
        handler.revokes.set(None);
        if let Some(sc) = handler.sc.take() {
            ec.sc.set(Some(sc));
            go_on(sc, handler, ec);
        }
        detach(handler);
        if handler.state.get() != State::Faulted {
            handler.state.set(State::Idle);
        }
        sched::release_helpers(local, handler);
        sched::preemption_point(local);
    }
}

/// Takes a context out of whatever it waits in.
fn detach(ec: &'static Ec) {
    if let Some(signal) = ec.waits_on.get() {
        signal.cancel(ec);
    }
    sched::forget_deadline(ec);
    stop_waiting(ec);
    if let Some(vcpu) = ec.vcpu.get() {
        vcpu.detach(ec, Status::Aborted);
    }
}
