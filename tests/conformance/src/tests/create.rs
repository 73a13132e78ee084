//! Creating objects.

use super::{Group, Needs, group};
use crate::layout::{PD, RUNNER_EC};
use crate::prelude::*;
use crate::threads;
use alloc::vec::Vec;
use hypercall_abi::Hypercall;
use hypercall_abi::regs::pack_ec_place;

pub(super) const GROUP: Group = group!(
    "creating objects",
    Needs::Nothing => [
        the_capability_of_a_new_object_has_every_right,
        a_destination_in_use_is_occupied,
        a_destination_that_is_no_selector_is_refused,
        what_pays_must_be_a_pool_with_the_right_to_create,
        a_pool_needs_frames_that_its_parent_has,
        a_pool_may_lower_the_highest_priority_and_never_raise_it,
        a_thread_needs_a_cpu_and_addresses_of_user_space,
        a_thread_is_created_in_a_domain_with_control,
        a_scheduling_context_needs_a_valid_budget,
        a_scheduling_context_needs_a_thread_without_one,
        a_portal_needs_a_handler_with_control,
    ],
    Needs::Guests => [a_vcpu_is_created_on_the_callers_cpu_in_a_guest_space],
);

/// A valid call of every kind but `CreateVcpu`: the arguments.
pub(super) fn recipes(w: &mut World) -> Seen<Vec<(Hypercall, ObjectType, [u64; 6])>> {
    let pd = w.pd()?;
    let ec = w.ec(0, threads::park as *const () as u64, 0)?;
    let handler = w.handler(0)?;
    let place = pack_ec_place(0, false);
    let mut recipes = alloc::vec![
        (CreatePool, ObjectType::Pool, [w.pool, 1, 0, 0, 0, 0]),
        (CreatePd, ObjectType::Pd, [w.pool, 0, 0, 0, 0, 0]),
        (CreateEc, ObjectType::Ec, [w.pool, pd, place, 0x1000, 0x2000, 0]),
        (CreateSc, ObjectType::Sc, [w.pool, ec, 1, 1000, 1000, 0]),
        (CreatePt, ObjectType::Pt, [w.pool, handler, 0x1000, 0, 0, 0]),
        (CreateSm, ObjectType::Sm, [w.pool, 0, 0, 0, 0, 0]),
        (CreateNtfn, ObjectType::Ntfn, [w.pool, 0, 0, 0, 0, 0]),
    ];
    let to = w.sel();
    if call(CreateGuestSpace, to, [w.pool]).status() == Some(Success) {
        recipes.push((CreateGuestSpace, ObjectType::GuestSpace, [w.pool, 0, 0, 0, 0, 0]));
        recipes.push((CreateVcpu, ObjectType::Vcpu, [w.pool, to, 0, 0, 0, 0]));
    }
    if call(CreateDmaSpace, w.sel(), [w.pool]).status() == Some(Success) {
        recipes.push((CreateDmaSpace, ObjectType::DmaSpace, [w.pool, 0, 0, 0, 0, 0]));
    }
    Ok(recipes)
}

fn the_capability_of_a_new_object_has_every_right(w: &mut World) -> Check {
    for (number, kind, arguments) in recipes(w)? {
        let to = w.sel();
        call(number, to, arguments).done()?;
        call(CapInfo, to, []).gives([kind as u64 | 0xffff << 16, 0, 0])?;
        call(Revoke, to, [1]).done()?;
        call(CapInfo, to, []).fails(BadSelector)?;
    }
    Ok(())
}

fn a_destination_in_use_is_occupied(w: &mut World) -> Check {
    let used = w.sm(0)?;
    for (number, _, arguments) in recipes(w)? {
        call(number, used, arguments).fails(Occupied)?;
    }
    call(Signal, used, []).done()
}

fn a_destination_that_is_no_selector_is_refused(w: &mut World) -> Check {
    for (number, _, arguments) in recipes(w)? {
        for to in [0, 32_768, 0xffff_ffff] {
            call(number, to, arguments).fails(BadArgument)?;
        }
    }
    Ok(())
}

