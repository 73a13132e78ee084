//! Priorities, budgets, periods.

use super::{Group, Needs, group};
use crate::layout::{RUNNER_EC, RUNNER_SC};
use crate::prelude::*;
use crate::threads::{self, HIGH, LOW};
use crate::world::board;
use core::sync::atomic::Ordering;
use usys::cpu;

pub(super) const GROUP: Group = group!(
    "scheduling",
    Needs::Nothing => [
        a_more_urgent_thread_starts_at_once,
        a_less_urgent_thread_starts_when_others_wait,
        a_woken_thread_preempts_only_the_less_urgent,
        equals_share_the_processor_in_slices,
        yield_lets_an_equal_run,
        yield_gives_up_the_budget_of_the_period,
        a_budget_bounds_the_time_in_any_period,
        a_thread_whose_budget_is_spent_leaves_the_processor_to_others,
        used_time_is_told,
        time_that_others_took_is_told,
        a_thread_without_an_sc_stands_still_and_goes_on_with_another,
        a_thread_that_revokes_its_own_sc_goes_on_with_another,
        many_threads_with_tiny_budgets_do_not_stop_the_machine,
    ],
);

extern "C" fn count(index: u64) -> ! {
    loop {
        board(index as usize).fetch_add(1, Ordering::Relaxed);
    }
}

extern "C" fn mark(index: u64) -> ! {
    board(index as usize).store(1, Ordering::Relaxed);
    threads::park()
}

extern "C" fn count_and_yield(index: u64) -> ! {
    loop {
        board(index as usize).fetch_add(1, Ordering::Relaxed);
        call(Yield, 0, []);
    }
}

fn value(index: usize) -> u64 {
    board(index).load(Ordering::Relaxed)
}

fn a_more_urgent_thread_starts_at_once(w: &mut World) -> Check {
    for priority in [21, 25, 30, 31] {
        w.thread(0, priority, mark, 0)?;
        equal("it ran", board(0).swap(0, Ordering::Relaxed), 1)?;
    }
    Ok(())
}

fn a_less_urgent_thread_starts_when_others_wait(w: &mut World) -> Check {
    for priority in [0, 1, 19] {
        w.thread(0, priority, mark, 0)?;
        let end = cpu::now() + w.info.tsc_hz / 50;
        while cpu::now() < end {
            core::hint::spin_loop();
        }
        equal("it ran beside the more urgent", value(0), 0)?;
        w.sleep(5000);
        equal("it ran", board(0).swap(0, Ordering::Relaxed), 1)?;
    }
    Ok(())
}

extern "C" fn wait_and_mark(argument: u64) -> ! {
    call(Wait, argument >> 8, [FOREVER]);
    board((argument & 0xff) as usize).store(1, Ordering::Relaxed);
    threads::park()
}

fn a_woken_thread_preempts_only_the_less_urgent(w: &mut World) -> Check {
    let (high, low) = (w.sm(0)?, w.sm(0)?);
    w.thread(0, HIGH, wait_and_mark, high << 8)?;
    w.thread(0, LOW, wait_and_mark, low << 8 | 1)?;
    w.sleep(2000);
    call(Signal, low, []).done()?;
    equal("the less urgent ran", value(1), 0)?;
    call(Signal, high, []).done()?;
    equal("the more urgent ran", value(0), 1)?;
    w.sleep(2000);
    equal("the less urgent ran", value(1), 1)
}

fn equals_share_the_processor_in_slices(w: &mut World) -> Check {
    let mut scs = alloc::vec![];
    for index in 0..4 {
        let ec = w.ec(0, count as *const () as u64, index)?;
        let sc = w.sel();
        call(CreateSc, sc, [w.pool, ec, LOW, 1000, 1000]).done()?;
        scs.push(sc);
    }
    let used = || -> alloc::vec::Vec<u64> {
        let used = |&sc| call(ScInfo, sc, []).values[0];
        scs.iter().map(used).collect()
    };
    let mut last = (0, 0);
    // An emulator may stand still in anybody's slice, and for longer than all the others take: then this is no measurement.
    for _ in 0..4 {
        let before = used();
        w.sleep(100_000);
        let after = used();
        let shares = || before.iter().zip(&after).map(|(before, after)| after - before);
        last = (shares().min().unwrap_or(0), shares().max().unwrap_or(0));
        let (least, most) = last;
        if least > 0 && most / 8 <= least {
            return Ok(());
        }
    }
    Err(Failure::new("ticks used", last.0, last.1))
}

fn yield_lets_an_equal_run(w: &mut World) -> Check {
    w.thread(0, LOW, count_and_yield, 0)?;
    w.thread(0, LOW, count_and_yield, 1)?;
    w.sleep(20_000);
    let (a, b) = (value(0), value(1));
    holds("both run", a > 2 && b > 2)?;
    holds("in turn", a.abs_diff(b) <= a / 4 + 3)
}

fn yield_gives_up_the_budget_of_the_period(w: &mut World) -> Check {
    let ec = w.ec(0, count_and_yield as *const () as u64, 0)?;
    let sc = w.sel();
    // 2 ms in every 10 ms: a yield in each gives up the rest.
    call(CreateSc, sc, [w.pool, ec, LOW, 2_000, 10_000]).done()?;
    w.sleep(105_000);
    let times = value(0);
    holds("about once in a period", (5..=13).contains(&times))
        .map_err(|_| Failure::new("yields", times, "5 to 13"))
}

