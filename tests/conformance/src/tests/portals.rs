//! Calls through portals.

use super::{Group, Needs, group};
use crate::call::{Answer, syscall};
use crate::prelude::*;
use crate::threads::{self, HIGH, LOW, Pending};
use crate::world::board;
use core::sync::atomic::Ordering;
use hypercall_abi::regs::Head;
use hypercall_abi::{Hypercall, Selector};

pub(super) const GROUP: Group = group!(
    "portals",
    Needs::Nothing => [
        a_call_carries_eight_words_both_ways,
        a_call_checks_type_and_right,
        a_handler_starts_from_clean_registers_and_its_portals_id,
        a_handler_runs_on_its_callers_time,
        a_busy_handler_queues_its_callers_in_order,
        calls_nest,
        a_handler_that_calls_itself_waits_until_it_is_ended,
        a_handler_that_faults_aborts_its_caller_and_takes_no_more_calls,
        a_handler_that_ends_aborts_its_callers,
        a_handler_that_ends_while_preempted_aborts_its_caller,
        a_handler_that_ends_behind_a_busy_one_aborts_its_caller,
        a_portal_that_ends_does_not_end_the_call,
        a_caller_that_ends_leaves_the_handler_usable,
        a_queued_caller_that_ends_is_forgotten,
        a_queued_caller_survives_the_end_of_its_portal,
        scheduling_context_revoked_in_a_call_makes_the_handler_idle,
        reply_outside_a_handler_is_refused,
    ],
    Needs::Cpus(2) => [a_handler_of_another_cpu_is_not_called],
);

/// Calls a portal from this thread: status and words.
fn call_portal(portal: Sel, words: [u64; 8]) -> (Answer, [u64; 8]) {
    let head = Head::new(Hypercall::Call, Selector(portal as u32)).0;
    let (status, reply) = syscall(head, words);
    let answer = Answer::of(head, [words[0], words[1], words[2]], status, [reply[0], reply[1], reply[2]]);
    (answer, reply)
}

extern "C" fn add_index(words: &mut [u64; 8]) {
    for (index, word) in words.iter_mut().enumerate() {
        *word = word.wrapping_add(index as u64 + 1);
    }
}

/// Counts its call, then waits on the semaphore in word 0.
extern "C" fn wait_for(words: &mut [u64; 8]) {
    board(0).fetch_add(1, Ordering::Relaxed);
    words[1] = call(Wait, words[0], [FOREVER]).status;
    words[2] = board(1).fetch_add(1, Ordering::Relaxed);
}

/// Calls the portal in word 0 with the rest of the words.
extern "C" fn forward(words: &mut [u64; 8]) {
    let [next, w1, w2, w3, w4, w5, w6, w7] = *words;
    let head = Head::new(Hypercall::Call, Selector(next as u32)).0;
    let (status, reply) = syscall(head, [w1, w2, w3, w4, w5, w6, w7, 0]);
    *words = reply;
    words[7] = status;
}

extern "C" fn spin_on(words: &mut [u64; 8]) {
    board(0).fetch_add(1, Ordering::Relaxed);
    while board(2).load(Ordering::Relaxed) == 0 {
        core::hint::spin_loop();
    }
    words[0] = 7;
}

extern "C" fn fault(_: &mut [u64; 8]) {
    // SAFETY: UD2 ends the handler.
    unsafe { core::arch::asm!("ud2", options(nomem, nostack)) }
}

fn a_call_carries_eight_words_both_ways(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, add_index)?;
    for base in [0, 0x1000, u64::MAX - 100] {
        let words = core::array::from_fn(|index: usize| base + 10 * index as u64);
        let (answer, reply) = call_portal(portal, words);
        answer.ok()?;
        let expected =
            core::array::from_fn(|index: usize| (base + 10 * index as u64).wrapping_add(index as u64 + 1));
        equal("words of the reply", reply, expected)?;
    }
    Ok(())
}

