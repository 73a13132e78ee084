//! Kernel memory: pools that are exhausted, and pools that end.

use super::create::recipes;
use super::{Group, Needs, group};
use crate::child::own;
use crate::guest;
use crate::layout::{ARENA, PD, RUNNER_EC, SCRATCH};
use crate::prelude::*;
use crate::threads;
use crate::world::{RW, free_frames, map_all};
use hypercall_abi::Hypercall;
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::ExitKind;

pub(super) const GROUP: Group = group!(
    "kernel memory",
    Needs::Nothing => [
        pools_nest_so_deep_and_no_deeper,
        the_innermost_pool_gets_every_frame_it_was_promised,
        an_exhausted_pool_refuses_and_changes_nothing,
        an_exhausted_pool_is_no_other_pools_problem,
        mapping_into_a_domain_without_memory_is_refused,
        the_end_of_a_pool_ends_everything_in_it,
        the_end_of_a_pool_reaches_pools_made_from_it,
        a_thousand_lives_of_everything_leave_no_trace,
        a_thousand_processes_leave_no_trace,
    ],
    Needs::Guests => [
        mapping_into_a_guest_without_memory_is_refused,
        three_hundred_virtual_machines_leave_no_trace,
    ],
);

fn an_exhausted_pool_refuses_and_changes_nothing(w: &mut World) -> Check {
    let recipes = recipes(w)?;
    for frames in 1..=12 {
        for (number, _, arguments) in &recipes {
            w.scoped(frames, |w| fill(w, *number, *arguments))?;
        }
    }
    Ok(())
}

/// Makes objects of one kind until the pool is exhausted; the refusals must leave everything as it was.
fn fill(w: &mut World, number: Hypercall, mut arguments: [u64; 6]) -> Check {
    arguments[0] = w.pool;
    // A thread has one scheduling context.
    let most = if number == CreateSc { 1 } else { 1000 };
    for _ in 0..most {
        let (to, before) = (w.sel(), free_frames(w.pool)?);
        let answer = call(number, to, arguments);
        if answer.status() == Some(Success) {
            continue;
        }
        answer.fails(NoMemory)?;
        equal("free frames after a refusal", free_frames(w.pool)?, before)?;
        return call(CapInfo, to, []).fails(BadSelector);
    }
    equal("objects made without an end", most, 1)
}

fn an_exhausted_pool_is_no_other_pools_problem(w: &mut World) -> Check {
    let (small, sibling) = (w.sub_pool(6)?, w.sub_pool(6)?);
    let first = w.sels(512);
    let mut made = 0;
    loop {
        let answer = call(CreateNtfn, first + made, [small]);
        if answer.status() != Some(Success) {
            answer.fails(NoMemory)?;
            break;
        }
        made += 1;
    }
    holds("several fit", made > 6)?;
    equal("free frames", free_frames(small)?, 0)?;
    let to = w.sel();
    for number in [CreateNtfn, CreatePd, CreateSm] {
        call(number, to, [small]).fails(NoMemory)?;
        call(number, to, [sibling]).done()?;
        call(Revoke, to, [1]).done()?;
    }
    // Room for one: exactly one.
    call(Revoke, first, [1]).done()?;
    call(CreateSm, first, [small]).done()?;
    call(CreateSm, to, [small]).fails(NoMemory)?;
    equal("frames of the sibling", call(PoolInfo, sibling, []).ok()?[1], 6)
}

fn mapping_into_a_domain_without_memory_is_refused(w: &mut World) -> Check {
    let memory = w.ram(4)?;
    // A domain needs frames for itself; then three levels of page tables, one at a time.
    let (pool, pd) = (w.sub_pool(12)?, w.sel());
    call(CreatePd, pd, [pool]).done()?;
    let drain = w.drain(pool)?;
    call(Map, memory, [pd, 0x40_0000, 0, 4, RW.bits().into()]).fails(NoMemory)?;
    // It is not attached: another place works once there is memory.
    call(Revoke, drain, [1]).done()?;
    call(Map, memory, [pd, 0x80_0000, 0, 4, RW.bits().into()]).gives([4, 0, 0])?;
    call(Unmap, memory, [0, 4]).gives([4, 0, 0])?;
    let before = free_frames(pool)?;
    call(Map, memory, [pd, 0x80_0000, 0, 4, RW.bits().into()]).gives([4, 0, 0])?;
    holds("tables are used again", free_frames(pool)? <= before)
}