fn a_budget_bounds_the_time_in_any_period(w: &mut World) -> Check {
    let ec = w.ec(0, count as *const () as u64, 0)?;
    let sc = w.sel();
    // A fifth of the processor.
    call(CreateSc, sc, [w.pool, ec, LOW, 2_000, 10_000]).done()?;
    let begin = cpu::now();
    w.sleep(200_000);
    let used = call(ScInfo, sc, []).value()?;
    let passed = cpu::now() - begin;
    // Twice as much, since an emulator may stand still while the thread runs.
    let most = passed * 2 / 5;
    if used > most {
        return Err(Failure::new("ticks used", used, most));
    }
    holds("it got most of its share", used > passed / 20)
        .map_err(|_| Failure::new("ticks used", used, passed / 5))
}

fn a_thread_whose_budget_is_spent_leaves_the_processor_to_others(w: &mut World) -> Check {
    // More urgent than the test, and endless; yet the test goes on.
    let ec = w.ec(0, count as *const () as u64, 0)?;
    let sc = w.sel();
    call(CreateSc, sc, [w.pool, ec, HIGH, 1_000, 20_000]).done()?;
    w.until("it runs", || value(0) > 0)?;
    let first = value(0);
    w.until("it runs again", || value(0) > first)?;
    call(Revoke, ec, [1]).done()?;
    let last = value(0);
    w.sleep(30_000);
    equal("it is over", value(0), last)
}

fn used_time_is_told(w: &mut World) -> Check {
    let (_, sc) = w.thread(0, LOW, count, 0)?;
    let before = call(ScInfo, sc, []).value()?;
    w.sleep(30_000);
    let used = call(ScInfo, sc, []).value()? - before;
    holds("half of the time at least", used > w.info.tsc_hz * 15 / 1000)
        .map_err(|_| Failure::new("ticks used in 30 ms", used, w.info.tsc_hz * 30 / 1000))
}

fn time_that_others_took_is_told(w: &mut World) -> Check {
    let (_, one) = w.thread(0, LOW, count, 0)?;
    let alone = call(ScInfo, one, []).ok()?[1];
    let ms = w.info.tsc_hz / 1000;
    w.thread(0, LOW, count, 1)?;
    w.sleep(100_000);
    let [used, waited, _] = call(ScInfo, one, []).ok()?;
    let waited = waited - alone;
    holds("an equal took some of its time", waited > 20 * ms)
        .map_err(|_| Failure::new("ticks waited", waited, 50 * ms))?;
    // What it is kept waiting for by its budget counts too.
    let ec = w.ec(0, count as *const () as u64, 2)?;
    let sc = w.sel();
    call(CreateSc, sc, [w.pool, ec, HIGH, 2_000, 10_000]).done()?;
    w.sleep(100_000);
    let [spent, out_of_budget, _] = call(ScInfo, sc, []).ok()?;
    holds("it ran", used > 0 && spent > 0)?;
    holds("its budget took most of its time", out_of_budget > spent)
        .map_err(|_| Failure::new("ticks out of budget", out_of_budget, 4 * spent))
}

fn a_thread_without_an_sc_stands_still_and_goes_on_with_another(w: &mut World) -> Check {
    let (ec, sc) = w.thread(0, LOW, count, 0)?;
    for _ in 0..5 {
        w.sleep(3000);
        let sc = if call(CapInfo, sc, []).status() == Some(Success) { sc } else { crate::layout::SCRATCH };
        call(Revoke, sc, [1]).done()?;
        let stopped = value(0);
        holds("it ran", stopped > 0)?;
        w.sleep(3000);
        equal("it stands still", value(0), stopped)?;
        call(CreateSc, crate::layout::SCRATCH, [w.pool, ec, LOW, 10_000, 10_000]).done()?;
        w.sleep(3000);
        holds("it goes on", value(0) > stopped)?;
    }
    Ok(())
}

extern "C" fn revoke_sc(sc: u64) -> ! {
    call(Revoke, sc, [1]);
    board(0).store(1, Ordering::Relaxed);
    threads::park()
}

fn a_thread_that_revokes_its_own_sc_goes_on_with_another(w: &mut World) -> Check {
    let sc = w.sel();
    let ec = w.ec(0, revoke_sc as *const () as u64, sc)?;
    call(CreateSc, sc, [w.pool, ec, HIGH, 10_000, 10_000]).done()?;
    equal("it went on without", value(0), 0)?;
    call(CapInfo, sc, []).fails(BadSelector)?;
    w.sc(ec, HIGH)?;
    w.until("it goes on", || value(0) == 1)
}

fn many_threads_with_tiny_budgets_do_not_stop_the_machine(w: &mut World) -> Check {
    let first = w.sels(60);
    let (pool, pd) = (w.pool, crate::layout::PD);
    // They share a stack: they use none.
    let stack = w.stacks.take();
    for index in 0..30 {
        let (ec, sc) = (first + index, first + 30 + index);
        call(CreateEc, ec, [pool, pd, 0, spin_forever as *const () as u64, stack - 8]).done()?;
        call(CreateSc, sc, [pool, ec, HIGH, 1, 1000 + index]).done()?;
    }
    for _ in 0..20 {
        w.sleep(1000);
    }
    equal("faults", threads::fault_of(RUNNER_EC)?, None)?;
    call(ScInfo, RUNNER_SC, []).ok().map(drop)
}

core::arch::global_asm!(
    ".pushsection .text.conformance_spin, \"ax\"",
    ".global conformance_spin",
    "conformance_spin:",
    "pause",
    "jmp conformance_spin",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "conformance_spin"]
    fn spin_forever();
}
