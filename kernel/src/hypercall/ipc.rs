//! Portal calls: synchronous, on one CPU, on the caller's scheduling context.
//!
//! Message words travel in registers. A call copies them into the handler's frame and starts the handler at the portal; a
//! reply copies them back. A caller that finds the handler busy waits in its queue.

use super::{Call, Outcome, Result};
use crate::cpu;
use crate::object::ec::{Ec, State, WaitResult};
use crate::object::portal::Portal;
use crate::sched;
use hypercall_abi::{Rights, Status};
use khw::entry::{Frame, SYSCALL};

/// Calls a portal.
pub fn call(call: &Call) -> Result {
    let portal = call.capability()?.cast::<Portal>(Rights::PT_CALL)?;
    let handler = portal.handler;
    if handler.cpu != call.ec.cpu {
        return Err(Status::WrongCpu.into());
    }
    match handler.state.get() {
        State::Idle => {
            enter(call.ec, portal);
            call.local.ec.set(Some(handler));
        }
        State::Active | State::Blocked => {
            sched::block(call.ec, u64::MAX);
            call.ec.wanted.set(Some(portal));
            handler.queued_callers.push_back(call.ec);
        }
        State::Faulted | State::Dead => return Err(Status::Aborted.into()),
    }
    Ok(Outcome::Switch)
}

/// Starts an idle handler for `caller`.
fn enter(caller: &'static Ec, portal: &'static Portal) {
    let handler = portal.handler;
    caller.state.set(State::Blocked);
    caller.callee.set(Some(handler));
    handler.caller.set(Some(caller));
    handler.state.set(State::Active);
    if let Some(sc) = cpu::local().sc.get() {
        sc.running.set(handler);
    }
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

fn copy_words(from: &Frame, to: &mut Frame) {
    (to.rdi, to.rsi, to.rdx, to.r8) = (from.rdi, from.rsi, from.rdx, from.r8);
    (to.r9, to.r10, to.r12, to.r13) = (from.r9, from.r10, from.r12, from.r13);
}

/// Replies to the caller and waits for the next call.
pub fn reply(call: &Call) -> Result {
    let handler = call.ec;
    if !handler.is_handler {
        return Err(Status::BadType.into());
    }
    handler.state.set(State::Idle);
    let local = call.local;
    if let Some(caller) = handler.caller.take() {
        caller.callee.set(None);
        let frame = caller.frame();
        copy_words(handler.frame(), frame);
        frame.rax = Status::Success as u64;
        caller.state.set(State::Active);
        if let Some(sc) = local.sc.get() {
            sc.running.set(caller);
        }
        local.ec.set(Some(caller));
    } else {
        local.ec.set(None);
    }
    serve_next(handler);
    Ok(Outcome::Switch)
}

/// Lets the next queued caller of an idle handler try again: it executes its call once more.
fn serve_next(handler: &'static Ec) {
    if let Some(next) = handler.queued_callers.pop_front() {
        next.wanted.set(None);
        next.frame().rip -= 2;
        sched::wake(next, WaitResult::Look);
    }
}

/// A handler stopped or goes away: its caller, and who waits for it, get an error.
pub fn abort_call(ec: &'static Ec) {
    if let Some(caller) = ec.caller.take() {
        caller.callee.set(None);
        caller.frame().rax = Status::Aborted as u64;
        caller.state.set(State::Active);
        let local = cpu::local();
        let pays = local.ec.get().is_some_and(|current| core::ptr::eq(current, ec));
        let sc = if pays { local.sc.get() } else { ec.blocked_sc.take() };
        if let Some(sc) = sc {
            sc.running.set(caller);
            if pays {
                local.ec.set(Some(caller));
            } else {
                caller.state.set(State::Blocked);
                caller.blocked_sc.set(Some(sc));
                sched::wake(caller, WaitResult::Failed(Status::Aborted));
            }
        }
    }
    while let Some(waiting) = ec.queued_callers.pop_front() {
        waiting.wanted.set(None);
        sched::wake(waiting, WaitResult::Failed(Status::Aborted));
    }
}

/// A context goes away: the handler it called or waits for forgets it.
pub fn forget(ec: &'static Ec) {
    if let Some(portal) = ec.wanted.take() {
        portal.handler.queued_callers.remove(ec);
    }
    if let Some(handler) = ec.callee.take() {
        handler.caller.set(None);
    }
}

/// The scheduling context that a handler runs on goes away: the handler is made idle again, at its entry.
///
/// What it was doing for the vanished caller is lost; it starts with a clean stack at its next call. A server that keeps state
/// across calls must expect this, as it must expect that a caller dies.
pub fn strand(handler: &'static Ec) {
    if let Some(signal) = handler.waits_on.get() {
        signal.cancel(handler);
    }
    if let Some(callee) = handler.callee.take() {
        callee.caller.set(None);
    }
    if let Some(caller) = handler.caller.take() {
        caller.callee.set(None);
    }
    if handler.is_handler && handler.state.get() != State::Faulted {
        handler.state.set(State::Idle);
        serve_next(handler);
    }
}
