//! Large operations: other threads run in between, and what is begun is finished.

use super::revoke::end_self;
use super::{Group, Needs, group};
use crate::layout::{PD, SCRATCH, SLEEP};
use crate::prelude::*;
use crate::threads::HIGH;
use crate::world::{board, free_frames, map_all};
use core::sync::atomic::Ordering;
use hypercall_abi::Hypercall::Call;
use hypercall_abi::cap::MapFlags;
use hypercall_abi::regs::pack_ec_place;
use usys::cpu;

pub(super) const GROUP: Group = group!(
    "large operations",
    Needs::Nothing => [
        unmapping_a_large_memory_lets_others_run,
        revoking_a_large_memory_lets_others_run,
        a_part_is_unmapped_in_parts,
        small_pages_where_large_ones_would_fit_are_mapped_in_parts,
        a_domain_with_many_capabilities_ends_and_lets_others_run,
        a_pool_with_many_objects_ends_and_lets_others_run,
        a_semaphore_with_many_waiters_ends_and_lets_others_run,
        a_handler_with_many_helpers_serves_them_all,
        a_long_chain_of_calls_ends_and_each_of_its_handlers_serves_on,
        what_a_thread_began_that_ended_itself_is_finished_by_the_next,
        domains_that_have_each_other_end_together,
    ],
    Needs::Guests => [
        a_guest_space_with_many_tables_ends_and_lets_others_run,
    ],
);

const RW: u64 = MapFlags::READ.union(MapFlags::WRITE).bits() as u64;
/// Word of the board that the ticking thread counts in.
const TICKS: usize = 8;

extern "C" fn tick(period: u64) -> ! {
    loop {
        board(TICKS).fetch_add(1, Ordering::Relaxed);
        call(Wait, SLEEP, [cpu::now() + period]);
    }
}

/// Checks that an urgent thread that sleeps for moments runs at least `times` during a hypercall.
#[track_caller]
fn is_interrupted(w: &mut World, times: u64, operation: impl FnOnce() -> Check) -> Check {
    // Long enough for others to get on, also where the TSC counts instructions.
    let period = (w.info.tsc_hz / 50_000).max(10_000);
    let (ec, _) = w.thread(0, HIGH, tick, period)?;
    let before = board(TICKS).load(Ordering::Relaxed);
    operation()?;
    let ticks = board(TICKS).load(Ordering::Relaxed) - before;
    call(Revoke, ec, [1]).done()?;
    if ticks >= times { Ok(()) } else { Err(Failure::new("times that another thread ran", ticks, times)) }
}

/// Memory that is mapped by 8000 small pages: the capability and its address.
fn large_mapping(w: &mut World) -> Seen<(Sel, u64)> {
    let memory = w.ram(8000)?;
    // Not as the frames lie, so that no large page is possible.
    let address = w.addresses(8001) + PAGE;
    map_all(memory, PD, address, 0, 8000, MapFlags::READ | MapFlags::WRITE)?;
    Ok((memory, address))
}

fn unmapping_a_large_memory_lets_others_run(w: &mut World) -> Check {
    let (memory, address) = large_mapping(w)?;
    is_interrupted(w, 4, || call(Unmap, memory, [0, 8000]).gives([8000, 0, 0]))?;
    // Nothing is left: other memory fits there.
    let other = w.derive(memory, Rights::ALL)?;
    call(Map, other, [PD, address + 4095 * PAGE, 0, 1, RW]).gives([1, 0, 0])
}

fn revoking_a_large_memory_lets_others_run(w: &mut World) -> Check {
    let (memory, _) = large_mapping(w)?;
    is_interrupted(w, 4, || call(Revoke, memory, [1]).done())
}

fn a_part_is_unmapped_in_parts(w: &mut World) -> Check {
    let (memory, address) = large_mapping(w)?;
    let mut done = 1;
    let mut calls = 0;
    while done < 8000 {
        let answer = call(Unmap, memory, [done, 8000 - done]);
        let is_partial = answer.status() == Some(Partial);
        let [pages, ..] = if is_partial { answer.values } else { answer.ok()? };
        holds("progress, and no more than asked for", pages > 0 && pages <= 8000 - done)?;
        equal("is complete", !is_partial, pages == 8000 - done)?;
        done += pages;
        calls += 1;
    }
    holds("several calls", calls > 4)?;
    // What was not asked for is still mapped.
    // SAFETY: the page is mapped, and nothing else is there.
    unsafe { (address as *mut u64).write_volatile(1) };
    call(Unmap, memory, [0, 8000]).gives([8000, 0, 0])
}