fn a_call_checks_type_and_right(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, add_index)?;
    let weak = w.without(portal, Rights::PT_CALL)?;
    let just = w.derive(portal, Rights::PT_CALL)?;
    let pool = w.pool;
    let empty = w.sel();
    for (selector, status) in [(weak, BadRights), (handler, BadType), (pool, BadType), (empty, BadSelector)] {
        let words = [1, 2, 3, 4, 5, 6, 7, 8];
        let (answer, after) = call_portal(selector, words);
        answer.fails(status)?;
        equal("words after an error", after, words)?;
    }
    call_portal(just, [0; 8]).0.ok().map(drop)
}

core::arch::global_asm!(
    // Puts RBX, RBP, R14, R15 ORed together, RSP, RAX and RFLAGS into the first four words.
    ".pushsection .text.conformance_registers, \"ax\"",
    ".global conformance_registers",
    "conformance_registers:",
    "mov rdi, rbx",
    "or rdi, rbp",
    "or rdi, r14",
    "or rdi, r15",
    "mov rsi, rsp",
    "mov rdx, rax",
    "pushfq",
    "pop r8",
    "mov eax, {reply}",
    "syscall",
    "ud2",
    ".popsection",
    reply = const Reply as u32,
);

unsafe extern "C" {
    fn conformance_registers();
}

fn a_handler_starts_from_clean_registers_and_its_portals_id(w: &mut World) -> Check {
    let (handler, portal, other) = (w.sel(), w.sel(), w.sel());
    let stack = w.stacks.take();
    call(CreateEc, handler, [w.pool, crate::layout::PD, 1 << 16, 0, stack]).done()?;
    let ip = conformance_registers as *const () as u64;
    call(CreatePt, portal, [w.pool, handler, ip, 0xdead_beef_0000_0001]).done()?;
    call(CreatePt, other, [w.pool, handler, ip, 0]).done()?;
    for (portal, id) in [(portal, 0xdead_beef_0000_0001), (other, 0), (portal, 0xdead_beef_0000_0001)] {
        let (answer, reply) = call_portal(portal, [0; 8]);
        answer.ok()?;
        equal("RBX, RBP, R14, R15", reply[0], 0)?;
        equal("RSP", reply[1], stack)?;
        equal("RAX", reply[2], id)?;
        equal("RFLAGS without arithmetic", reply[3] & !0x8d5, 0x202)?;
    }
    Ok(())
}

extern "C" fn use_time(words: &mut [u64; 8]) {
    let end = usys::cpu::now() + words[0];
    while usys::cpu::now() < end {
        core::hint::spin_loop();
    }
}

fn a_handler_runs_on_its_callers_time(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, use_time)?;
    let ticks = w.info.tsc_hz / 100;
    let mut is_callers = false;
    // Who watches the tests is more urgent, and wakes once a second: in one of two calls the handler has all of the time.
    for _ in 0..2 {
        let caller = w.begin((0, HIGH), Hypercall::Call, portal, [ticks])?;
        w.answer(&caller)?.ok()?;
        is_callers |= call(ScInfo, caller.sc, []).value()? >= ticks;
    }
    holds("the time of the handler is the caller's", is_callers)
}

fn a_busy_handler_queues_its_callers_in_order(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, wait_for)?;
    let sm = w.sm(0)?;
    let mut callers = alloc::vec![];
    for _ in 0..4 {
        callers.push(w.begin((0, HIGH), Hypercall::Call, portal, [sm])?);
    }
    equal("calls begun", board(0).load(Ordering::Relaxed), 1)?;
    for (index, caller) in callers.iter().enumerate() {
        equal("is served early", caller.is_done(), false)?;
        call(Signal, sm, []).done()?;
        w.answer(caller)?.gives([sm, 0, index as u64])?;
    }
    equal("calls begun", board(0).load(Ordering::Relaxed), 4)
}