fn mapping_into_a_guest_without_memory_is_refused(w: &mut World) -> Check {
    let memory = w.ram(4)?;
    let (pool, space) = (w.sub_pool(8)?, w.sel());
    call(CreateGuestSpace, space, [pool]).done()?;
    let drain = w.drain(pool)?;
    call(Map, memory, [space, 0, 0, 4, RW.bits().into()]).fails(NoMemory)?;
    call(Revoke, drain, [1]).done()?;
    call(Map, memory, [space, 0x1000, 0, 4, RW.bits().into()]).gives([4, 0, 0])
}

impl World {
    /// Takes every free frame of a pool away: the pool that has them.
    fn drain(&mut self, pool: Sel) -> Seen<Sel> {
        let drain = self.sel();
        let free = free_frames(pool)?;
        // The object itself may take a frame.
        if call(CreatePool, drain, [pool, free, 0]).status() != Some(Success) {
            call(CreatePool, drain, [pool, free - 1, 0]).done()?;
        }
        equal("free frames of a drained pool", free_frames(pool)?, 0)?;
        Ok(drain)
    }
}

fn the_end_of_a_pool_ends_everything_in_it(w: &mut World) -> Check {
    let saved = w.pool;
    let at_rest = free_frames(saved)?;
    let pool = w.sub_pool(200)?;
    w.pool = pool;
    let made = populate(w)?;
    let derived = w.derive(made[0], Rights::ALL)?;
    w.pool = saved;
    call(Revoke, pool, [1]).done()?;
    for selector in made.into_iter().chain([derived, pool]) {
        call(CapInfo, selector, []).fails(BadSelector)?;
    }
    holds("free frames", at_rest - free_frames(saved)? <= 1)
}

/// One of everything that needs no virtualization, connected to each other; threads run, wait and call.
fn populate(w: &mut World) -> Seen<[Sel; 8]> {
    let (pd, sm, ntfn) = (w.pd()?, w.sm(0)?, w.ntfn()?);
    let (ec, sc) = w.thread(0, threads::LOW, spin, 0)?;
    let waiting = w.begin((0, threads::HIGH), Wait, sm, [FOREVER])?;
    let handler = w.handler(0)?;
    let portal = w.portal(handler, echo)?;
    call(Bind, ec, [ntfn, BindRole::FaultNotification as u64]).done()?;
    let memory = w.part(ARENA, 64, 8)?;
    map_all(memory, pd, 0x40_0000, 0, 8, RW)?;
    call(Derive, sm, [pd, 30, 0xffff]).done()?;
    Ok([pd, sm, ntfn, ec, sc, waiting.ec, handler, portal])
}

extern "C" fn spin(_: u64) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

extern "C" fn echo(_: &mut [u64; 8]) {}

fn the_end_of_a_pool_reaches_pools_made_from_it(w: &mut World) -> Check {
    let top = w.sub_pool(60)?;
    let mut pool = top;
    let mut made = alloc::vec![];
    for frames in [50, 40, 30, 20, 10] {
        let (below, sm) = (w.sel(), w.sel());
        call(CreatePool, below, [pool, frames, 0]).done()?;
        call(CreateSm, sm, [below, 0]).done()?;
        made.extend([below, sm]);
        pool = below;
    }
    call(Revoke, top, [1]).done()?;
    for selector in made {
        call(CapInfo, selector, []).fails(BadSelector)?;
    }
    Ok(())
}

fn a_thousand_lives_of_everything_leave_no_trace(w: &mut World) -> Check {
    let recipes = recipes(w)?;
    let first = w.sels(16);
    let mut before = None;
    for round in 0..1000 {
        for (index, (number, _, arguments)) in recipes.iter().enumerate() {
            call(*number, first + index as u64, *arguments).done()?;
        }
        for index in 0..recipes.len() as u64 {
            // In one order and the other.
            let index = if round % 2 == 0 { index } else { recipes.len() as u64 - 1 - index };
            call(Revoke, first + index, [1]).done()?;
        }
        // The first round makes the slabs.
        if round == 0 {
            before = Some(free_frames(w.pool)?);
        }
    }
    equal("free frames", Some(free_frames(w.pool)?), before)
}