fn what_pays_must_be_a_pool_with_the_right_to_create(w: &mut World) -> Check {
    let weak = w.without(w.pool, Rights::POOL_CREATE)?;
    let just = w.derive(w.pool, Rights::POOL_CREATE)?;
    let sm = w.sm(0)?;
    let empty = w.sel();
    for (number, _, arguments) in recipes(w)? {
        let to = w.sel();
        let with = |pool: Sel| {
            let mut changed = arguments;
            changed[0] = pool;
            changed
        };
        call(number, to, with(weak)).fails(BadRights)?;
        call(number, to, with(sm)).fails(BadType)?;
        call(number, to, with(empty)).fails(BadSelector)?;
        call(number, to, with(0)).fails(BadSelector)?;
        call(CapInfo, to, []).fails(BadSelector)?;
        call(number, to, with(just)).done()?;
        call(Revoke, to, [1]).done()?;
    }
    Ok(())
}

fn a_pool_needs_frames_that_its_parent_has(w: &mut World) -> Check {
    let to = w.sel();
    call(CreatePool, to, [w.pool, 0, 0]).fails(BadArgument)?;
    let [free, all, _] = call(PoolInfo, w.pool, []).ok()?;
    for frames in [free + 1, 1 << 32, 1 << 52, u64::MAX] {
        call(CreatePool, to, [w.pool, frames, 0]).fails(NoMemory)?;
    }
    call(CreatePool, to, [w.pool, free - 1, 0]).done()?;
    call(Revoke, to, [1]).done()?;
    let [free_now, all_now, _] = call(PoolInfo, w.pool, []).ok()?;
    equal("frames", all_now, all)?;
    // The pool object may have needed a new frame for objects of its size.
    holds("free frames", free - free_now <= 1)
}

fn a_pool_may_lower_the_highest_priority_and_never_raise_it(w: &mut World) -> Check {
    let (low, lower, to) = (w.sel(), w.sel(), w.sel());
    let ec = w.ec(0, threads::park as *const () as u64, 0)?;
    call(CreatePool, low, [w.pool, 20, 33]).fails(BadArgument)?;
    call(CreatePool, low, [w.pool, 20, u64::MAX]).fails(BadArgument)?;
    call(CreatePool, low, [w.pool, 20, 11]).done()?;
    call(CreatePool, lower, [low, 4, 12]).fails(BadArgument)?;
    call(CreatePool, lower, [low, 4, 0]).done()?;
    for pool in [low, lower] {
        call(CreateSc, to, [pool, ec, 11, 1000, 1000]).fails(BadRights)?;
        call(CreateSc, to, [pool, ec, 10, 1000, 1000]).done()?;
        call(Revoke, to, [1]).done()?;
    }
    let lowest = w.sel();
    call(CreatePool, lowest, [lower, 2, 1]).done()?;
    call(CreateSc, to, [lowest, ec, 1, 1000, 1000]).fails(BadRights)?;
    call(CreateSc, to, [lowest, ec, 0, 1000, 1000]).done()
}

fn a_thread_needs_a_cpu_and_addresses_of_user_space(w: &mut World) -> Check {
    let to = w.sel();
    let ip = threads::park as *const () as u64;
    for place in [u64::from(w.info.cpu_count), 0xffff, 1 << 17, 1 << 32, 1 << 63, u64::MAX] {
        call(CreateEc, to, [w.pool, PD, place, ip, 0x1000]).fails(BadArgument)?;
    }
    for address in [USER_END, USER_END + 1, 1 << 47, 1 << 63, 0xffff_8000_0000_0000, u64::MAX] {
        call(CreateEc, to, [w.pool, PD, 0, address, 0x1000]).fails(BadArgument)?;
        call(CreateEc, to, [w.pool, PD, 0, ip, address]).fails(BadArgument)?;
    }
    for address in [0, USER_END - 1] {
        call(CreateEc, to, [w.pool, PD, 0, address, address]).done()?;
        call(Revoke, to, [1]).done()?;
    }
    Ok(())
}

fn a_thread_is_created_in_a_domain_with_control(w: &mut World) -> Check {
    let (to, pd) = (w.sel(), w.pd()?);
    let weak = w.without(pd, Rights::PD_CONTROL)?;
    let just = w.derive(pd, Rights::PD_CONTROL)?;
    call(CreateEc, to, [w.pool, weak, 0, 0x1000, 0x1000]).fails(BadRights)?;
    call(CreateEc, to, [w.pool, w.pool, 0, 0x1000, 0x1000]).fails(BadType)?;
    call(CreateEc, to, [w.pool, to, 0, 0x1000, 0x1000]).fails(BadSelector)?;
    call(CreateEc, to, [w.pool, just, 0, 0x1000, 0x1000]).done()
}