fn small_pages_where_large_ones_would_fit_are_mapped_in_parts(w: &mut World) -> Check {
    let (pd, memory) = (w.pd()?, w.large_ram(8 * 512)?);
    let base = 0x4000_0000;
    // A page here and there: their tables stay, and the rest goes into these.
    for index in (0..8 * 512).step_by(512) {
        let page = w.derive(memory, Rights::ALL)?;
        call(Map, page, [pd, base + index * PAGE, index, 1, RW]).gives([1, 0, 0])?;
    }
    let (mut done, mut calls) = (0, 0);
    while done < 8 * 512 {
        let answer = call(Map, memory, [pd, base + done * PAGE, done, 8 * 512 - done, RW]);
        let is_partial = answer.status() == Some(Partial);
        let [pages, ..] = if is_partial { answer.values } else { answer.ok()? };
        equal("is complete", !is_partial, pages == 8 * 512 - done)?;
        done += pages;
        calls += 1;
    }
    holds("several calls", calls >= 4)
}

fn a_domain_with_many_capabilities_ends_and_lets_others_run(w: &mut World) -> Check {
    let (pd, sm) = (w.pd()?, w.sm(0)?);
    for selector in 1..=2000 {
        call(Derive, sm, [pd, selector, 0xffff]).done()?;
    }
    is_interrupted(w, 8, || call(Revoke, pd, [1]).done())
}

fn a_pool_with_many_objects_ends_and_lets_others_run(w: &mut World) -> Check {
    let free = free_frames(w.pool)?;
    let (pool, first) = (w.sub_pool(200)?, w.sels(1000));
    for index in 0..1000 {
        call(CreateSm, first + index, [pool, 0]).done()?;
        call(Derive, first + index, [0, SCRATCH, 0xffff]).done()?;
        call(Revoke, SCRATCH, [1]).done()?;
    }
    is_interrupted(w, 8, || call(Revoke, pool, [1]).done())?;
    // But for those of the ticking thread.
    holds("its frames are back", free_frames(w.pool)? >= free - 4)
}

core::arch::global_asm!(
    // RDI: head of a Wait. It waits for ever, and if that ends for ever on a semaphore that nobody signals; it needs no stack.
    ".pushsection .text.conformance_waiter, \"ax\"",
    ".global conformance_waiter",
    "conformance_waiter:",
    "mov rax, rdi",
    "2:",
    "mov rdi, -1",
    "syscall",
    "mov rax, ({sleep} << 32) | {wait}",
    "jmp 2b",
    ".popsection",
    // RDI: a portal in its low half, the first message word in its high half. One call of the portal, without a stack.
    ".pushsection .text.conformance_caller, \"ax\"",
    ".global conformance_caller",
    "conformance_caller:",
    "mov eax, edi",
    "shl rax, 32",
    "shr rdi, 32",
    "syscall",
    "2:",
    "mov rdi, -1",
    "mov rax, ({sleep} << 32) | {wait}",
    "syscall",
    "jmp 2b",
    ".popsection",
    // A handler without a stack; RAX: a portal, RDI: 0 for a call of that, after which nothing comes, or for waiting for ever if it is 0.
    ".pushsection .text.conformance_chain, \"ax\"",
    ".global conformance_chain",
    "conformance_chain:",
    "test rdi, rdi",
    "jnz 3f",
    "shl rax, 32",
    "jnz 4f",
    "mov rdi, -1",
    "mov rax, ({sleep} << 32) | {wait}",
    "4:",
    "syscall",
    "ud2",
    "3:",
    "mov eax, {reply}",
    "syscall",
    "ud2",
    ".popsection",
    sleep = const SLEEP,
    wait = const Wait as u64,
    reply = const Reply as u64,
);

unsafe extern "C" {
    fn conformance_waiter();
    fn conformance_caller();
    fn conformance_chain();
}

/// Waits on the semaphore in word 0; word 0 of the board counts those that have.
extern "C" fn wait_and_count(words: &mut [u64; 8]) {
    call(Wait, words[0], [u64::MAX]);
    board(0).fetch_add(1, Ordering::Relaxed);
}

fn a_handler_with_many_helpers_serves_them_all(w: &mut World) -> Check {
    const CALLERS: u64 = 100;
    let (handler, sm) = (w.handler(0)?, w.sm(0)?);
    let portal = w.portal(handler, wait_and_count)?;
    let threads = w.sels(2 * CALLERS);
    for index in 0..CALLERS {
        let (ec, sc) = (threads + 2 * index, threads + 2 * index + 1);
        let argument = portal | sm << 32;
        call(CreateEc, ec, [w.pool, PD, 0, conformance_caller as *const () as u64, 0x1000, argument])
            .done()?;
        call(CreateSc, sc, [w.pool, ec, HIGH, 10_000, 10_000]).done()?;
    }
    // The first one's call waits, and all others wait with it.
    equal("calls that are over", board(0).load(Ordering::Relaxed), 0)?;
    is_interrupted(w, 2, || {
        for served in 1..=CALLERS {
            call(Signal, sm, []).done()?;
            let is_served = || board(0).load(Ordering::Relaxed) == served;
            equal("is served at once", is_served(), true)?;
        }
        Ok(())
    })
}