fn calls_nest(w: &mut World) -> Check {
    let last = w.handler(0)?;
    let mut portal = w.portal(last, add_index)?;
    let mut words = [0; 8];
    for depth in 1..=5 {
        let handler = w.handler(0)?;
        let next = portal;
        portal = w.portal(handler, forward)?;
        words.rotate_right(1);
        words[0] = next;
        let (answer, reply) = call_portal(portal, words);
        answer.ok()?;
        equal("status inside", reply[7], Success as u64)?;
        if depth == 1 {
            equal("words", reply[..3].iter().sum::<u64>(), 1 + 2 + 3)?;
        }
    }
    Ok(())
}

fn a_handler_that_calls_itself_waits_until_it_is_ended(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, forward)?;
    let caller = w.begin((0, HIGH), Hypercall::Call, portal, [portal])?;
    w.sleep(2000);
    equal("is done", caller.is_done(), false)?;
    call(Revoke, handler, [1]).done()?;
    w.answer(&caller)?.fails(Aborted)?;
    call(CapInfo, portal, []).fails(BadSelector)
}

fn a_handler_that_faults_aborts_its_caller_and_takes_no_more_calls(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let (bad, good) = (w.portal(handler, fault)?, w.portal(handler, add_index)?);
    call_portal(good, [0; 8]).0.ok()?;
    call_portal(bad, [5; 8]).0.fails(Aborted)?;
    equal("vector", threads::fault_of(handler)?.map(|fault| fault.vector), Some(6))?;
    call_portal(good, [5; 8]).0.fails(Aborted)
}

fn busy(w: &mut World, body: usys::portal::Body) -> Seen<(Sel, Sel, [Pending; 3])> {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, body)?;
    let sm = w.sm(0)?;
    let callers = [
        w.begin((0, HIGH), Hypercall::Call, portal, [sm])?,
        w.begin((0, HIGH), Hypercall::Call, portal, [sm])?,
        w.begin((0, HIGH), Hypercall::Call, portal, [sm])?,
    ];
    Ok((handler, sm, callers))
}

fn a_handler_that_ends_aborts_its_callers(w: &mut World) -> Check {
    let (handler, _, callers) = busy(w, wait_for)?;
    call(Revoke, handler, [1]).done()?;
    callers.iter().try_for_each(|caller| w.answer(caller)?.fails(Aborted))
}

fn a_handler_that_ends_while_preempted_aborts_its_caller(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, spin_on)?;
    let caller = w.begin((0, LOW), Hypercall::Call, portal, [0])?;
    w.until("the handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
    call(Revoke, handler, [1]).done()?;
    w.answer(&caller)?.fails(Aborted)
}

fn a_handler_that_ends_behind_a_busy_one_aborts_its_caller(w: &mut World) -> Check {
    let (outer, inner, sm) = (w.handler(0)?, w.handler(0)?, w.sm(0)?);
    let (through, to) = (w.portal(outer, forward)?, w.portal(inner, wait_for)?);
    let served = w.begin((0, HIGH), Hypercall::Call, to, [sm])?;
    equal("calls begun", board(0).load(Ordering::Relaxed), 1)?;
    // It helps the inner handler, which waits and goes on waiting.
    let queued = w.begin((0, HIGH), Hypercall::Call, through, [to, sm])?;
    equal("is done", queued.is_done(), false)?;
    call(Revoke, outer, [1]).done()?;
    w.answer(&queued)?.fails(Aborted)?;
    call(Signal, sm, []).done()?;
    w.answer(&served)?.ok().map(drop)
}

fn a_portal_that_ends_does_not_end_the_call(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let portal = w.portal(handler, wait_for)?;
    let sm = w.sm(0)?;
    let caller = w.begin((0, HIGH), Hypercall::Call, portal, [sm])?;
    call(Revoke, portal, [1]).done()?;
    equal("is done", caller.is_done(), false)?;
    call(Signal, sm, []).done()?;
    w.answer(&caller)?.ok().map(drop)
}