fn a_scheduling_context_needs_a_valid_budget(w: &mut World) -> Check {
    const HOUR: u64 = 3_600_000_000;
    let to = w.sel();
    let ec = w.ec(0, threads::park as *const () as u64, 0)?;
    for (priority, budget, period) in [
        (32, 1000, 1000),
        (u64::MAX, 1000, 1000),
        (1 << 32, 1000, 1000),
        (1, 0, 1000),
        (1, 1000, 0),
        (1, 0, 0),
        (1, 1001, 1000),
        (1, HOUR, HOUR + 1),
        (1, u64::MAX, u64::MAX),
    ] {
        call(CreateSc, to, [w.pool, ec, priority, budget, period]).fails(BadArgument)?;
    }
    for (budget, period) in [(1, 1), (1, HOUR), (HOUR, HOUR)] {
        call(CreateSc, to, [w.pool, ec, 0, budget, period]).done()?;
        call(Revoke, to, [1]).done()?;
    }
    Ok(())
}

fn a_scheduling_context_needs_a_thread_without_one(w: &mut World) -> Check {
    let to = w.sel();
    let ec = w.ec(0, threads::park as *const () as u64, 0)?;
    let handler = w.handler(0)?;
    let weak = w.without(ec, Rights::EC_CONTROL)?;
    let just = w.derive(ec, Rights::EC_CONTROL)?;
    call(CreateSc, to, [w.pool, handler, 1, 1000, 1000]).fails(BadType)?;
    call(CreateSc, to, [w.pool, PD, 1, 1000, 1000]).fails(BadType)?;
    call(CreateSc, to, [w.pool, weak, 1, 1000, 1000]).fails(BadRights)?;
    call(CreateSc, to, [w.pool, to, 1, 1000, 1000]).fails(BadSelector)?;
    call(CreateSc, to, [w.pool, RUNNER_EC, 1, 1000, 1000]).fails(Occupied)?;
    call(CreateSc, to, [w.pool, just, 1, 1000, 1000]).done()?;
    let second = w.sel();
    call(CreateSc, second, [w.pool, ec, 1, 1000, 1000]).fails(Occupied)
}

fn a_portal_needs_a_handler_with_control(w: &mut World) -> Check {
    let to = w.sel();
    let handler = w.handler(0)?;
    let weak = w.without(handler, Rights::EC_CONTROL)?;
    let just = w.derive(handler, Rights::EC_CONTROL)?;
    for ip in [USER_END, 1 << 47, u64::MAX] {
        call(CreatePt, to, [w.pool, handler, ip]).fails(BadArgument)?;
    }
    call(CreatePt, to, [w.pool, RUNNER_EC, 0x1000]).fails(BadType)?;
    call(CreatePt, to, [w.pool, PD, 0x1000]).fails(BadType)?;
    call(CreatePt, to, [w.pool, weak, 0x1000]).fails(BadRights)?;
    call(CreatePt, to, [w.pool, to, 0x1000]).fails(BadSelector)?;
    call(CreatePt, to, [w.pool, just, 0x1000]).done()?;
    let second = w.sel();
    call(CreatePt, second, [w.pool, handler, USER_END - 1, u64::MAX]).done()
}

fn a_vcpu_is_created_on_the_callers_cpu_in_a_guest_space(w: &mut World) -> Check {
    let (to, space) = (w.sel(), w.guest_space()?);
    let weak = w.without(space, Rights::GUEST_VCPU)?;
    let just = w.derive(space, Rights::GUEST_VCPU)?;
    for cpu in [1, 0xffff, 1 << 32] {
        call(CreateVcpu, to, [w.pool, space, cpu]).fails(WrongCpu)?;
    }
    call(CreateVcpu, to, [w.pool, weak, 0]).fails(BadRights)?;
    call(CreateVcpu, to, [w.pool, PD, 0]).fails(BadType)?;
    call(CreateVcpu, to, [w.pool, to, 0]).fails(BadSelector)?;
    call(CreateVcpu, to, [w.pool, 1 << 32 | space, 0]).fails(BadArgument)?;
    call(CreateVcpu, to, [w.pool, just, 0]).done()
}