fn a_long_chain_of_calls_ends_and_each_of_its_handlers_serves_on(w: &mut World) -> Check {
    const LINKS: u64 = 600;
    let (handlers, portals) = (w.sels(LINKS), w.sels(LINKS));
    for index in 0..LINKS {
        let next = if index + 1 < LINKS { portals + index + 1 } else { 0 };
        let place = pack_ec_place(0, true);
        call(CreateEc, handlers + index, [w.pool, PD, place, 0x1000, 0x1000]).done()?;
        let ip = conformance_chain as *const () as u64;
        call(CreatePt, portals + index, [w.pool, handlers + index, ip, next]).done()?;
    }
    let ec = w.sel();
    call(CreateEc, ec, [w.pool, PD, 0, conformance_caller as *const () as u64, 0x1000, portals]).done()?;
    w.sc(ec, HIGH)?;
    call(Revoke, ec, [1]).done()?;
    for index in 0..LINKS {
        call(Call, portals + index, [1]).gives([1, 0, 0])?;
    }
    Ok(())
}

fn a_semaphore_with_many_waiters_ends_and_lets_others_run(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let threads = w.sels(500);
    let head = Wait as u64 | sm << 32;
    for index in 0..250 {
        let (ec, sc) = (threads + 2 * index, threads + 2 * index + 1);
        call(CreateEc, ec, [w.pool, PD, 0, conformance_waiter as *const () as u64, 0x1000, head]).done()?;
        call(CreateSc, sc, [w.pool, ec, HIGH, 10_000, 10_000]).done()?;
    }
    is_interrupted(w, 2, || call(Revoke, sm, [1]).done())
}

fn what_a_thread_began_that_ended_itself_is_finished_by_the_next(w: &mut World) -> Check {
    let free = free_frames(w.pool)?;
    let (pool, ec, sc, first) = (w.sub_pool(200)?, w.sel(), w.sel(), w.sels(1000));
    let stack = w.stacks.take();
    // The thread ends first, as the oldest object of the pool.
    call(CreateEc, ec, [pool, PD, 0, end_self as *const () as u64, stack - 8, pool]).done()?;
    for index in 0..1000 {
        call(CreateSm, first + index, [pool, 0]).done()?;
    }
    call(CreateSc, sc, [w.pool, ec, HIGH, 10_000, 10_000]).done()?;
    w.until("the thread ends its pool", || board(0).load(Ordering::Acquire) == 1)?;
    call(CapInfo, ec, []).fails(BadSelector)?;
    // Its capability has no rights any more, and ends the pool all the same.
    call(CapInfo, pool, []).gives([ObjectType::Pool as u64, 0, 0])?;
    call(CreateSm, ec, [pool, 0]).fails(BadRights)?;
    call(Revoke, pool, [1]).done()?;
    for selector in [pool, first, first + 999] {
        call(CapInfo, selector, []).fails(BadSelector)?;
    }
    holds("its frames are back", free_frames(w.pool)? >= free - 3)
}

fn domains_that_have_each_other_end_together(w: &mut World) -> Check {
    let free = free_frames(w.pool)?;
    let (a, b, sm) = (w.pd()?, w.pd()?, w.sm(0)?);
    for (of, to) in [(a, b), (b, a), (a, a), (b, b), (sm, a), (sm, b)] {
        call(Derive, of, [to, 100 + of % 64, 0xffff]).done()?;
    }
    call(Revoke, a, [1]).done()?;
    call(CapInfo, b, []).ok()?;
    call(Revoke, b, [1]).done()?;
    call(Revoke, sm, [1]).done()?;
    holds("their frames are back", free_frames(w.pool)? >= free - 2)
}

fn a_guest_space_with_many_tables_ends_and_lets_others_run(w: &mut World) -> Check {
    let (space, page) = (w.guest_space()?, w.ram(1)?);
    let first = w.sels(200);
    for index in 0..200 {
        call(Derive, page, [0, first + index, 0xffff]).done()?;
        call(Map, first + index, [space, index << 30, 0, 1, RW]).gives([1, 0, 0])?;
    }
    is_interrupted(w, 2, || call(Revoke, space, [1]).done())
}
