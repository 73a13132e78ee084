//! Deriving: rights, ranges, badges, depth, and giving capabilities to another domain.

use super::{Group, Needs, group};
use crate::child::own;
use crate::layout::{ARENA, IRQS, LOG, PD, PORTS};
use crate::prelude::*;
use crate::world::board;
use core::sync::atomic::Ordering;

pub(super) const GROUP: Group = group!(
    "deriving capabilities",
    Needs::Nothing => [
        a_derived_capability_never_has_more_rights,
        rights_without_a_name_are_kept,
        deriving_needs_the_right_to_derive,
        deriving_checks_its_destination,
        deriving_into_a_domain_needs_the_right_to_grant,
        ranges_only_shrink,
        badges_only_lose_bits,
        a_tree_is_at_most_64_derivations_deep,
        a_child_uses_what_it_was_given_and_nothing_else,
        the_receiver_pays_for_its_table,
    ],
);

fn rights_of(selector: Sel) -> Seen<u16> {
    Ok((call(CapInfo, selector, []).value()? >> 16) as u16)
}

fn a_derived_capability_never_has_more_rights(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let weak = w.derive(sm, Rights::SIGNAL | Rights::DERIVE)?;
    let all_of_weak = w.derive(weak, Rights::ALL)?;
    equal("rights", rights_of(all_of_weak)?, (Rights::SIGNAL | Rights::DERIVE).bits())?;
    call(Wait, all_of_weak, [NOW]).fails(BadRights)?;
    call(Signal, all_of_weak, []).done()?;
    call(Wait, sm, [NOW]).gives([1, 0, 0])?;
    let none = w.derive(weak, Rights::empty())?;
    equal("no rights", rights_of(none)?, 0)?;
    call(Signal, none, []).fails(BadRights)
}

fn rights_without_a_name_are_kept(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    for bit in 0..16 {
        let to = w.sel();
        call(Derive, sm, [0, to, 1 << bit]).done()?;
        equal("rights", rights_of(to)?, 1 << bit)?;
    }
    Ok(())
}

fn deriving_needs_the_right_to_derive(w: &mut World) -> Check {
    let to = w.sel();
    for source in [w.sm(0)?, w.ram(1)?, LOG, PORTS, IRQS, w.pool] {
        let fixed = w.without(source, Rights::DERIVE)?;
        call(Derive, fixed, [0, to, 0]).fails(BadRights)?;
    }
    Ok(())
}

fn deriving_checks_its_destination(w: &mut World) -> Check {
    let (sm, used, to) = (w.sm(0)?, w.sm(0)?, w.sel());
    for bad in [0, 32_768, 0xffff_ffff] {
        call(Derive, sm, [0, bad, 1]).fails(BadArgument)?;
    }
    call(Derive, sm, [0, used, 1]).fails(Occupied)?;
    call(Derive, sm, [0, to, 0x1_0000]).fails(BadArgument)?;
    call(Derive, sm, [0, to, u64::MAX]).fails(BadArgument)
}

fn deriving_into_a_domain_needs_the_right_to_grant(w: &mut World) -> Check {
    let (sm, pd) = (w.sm(0)?, w.pd()?);
    let weak = w.without(pd, Rights::PD_GRANT)?;
    let just = w.derive(pd, Rights::PD_GRANT)?;
    call(Derive, sm, [weak, 20, 1]).fails(BadRights)?;
    call(Derive, sm, [sm, 20, 1]).fails(BadType)?;
    let empty = w.sel();
    call(Derive, sm, [empty, 20, 1]).fails(BadSelector)?;
    call(Derive, sm, [just, 20, 1]).done()?;
    call(Derive, sm, [pd, 20, 1]).fails(Occupied)?;
    call(Derive, sm, [pd, 0, 1]).fails(BadArgument)?;
    call(Derive, sm, [pd, 32_767, 1]).done()
}

fn ranges_only_shrink(w: &mut World) -> Check {
    let to = w.sel();
    let pages = w.ram(8)?;
    let some_ports = w.part(PORTS, 0x80, 8)?;
    let some_irqs = w.part(IRQS, 2, 8)?;
    for source in [pages, some_ports, some_irqs] {
        for (offset, count) in [
            (8, 0),
            (8, 1),
            (0, 9),
            (7, 2),
            (9, 0),
            (1 << 52, 1),
            (1 << 63, 1),
            (1, u64::MAX),
            (u64::MAX, 1),
            (u64::MAX, u64::MAX),
        ] {
            call(Derive, source, [0, to, 0x8001, offset, count]).fails(BadArgument)?;
        }
        let first = call(CapInfo, source, []).ok()?[1];
        for (offset, count, length) in [(0, 0, 8), (3, 0, 5), (3, 2, 2), (7, 1, 1)] {
            call(Derive, source, [0, to, 0x8001, offset, count]).done()?;
            let [_, begin, len] = call(CapInfo, to, []).ok()?;
            equal("range", (begin, len), (first + offset, length))?;
            call(Revoke, to, [1]).done()?;
        }
    }
    Ok(())
}