fn a_thousand_processes_leave_no_trace(w: &mut World) -> Check {
    let (pool, pd, ec, sc, sm) = (w.sel(), w.sel(), w.sel(), w.sel(), w.sel());
    let memory = w.ram(2)?;
    let mut before = None;
    for round in 0..1000 {
        let mapped = SCRATCH;
        call(CreatePool, pool, [w.pool, 24, 0]).done()?;
        call(CreatePd, pd, [pool]).done()?;
        call(CreateSm, sm, [pool, 0]).done()?;
        call(Derive, memory, [0, mapped, 0xffff]).done()?;
        call(Map, mapped, [pd, 0x40_0000, 0, 2, 7]).gives([2, 0, 0])?;
        call(CreateEc, ec, [pool, pd, 0, 0x40_0000, 0x40_1000]).done()?;
        call(Bind, ec, [sm, BindRole::FaultNotification as u64]).done()?;
        call(Derive, sm, [pd, own::FREE, 0xffff]).done()?;
        call(Derive, RUNNER_EC, [pd, own::FREE + 1, 0xffff]).done()?;
        // It runs whatever is in the memory: zeros, which write to [RAX], a fault.
        call(CreateSc, sc, [pool, ec, threads::HIGH, 1000, 1000]).done()?;
        call(Wait, sm, [w.deadline(1_000_000)]).gives([1, 0, 0])?;
        call(Revoke, pool, [1]).done()?;
        call(Revoke, mapped, [1]).done()?;
        if round == 0 {
            before = Some(free_frames(w.pool)?);
        }
    }
    call(CapInfo, PD, []).ok()?;
    equal("free frames", Some(free_frames(w.pool)?), before)
}

fn three_hundred_virtual_machines_leave_no_trace(w: &mut World) -> Check {
    let mut before = None;
    for _ in 0..300 {
        w.scoped(64, |w| {
            let mut guest = guest::Guest::new(w)?;
            guest.code(&[0xf4]);
            guest.run_to(ExitKind::Hlt)
        })?;
        // The first round makes the slab of pools.
        before = before.or(Some(free_frames(w.pool)?));
    }
    equal("free frames", Some(free_frames(w.pool)?), before)
}

fn pools_nest_so_deep_and_no_deeper(w: &mut World) -> Check {
    let (mut pool, mut frames, mut depth) = (w.pool, 600, 1);
    loop {
        let inner = w.sel();
        let answer = call(CreatePool, inner, [pool, frames, 0]);
        if answer.status() == Some(Unsupported) {
            answer.fails(Unsupported)?;
            break;
        }
        answer.done()?;
        (pool, frames, depth) = (inner, frames - 4, depth + 1);
    }
    equal("pools in a row", depth, 64)
}

fn the_innermost_pool_gets_every_frame_it_was_promised(w: &mut World) -> Check {
    let mut pools = alloc::vec![w.pool];
    for level in 0..6 {
        let (inner, outer) = (w.sel(), pools[level]);
        call(CreatePool, inner, [outer, 200 - 20 * level as u64, 0]).done()?;
        pools.push(inner);
    }
    // Each domain takes two frames, and one in a few a third for the objects themselves.
    let innermost = pools[6];
    let mut made = 0;
    loop {
        let to = w.sel();
        let answer = call(CreatePd, to, [innermost]);
        if answer.status() == Some(NoMemory) {
            break;
        }
        answer.done()?;
        made += 1;
    }
    let [free, total, _] = call(PoolInfo, innermost, []).ok()?;
    holds("only a frame is left", total == 100 && free < 2 && made > 40)?;
    for pool in pools.into_iter().skip(1).rev() {
        let [_, total, _] = call(PoolInfo, pool, []).ok()?;
        call(Revoke, pool, [0]).done()?;
        equal("frames of the pool", call(PoolInfo, pool, []).ok()?[1], total)?;
        call(Revoke, pool, [1]).done()?;
    }
    Ok(())
}
