//! Semaphores and notifications.

use super::{Group, Needs, group};
use crate::prelude::*;
use crate::threads::HIGH;
use usys::cpu;

pub(super) const GROUP: Group = group!(
    "signals",
    Needs::Nothing => [
        a_semaphore_counts,
        a_count_stays_at_its_largest_value,
        a_notification_collects_bits,
        signal_and_wait_need_their_rights,
        a_wait_ends_at_its_deadline,
        a_deadline_in_the_past_only_looks,
        waiters_are_woken_in_order,
        a_notification_gives_all_bits_to_the_first_waiter,
        the_end_of_the_object_aborts_its_waiters,
        the_end_of_a_derived_capability_aborts_nobody,
        a_waiter_that_ends_is_forgotten,
        a_waiter_without_processor_time_takes_its_signal_later,
        many_waiters_with_deadlines_are_woken_by_time,
    ],
);

fn a_semaphore_counts(w: &mut World) -> Check {
    let sm = w.sm(3)?;
    for _ in 0..2 {
        call(Signal, sm, []).done()?;
    }
    for _ in 0..5 {
        call(Wait, sm, [NOW]).gives([1, 0, 0])?;
    }
    call(Wait, sm, [NOW]).fails(Timeout)
}

fn a_count_stays_at_its_largest_value(w: &mut World) -> Check {
    let sm = w.sm(u64::MAX)?;
    call(Signal, sm, []).done()?;
    call(Wait, sm, [NOW]).gives([1, 0, 0])?;
    call(Signal, sm, []).done()?;
    call(Wait, sm, [NOW]).gives([1, 0, 0])
}

fn a_notification_collects_bits(w: &mut World) -> Check {
    let ntfn = w.ntfn()?;
    let first = w.sels(64);
    for bit in 0..64 {
        call(Derive, ntfn, [0, first + bit, Rights::SIGNAL.bits().into(), 0, 0, 1 << bit]).done()?;
    }
    for bit in [0, 5, 5, 63] {
        call(Signal, first + bit, []).done()?;
    }
    call(Wait, ntfn, [FOREVER]).gives([1 | 1 << 5 | 1 << 63, 0, 0])?;
    call(Wait, ntfn, [NOW]).fails(Timeout)
}

fn signal_and_wait_need_their_rights(w: &mut World) -> Check {
    for object in [w.sm(1)?, w.ntfn()?] {
        let (no_signal, no_wait) = (w.without(object, Rights::SIGNAL)?, w.without(object, Rights::WAIT)?);
        call(Signal, no_signal, []).fails(BadRights)?;
        call(Wait, no_wait, [NOW]).fails(BadRights)?;
        call(Signal, no_wait, []).done()?;
    }
    let pool = w.pool;
    call(Signal, pool, []).fails(BadType)?;
    call(Wait, pool, [NOW]).fails(BadType)
}

fn a_wait_ends_at_its_deadline(w: &mut World) -> Check {
    for object in [w.sm(0)?, w.ntfn()?] {
        for microseconds in [100, 3000, 20_000] {
            let deadline = w.deadline(microseconds);
            call(Wait, object, [deadline]).fails(Timeout)?;
            let now = cpu::now();
            holds("not before the deadline", now >= deadline)?;
            // Emulators stop now and then for as long as they like.
            holds("soon after it", now < deadline + w.info.tsc_hz)?;
        }
    }
    Ok(())
}

fn a_deadline_in_the_past_only_looks(w: &mut World) -> Check {
    let sm = w.sm(1)?;
    for deadline in [0, 1, cpu::now() - 1] {
        call(Wait, sm, [deadline]).gives([1, 0, 0])?;
        call(Wait, sm, [deadline]).fails(Timeout)?;
        call(Signal, sm, []).done()?;
    }
    Ok(())
}

fn waiters_are_woken_in_order(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let mut waiters = alloc::vec![];
    for _ in 0..5 {
        waiters.push(w.begin((0, HIGH), Wait, sm, [FOREVER])?);
    }
    for woken in 0..5 {
        call(Signal, sm, []).done()?;
        for (index, waiter) in waiters.iter().enumerate() {
            equal("is woken", waiter.is_done(), index <= woken)?;
        }
        waiters[woken].result().gives([1, 0, 0])?;
    }
    call(Wait, sm, [NOW]).fails(Timeout)
}