fn badges_only_lose_bits(w: &mut World) -> Check {
    let ntfn = w.ntfn()?;
    let (a, b, c) = (w.sel(), w.sel(), w.sel());
    call(Signal, ntfn, []).done()?;
    call(Wait, ntfn, [NOW]).fails(Timeout)?;
    call(Derive, ntfn, [0, a, 0xffff, 0, 0, 0b1110]).done()?;
    call(Derive, a, [0, b, 0xffff, 0, 0, 0b0001]).fails(BadRights)?;
    call(Derive, a, [0, b, 0xffff, 0, 0, 0b1111]).fails(BadRights)?;
    call(Derive, a, [0, b, 0xffff, 0, 0, u64::MAX]).fails(BadRights)?;
    call(Derive, a, [0, b, 0xffff, 0, 0, 0b0100]).done()?;
    call(Derive, a, [0, c, 0xffff, 0, 0, 0]).done()?;
    for (through, bits) in [(a, 0b1110), (b, 0b0100), (c, 0b1110)] {
        call(Signal, through, []).done()?;
        call(Wait, ntfn, [NOW]).gives([bits, 0, 0])?;
    }
    // A semaphore has no badge: the argument is ignored.
    let (sm, other) = (w.sm(0)?, w.sel());
    call(Derive, sm, [0, other, 0xffff, 0, 0, 7]).done()?;
    call(CapInfo, other, []).gives([ObjectType::Sm as u64 | 0xffff << 16, 0, 0])
}

fn a_tree_is_at_most_64_derivations_deep(w: &mut World) -> Check {
    let root = w.sm(0)?;
    let mut source = root;
    for _ in 0..64 {
        source = w.derive(source, Rights::ALL)?;
    }
    let to = w.sel();
    call(Derive, source, [0, to, 0xffff]).fails(Unsupported)?;
    call(Signal, source, []).done()?;
    call(Revoke, root, [0]).done()?;
    call(Signal, source, []).fails(BadSelector)?;
    call(Wait, root, [NOW]).gives([1, 0, 0])
}

extern "C" fn explore(_: u64) -> ! {
    let found = (1..2048).filter(|&selector| call(CapInfo, selector, []).status() == Some(Success));
    board(1).store(found.count() as u64, Ordering::Relaxed);
    let status = call(Signal, own::FREE, []).status;
    board(2).store(status, Ordering::Relaxed);
    let status = call(Wait, own::FREE, [NOW]).status;
    board(3).store(status, Ordering::Relaxed);
    board(0).store(1, Ordering::Release);
    crate::threads::park()
}

fn a_child_uses_what_it_was_given_and_nothing_else(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let child = w.child(64, 1)?;
    child.grant(sm, own::FREE, Rights::SIGNAL)?;
    w.child_thread(&child, (0, crate::threads::HIGH, 0), explore as *const () as u64, 0)?;
    w.until("the child explores", || board(0).load(Ordering::Acquire) == 1)?;
    // The semaphore, and the one that children sleep on.
    equal("capabilities in the child", board(1).load(Ordering::Relaxed), 2)?;
    equal("status of Signal", board(2).load(Ordering::Relaxed), Success as u64)?;
    equal("status of Wait", board(3).load(Ordering::Relaxed), BadRights as u64)?;
    call(Wait, sm, [NOW]).gives([1, 0, 0])
}

fn the_receiver_pays_for_its_table(w: &mut World) -> Check {
    let (pool, pd) = (w.sub_pool(8)?, w.sel());
    call(CreatePd, pd, [pool]).done()?;
    let sm = w.sm(0)?;
    let before = crate::world::free_frames(pool)?;
    for table in 0..before {
        call(Derive, sm, [pd, 1 + table * 64, 1]).done()?;
    }
    equal("free frames", crate::world::free_frames(pool)?, 0)?;
    call(Derive, sm, [pd, 1 + before * 64, 1]).fails(NoMemory)?;
    // Selectors of tables that exist cost nothing.
    call(Derive, sm, [pd, 2, 1]).done()?;
    let to = w.sel();
    call(Derive, ARENA, [0, to, 0x8001, 0, 1]).done()?;
    call(Derive, PD, [pd, 1 + before * 64, 1]).fails(NoMemory)
}