fn a_caller_that_ends_leaves_the_handler_usable(w: &mut World) -> Check {
    let (_, sm, callers) = busy(w, wait_for)?;
    // The one that is served, while its handler waits.
    callers[0].end()?;
    w.until("the next is served", || board(0).load(Ordering::Relaxed) == 2)?;
    call(Signal, sm, []).done()?;
    w.answer(&callers[1])?.ok()?;
    call(Signal, sm, []).done()?;
    w.answer(&callers[2])?.ok()?;
    // While it runs.
    board(0).store(0, Ordering::Relaxed);
    let handler = w.handler(0)?;
    let portal = w.portal(handler, spin_on)?;
    let caller = w.begin((0, LOW), Hypercall::Call, portal, [0])?;
    w.until("the handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
    caller.end()?;
    board(2).store(1, Ordering::Relaxed);
    let (answer, reply) = call_portal(portal, [0; 8]);
    answer.ok()?;
    equal("reply", reply[0], 7)
}

fn a_queued_caller_that_ends_is_forgotten(w: &mut World) -> Check {
    let (_, sm, callers) = busy(w, wait_for)?;
    callers[1].end()?;
    for caller in [callers[0], callers[2]] {
        call(Signal, sm, []).done()?;
        w.answer(&caller)?.ok()?;
    }
    equal("calls begun", board(0).load(Ordering::Relaxed), 2)
}

fn a_queued_caller_survives_the_end_of_its_portal(w: &mut World) -> Check {
    let handler = w.handler(0)?;
    let (first, second) = (w.portal(handler, wait_for)?, w.portal(handler, wait_for)?);
    let sm = w.sm(0)?;
    let served = w.begin((0, HIGH), Hypercall::Call, first, [sm])?;
    let queued = w.begin((0, HIGH), Hypercall::Call, second, [sm])?;
    call(Revoke, second, [1]).done()?;
    // Something else takes the memory, and the selector.
    for _ in 0..40 {
        w.sm(0)?;
    }
    call(Signal, sm, []).done()?;
    w.answer(&served)?.ok()?;
    // It makes the call afresh, and finds nothing.
    w.answer(&queued)?.fails(BadSelector)
}

fn scheduling_context_revoked_in_a_call_makes_the_handler_idle(w: &mut World) -> Check {
    let (_, sm, callers) = busy(w, wait_for)?;
    call(Revoke, callers[0].sc, [1]).done()?;
    w.until("the next is served", || board(0).load(Ordering::Relaxed) == 2)?;
    call(Signal, sm, []).done()?;
    w.answer(&callers[1])?.ok()?;
    equal("it goes on without an SC", callers[0].is_done(), false)?;
    w.sc(callers[0].ec, HIGH)?;
    w.answer(&callers[0])?.fails(Aborted)?;
    call(Signal, sm, []).done()?;
    w.answer(&callers[2])?.ok()?;
    // In a nested call, while the last handler is preempted.
    board(0).store(0, Ordering::Relaxed);
    let (outer, inner) = (w.handler(0)?, w.handler(0)?);
    let (through, to) = (w.portal(outer, forward)?, w.portal(inner, spin_on)?);
    let caller = w.begin((0, LOW), Hypercall::Call, through, [to])?;
    w.until("the inner handler runs", || board(0).load(Ordering::Relaxed) == 1)?;
    call(Revoke, caller.sc, [1]).done()?;
    board(2).store(1, Ordering::Relaxed);
    let (answer, reply) = call_portal(through, [to, 0, 0, 0, 0, 0, 0, 0]);
    answer.ok()?;
    equal("status inside, reply", (reply[7], reply[0]), (0, 7))?;
    w.sc(caller.ec, LOW)?;
    w.answer(&caller)?.fails(Aborted)
}

fn reply_outside_a_handler_is_refused(_: &mut World) -> Check {
    call(Reply, 0, [1, 2, 3]).fails(BadType)
}

fn a_handler_of_another_cpu_is_not_called(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let handler = w.handler(cpu)?;
    let portal = w.portal(handler, add_index)?;
    call_portal(portal, [0; 8]).0.fails(WrongCpu)?;
    let answer = w.call_on(cpu, Hypercall::Call, portal, [10, 20, 30])?;
    answer.gives([11, 22, 33])
}