fn a_notification_gives_all_bits_to_the_first_waiter(w: &mut World) -> Check {
    let ntfn = w.ntfn()?;
    let badged = w.sel();
    call(Derive, ntfn, [0, badged, 0xffff, 0, 0, 0x8001]).done()?;
    let first = w.begin((0, HIGH), Wait, ntfn, [FOREVER])?;
    let second = w.begin((0, HIGH), Wait, ntfn, [FOREVER])?;
    // No bits wake nobody.
    call(Signal, ntfn, []).done()?;
    equal("woken by nothing", first.is_done(), false)?;
    call(Signal, badged, []).done()?;
    first.result().gives([0x8001, 0, 0])?;
    equal("the second waits on", second.is_done(), false)?;
    call(Signal, badged, []).done()?;
    w.answer(&second)?.gives([0x8001, 0, 0])
}

fn the_end_of_the_object_aborts_its_waiters(w: &mut World) -> Check {
    for object in [w.sm(0)?, w.ntfn()?] {
        let deadline = w.deadline(100_000_000);
        let waiters =
            [w.begin((0, HIGH), Wait, object, [FOREVER])?, w.begin((0, HIGH), Wait, object, [deadline])?];
        call(Revoke, object, [1]).done()?;
        for waiter in waiters {
            w.answer(&waiter)?.fails(Aborted)?;
        }
    }
    Ok(())
}

fn the_end_of_a_derived_capability_aborts_nobody(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let derived = w.derive(sm, Rights::WAIT)?;
    let waiter = w.begin((0, HIGH), Wait, derived, [FOREVER])?;
    call(Revoke, derived, [1]).done()?;
    equal("is woken", waiter.is_done(), false)?;
    call(Signal, sm, []).done()?;
    w.answer(&waiter)?.gives([1, 0, 0])
}

fn a_waiter_that_ends_is_forgotten(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let deadline = w.deadline(5_000);
    let gone = [w.begin((0, HIGH), Wait, sm, [FOREVER])?, w.begin((0, HIGH), Wait, sm, [deadline])?];
    let stays = w.begin((0, HIGH), Wait, sm, [FOREVER])?;
    gone.iter().try_for_each(|waiter| waiter.end())?;
    call(Signal, sm, []).done()?;
    w.answer(&stays)?.gives([1, 0, 0])?;
    w.sleep(10_000);
    call(Wait, sm, [NOW]).fails(Timeout)
}

fn a_waiter_without_processor_time_takes_its_signal_later(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let waiter = w.begin((0, HIGH), Wait, sm, [FOREVER])?;
    call(Revoke, waiter.sc, [1]).done()?;
    call(Signal, sm, []).done()?;
    w.sleep(2000);
    equal("it runs without an SC", waiter.is_done(), false)?;
    w.sc(waiter.ec, HIGH)?;
    w.answer(&waiter)?.gives([1, 0, 0])?;
    // And the other way round: the SC first.
    let waiter = w.begin((0, HIGH), Wait, sm, [FOREVER])?;
    call(Revoke, waiter.sc, [1]).done()?;
    w.sc(waiter.ec, HIGH)?;
    equal("it waits on", waiter.is_done(), false)?;
    call(Signal, sm, []).done()?;
    w.answer(&waiter)?.gives([1, 0, 0])
}

fn many_waiters_with_deadlines_are_woken_by_time(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let begin = cpu::now();
    let unit = w.info.tsc_hz / 1000;
    let mut waiters = alloc::vec![];
    for index in 0..20_u64 {
        // Not in order.
        let milliseconds = 20 + index * 7 % 20;
        let deadline = begin + milliseconds * unit;
        waiters.push((deadline, w.begin((0, HIGH), Wait, sm, [deadline])?));
    }
    for _ in 0..200 {
        let before = cpu::now();
        let over = waiters.iter().filter(|(_, waiter)| waiter.is_done());
        for (deadline, _) in over {
            holds("nobody is early", cpu::now() >= *deadline)?;
        }
        let late = waiters.iter().filter(|(_, waiter)| !waiter.is_done());
        for (deadline, _) in late {
            holds("nobody is very late", before < *deadline + w.info.tsc_hz)?;
        }
        w.sleep(500);
    }
    waiters.into_iter().try_for_each(|(_, waiter)| w.answer(&waiter)?.fails(Timeout))
}
