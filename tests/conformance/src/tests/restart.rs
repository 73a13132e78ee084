//! Calls that the kernel makes again: each keeps to what it began with.

use super::revoke::end_self;
use super::{Group, Needs, group};
use crate::layout::PD;
use crate::prelude::*;
use crate::threads::{HIGH, LOW, Pending};
use crate::world::board;
use core::sync::atomic::Ordering;

/// These tests.
pub const GROUP: Group = group!(
    "calls that are made again",
    Needs::Nothing => [
        a_revocation_leaves_what_comes_to_its_selector_meanwhile_alone,
        a_revocation_that_another_one_finishes_succeeds,
        a_thread_that_loses_its_sc_in_a_revocation_finishes_it_with_another,
    ],
);

const CHILDREN: u64 = 2000;

fn is_there(selector: Sel) -> bool {
    call(CapInfo, selector, []).status() == Some(Success)
}

/// Has another thread revoke a capability from which many are derived, and comes back when it has begun and is not through.
#[track_caller]
fn half_revoked(w: &mut World) -> Seen<(Sel, Pending)> {
    let (root, first) = (w.sel(), w.sels(CHILDREN));
    for _ in 0..10 {
        call(CreateSm, root, [w.pool, 0]).done()?;
        for index in 0..CHILDREN {
            call(Derive, root, [0, first + index, 0xffff]).done()?;
        }
        let pending = w.begin((0, LOW), Revoke, root, [1])?;
        // The newest one goes first.
        while is_there(first + CHILDREN - 1) {
            w.sleep(50);
        }
        if is_there(first) {
            return Ok((root, pending));
        }
        w.answer(&pending)?.done()?;
    }
    Err(Failure("a revocation was never seen half done".into()))
}

fn a_revocation_leaves_what_comes_to_its_selector_meanwhile_alone(w: &mut World) -> Check {
    let (root, pending) = half_revoked(w)?;
    call(Revoke, root, [1]).done()?;
    call(CreateSm, root, [w.pool, 7]).done()?;
    w.answer(&pending)?.done()?;
    call(CapInfo, root, []).ok()?;
    call(Wait, root, [NOW]).gives([1, 0, 0])
}

fn a_revocation_that_another_one_finishes_succeeds(w: &mut World) -> Check {
    let (root, pending) = half_revoked(w)?;
    // What is dying is finished by whoever revokes something.
    let other = w.sm(0)?;
    call(Revoke, other, [1]).done()?;
    call(Revoke, root, [1]).done()?;
    w.answer(&pending)?.done()?;
    call(CapInfo, root, []).fails(BadSelector)
}

fn a_thread_that_loses_its_sc_in_a_revocation_finishes_it_with_another(w: &mut World) -> Check {
    let (pool, ec, sc, first) = (w.sub_pool(200)?, w.sel(), w.sel(), w.sels(1000));
    let stack = w.stacks.take();
    call(CreateEc, ec, [w.pool, PD, 0, end_self as *const () as u64, stack - 8, pool]).done()?;
    // The scheduling context goes before all else that the pool pays for.
    call(CreateSc, sc, [pool, ec, LOW, 10_000, 10_000]).done()?;
    for index in 0..1000 {
        call(CreateSm, first + index, [pool, 0]).done()?;
    }
    w.until("the thread ends the pool", || {
        w.sleep(1000);
        !is_there(sc)
    })?;
    equal("it is in its call", board(1).load(Ordering::Relaxed), 0)?;
    call(CapInfo, pool, []).gives([ObjectType::Pool as u64, 0, 0])?;
    w.sc(ec, HIGH)?;
    w.until("the thread goes on", || board(1).load(Ordering::Acquire) != 0)?;
    equal("status it saw", board(1).load(Ordering::Relaxed) - 1, Success as u64)?;
    call(CapInfo, pool, []).fails(BadSelector)?;
    call(CapInfo, first + 999, []).fails(BadSelector)
}
