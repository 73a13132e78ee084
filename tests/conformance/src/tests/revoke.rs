//! Revoking: trees across domains, roots, and the revoker itself.

use super::{Group, Needs, group};
use crate::child::own;
use crate::layout::SCRATCH;
use crate::prelude::*;
use crate::threads::{self, HIGH};
use crate::world::board;
use core::sync::atomic::Ordering;

pub(super) const GROUP: Group = group!(
    "revoking",
    Needs::Nothing => [
        revoking_takes_everything_below_and_nothing_beside,
        revoking_with_itself_takes_the_capability_too,
        a_root_takes_its_object_along,
        the_argument_of_revoke_is_0_or_1,
        revoking_reaches_into_other_domains,
        a_wide_and_deep_tree_goes_at_once,
        a_domain_takes_the_objects_along_whose_roots_it_holds,
        a_chain_of_domains_that_made_each_other_ends_with_its_first,
        a_thread_that_ends_itself_does_not_come_back,
        a_thread_that_ends_the_pool_it_is_paid_from_does_not_come_back,
        a_domain_may_lose_its_capabilities_for_itself,
        a_selector_is_free_again_after_a_revocation,
        objects_that_depend_on_each_other_end_in_any_order,
    ],
);

#[track_caller]
fn is_gone(selector: Sel) -> Check {
    call(CapInfo, selector, []).fails(BadSelector)
}

#[track_caller]
fn is_there(selector: Sel) -> Check {
    call(CapInfo, selector, []).ok().map(drop)
}

fn revoking_takes_everything_below_and_nothing_beside(w: &mut World) -> Check {
    let root = w.sm(0)?;
    let (a, b) = (w.derive(root, Rights::ALL)?, w.derive(root, Rights::ALL)?);
    let (a1, a2) = (w.derive(a, Rights::ALL)?, w.derive(a, Rights::ALL)?);
    let a11 = w.derive(a1, Rights::SIGNAL)?;
    let b1 = w.derive(b, Rights::ALL)?;
    call(Revoke, a, [0]).done()?;
    for selector in [a1, a2, a11] {
        is_gone(selector)?;
    }
    for selector in [root, a, b, b1] {
        is_there(selector)?;
    }
    // No right is needed.
    let weak = w.derive(b, Rights::empty())?;
    call(Revoke, weak, [1]).done()?;
    is_there(b)
}

fn revoking_with_itself_takes_the_capability_too(w: &mut World) -> Check {
    let root = w.sm(0)?;
    let a = w.derive(root, Rights::ALL)?;
    let a1 = w.derive(a, Rights::ALL)?;
    call(Revoke, a, [1]).done()?;
    is_gone(a)?;
    is_gone(a1)?;
    call(Signal, root, []).done()
}

fn a_root_takes_its_object_along(w: &mut World) -> Check {
    let root = w.sm(0)?;
    let a = w.derive(root, Rights::ALL)?;
    call(Revoke, root, [0]).done()?;
    is_gone(a)?;
    is_there(root)?;
    call(Revoke, root, [1]).done()?;
    is_gone(root)
}

fn the_argument_of_revoke_is_0_or_1(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    for bad in [2, 1 << 32, u64::MAX] {
        call(Revoke, sm, [bad]).fails(BadArgument)?;
    }
    is_there(sm)
}

fn revoking_reaches_into_other_domains(w: &mut World) -> Check {
    let (sm, a, b) = (w.sm(0)?, w.pd()?, w.pd()?);
    // From here to a's domain, and from a capability of it (seen here through the tree) on to b's.
    let here = w.derive(sm, Rights::ALL)?;
    call(Derive, here, [a, 20, 0xffff]).done()?;
    call(Derive, here, [b, 20, 0xffff]).done()?;
    call(Derive, sm, [b, 21, 0xffff]).done()?;
    call(Revoke, here, [1]).done()?;
    // The slots are free again; the one beside is not.
    call(Derive, sm, [a, 20, 0xffff]).done()?;
    call(Derive, sm, [b, 20, 0xffff]).done()?;
    call(Derive, sm, [b, 21, 0xffff]).fails(Occupied)
}

fn a_wide_and_deep_tree_goes_at_once(w: &mut World) -> Check {
    let root = w.sm(0)?;
    let first = w.sels(700);
    for index in 0..700 {
        // A tree in which each capability has three below it.
        let source = if index == 0 { root } else { first + (index - 1) / 3 };
        call(Derive, source, [0, first + index, 0xffff]).done()?;
    }
    call(Revoke, root, [0]).done()?;
    for index in 0..700 {
        is_gone(first + index)?;
    }
    // Once more as a chain of 60 with a fan of 10 at each joint.
    let mut source = root;
    let mut next = first;
    for _ in 0..60 {
        for _ in 0..10 {
            call(Derive, source, [0, next, 0xffff]).done()?;
            next += 1;
        }
        source = next - 1;
    }
    call(Revoke, root, [1]).done()?;
    (first..next).try_for_each(is_gone)
}

fn a_domain_takes_the_objects_along_whose_roots_it_holds(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    let sm = w.sm(0)?;
    child.grant(child.pool, own::POOL, Rights::ALL)?;
    child.grant(child.pd, own::PD, Rights::ALL)?;
    child.grant(sm, own::FREE, Rights::ALL)?;
    w.child_thread(&child, (0, HIGH, 0), make_in_child as *const () as u64, 0)?;
    w.until("the child makes objects", || board(0).load(Ordering::Acquire) == 1)?;
    equal("last status", board(1).load(Ordering::Relaxed), 0)?;
    call(Revoke, child.pd, [1]).done()?;
    call(Revoke, child.pool, [1]).done()?;
    // What it was only lent is still here.
    call(Signal, sm, []).done()
}

extern "C" fn make_in_child(_: u64) -> ! {
    let mut status = 0;
    for (index, number) in [CreateSm, CreateNtfn, CreatePd, CreateSm].into_iter().enumerate() {
        status = call(number, own::FREE + 1 + index as u64, [own::POOL, 0]).status.max(status);
    }
    status = call(CreatePool, own::FREE + 9, [own::POOL, 4, 0]).status.max(status);
    status = call(CreateSm, own::FREE + 10, [own::FREE + 9, 0]).status.max(status);
    board(1).store(status, Ordering::Relaxed);
    board(0).store(1, Ordering::Release);
    threads::park()
}

core::arch::global_asm!(
    // A link of the chain, at any address and without a stack. RDI: its number. It knows: 2 a pool, 3 its own page of code.
    ".pushsection .text.conformance_link, \"ax\"",
    ".global conformance_link",
    ".global conformance_link_end",
    "conformance_link:",
    "mov r15, rdi",
    // CreatePd(16, pool 2).
    "mov rax, (16 << 32) | {create_pd}",
    "mov edi, 2",
    "syscall",
    // Derive(2 and 3 into 16), Derive(3 to 17).
    "mov r14d, 2",
    "2:",
    "mov rax, r14",
    "shl rax, 32",
    "or rax, {derive}",
    "mov edi, 16",
    "mov esi, r14d",
    "mov edx, 0xffff",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "syscall",
    "inc r14d",
    "cmp r14d, 3",
    "je 2b",
    "mov rax, (3 << 32) | {derive}",
    "xor edi, edi",
    "mov esi, 17",
    "mov edx, 0xffff",
    "syscall",
    // Map(17 into 16 at 4 MiB).
    "mov rax, (17 << 32) | {map}",
    "mov edi, 16",
    "mov esi, 0x400000",
    "xor edx, edx",
    "mov r8d, 1",
    "mov r9d, 5",
    "syscall",
    // CreateEc(18), CreateSc(19).
    "mov rax, (18 << 32) | {create_ec}",
    "mov edi, 2",
    "mov esi, 16",
    "xor edx, edx",
    "mov r8d, 0x400000",
    "mov r9d, 0x1000",
    "lea r10, [r15 + 1]",
    "syscall",
    "mov rax, (19 << 32) | {create_sc}",
    "mov edi, 2",
    "mov esi, 18",
    "mov edx, 10",
    "mov r8d, 10000",
    "mov r9d, 10000",
    "syscall",
    // The end of the chain tells its length as a faulting address.
    "shl r15, 12",
    "test eax, eax",
    "jnz 4f",
    "3:",
    "mov eax, {yield_}",
    "syscall",
    "jmp 3b",
    "4:",
    "mov [r15], eax",
    "conformance_link_end:",
    ".popsection",
    create_pd = const CreatePd as u64,
    derive = const Derive as u64,
    map = const Map as u64,
    create_ec = const CreateEc as u64,
    create_sc = const CreateSc as u64,
    yield_ = const Yield as u64,
);

unsafe extern "C" {
    fn conformance_link();
    fn conformance_link_end();
}

fn a_chain_of_domains_that_made_each_other_ends_with_its_first(w: &mut World) -> Check {
    let (pool, pd, ec, sc) = (w.sub_pool(700)?, w.sel(), w.sel(), w.sel());
    let code = w.ram(1)?;
    let view = w.view(code, 1)?;
    let (from, end) = (conformance_link as *const u8, conformance_link_end as *const u8);
    // SAFETY: the bytes between two labels of the program, and a page mapped for them.
    unsafe { (view as *mut u8).copy_from_nonoverlapping(from, end as usize - from as usize) };
    call(CreatePd, pd, [pool]).done()?;
    call(Derive, pool, [pd, 2, 0xffff]).done()?;
    call(Derive, code, [pd, 3, 0xffff]).done()?;
    let mapped = w.derive(code, Rights::ALL)?;
    crate::world::map_all(mapped, pd, 0x40_0000, 0, 1, MapFlags::READ | MapFlags::EXECUTE)?;
    call(CreateEc, ec, [pool, pd, 0, 0x40_0000, 0x1000, 1]).done()?;
    call(CreateSc, sc, [pool, ec, threads::LOW, 10_000, 10_000]).done()?;
    // It grows until the pool is empty or the tree is as deep as a tree may be.
    let mut free = u64::MAX;
    while free != crate::world::free_frames(pool)? {
        free = crate::world::free_frames(pool)?;
        w.sleep(20_000);
    }
    holds("a chain of 30 domains at least", free < 450)?;
    call(Revoke, pd, [1]).done()?;
    holds("what the chain used is back", crate::world::free_frames(pool)? > 600)
}

pub(super) extern "C" fn end_self(selector: u64) -> ! {
    board(0).store(1, Ordering::Release);
    let answer = call(Revoke, selector, [1]);
    board(1).store(answer.status + 1, Ordering::Relaxed);
    threads::park()
}

fn a_thread_that_ends_itself_does_not_come_back(w: &mut World) -> Check {
    let ec = w.sel();
    let stack = w.stacks.take();
    let ip = end_self as *const () as u64;
    call(CreateEc, ec, [w.pool, crate::layout::PD, 0, ip, stack - 8, ec]).done()?;
    w.sc(ec, HIGH)?;
    w.until("the thread ends itself", || board(0).load(Ordering::Acquire) == 1)?;
    w.sleep(2000);
    is_gone(ec)?;
    equal("status it saw", board(1).load(Ordering::Relaxed), 0)
}

fn a_thread_that_ends_the_pool_it_is_paid_from_does_not_come_back(w: &mut World) -> Check {
    let (pool, ec, sc) = (w.sub_pool(16)?, w.sel(), w.sel());
    let stack = w.stacks.take();
    let ip = end_self as *const () as u64;
    call(CreateEc, ec, [pool, crate::layout::PD, 0, ip, stack - 8, pool]).done()?;
    call(CreateSc, sc, [pool, ec, HIGH, 10_000, 10_000]).done()?;
    w.until("the thread ends its pool", || board(0).load(Ordering::Acquire) == 1)?;
    w.sleep(2000);
    for selector in [pool, ec, sc] {
        is_gone(selector)?;
    }
    equal("status it saw", board(1).load(Ordering::Relaxed), 0)
}

fn a_domain_may_lose_its_capabilities_for_itself(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    child.grant(child.pd, own::PD, Rights::ALL)?;
    child.grant(child.pool, own::POOL, Rights::ALL)?;
    w.child_thread(&child, (0, HIGH, 0), forgo as *const () as u64, 0)?;
    w.until("the child is at it", || board(0).load(Ordering::Acquire) == 1)?;
    equal("status of the last call", board(1).load(Ordering::Relaxed), BadSelector as u64)?;
    is_there(child.pd)?;
    is_there(child.pool)
}

extern "C" fn forgo(_: u64) -> ! {
    call(Revoke, own::PD, [1]);
    call(Revoke, own::POOL, [1]);
    board(1).store(call(CreateSm, own::FREE, [own::POOL, 0]).status, Ordering::Relaxed);
    board(0).store(1, Ordering::Release);
    threads::park()
}

fn a_selector_is_free_again_after_a_revocation(w: &mut World) -> Check {
    let (sm, to) = (w.sm(0)?, w.sel());
    for _ in 0..300 {
        call(Derive, sm, [0, to, 0xffff]).done()?;
        call(Revoke, to, [1]).done()?;
        call(CreateNtfn, to, [w.pool]).done()?;
        call(Revoke, to, [1]).done()?;
    }
    Ok(())
}

fn objects_that_depend_on_each_other_end_in_any_order(w: &mut World) -> Check {
    // Every permutation of the ends of a pool, a domain in it, a thread in that, its SC, and a portal of a handler there.
    let mut order = [0, 1, 2, 3, 4];
    for _ in 0..120 {
        next_permutation(&mut order);
        let first = SCRATCH;
        let [pool, pd, ec, sc, pt] = [first, first + 1, first + 2, first + 3, first + 4];
        let handler = first + 5;
        call(CreatePool, pool, [w.pool, 24, 0]).done()?;
        call(CreatePd, pd, [pool]).done()?;
        call(CreateEc, ec, [pool, pd, 0, 0x1000, 0x1000]).done()?;
        call(CreateEc, handler, [pool, pd, 1 << 16, 0x1000, 0x1000]).done()?;
        call(CreateSc, sc, [pool, ec, 1, 1000, 1000]).done()?;
        call(CreatePt, pt, [pool, handler, 0x1000]).done()?;
        // Capabilities for all of them in the domain itself, pool included.
        for (index, object) in [pool, pd, ec, sc, pt].into_iter().enumerate() {
            call(Derive, object, [pd, 20 + index as u64, 0xffff]).done()?;
        }
        for index in order {
            let answer = call(Revoke, first + index, [1]);
            holds("it ends, or is gone", matches!(answer.status(), Some(Success | BadSelector)))?;
        }
        for index in 0..6 {
            is_gone(first + index)?;
        }
    }
    Ok(())
}

fn next_permutation(order: &mut [u64; 5]) {
    let Some(pivot) = (0..4).rev().find(|&index| order[index] < order[index + 1]) else {
        order.reverse();
        return;
    };
    let other = (pivot + 1..5).rev().find(|&index| order[index] > order[pivot]).unwrap_or(pivot + 1);
    order.swap(pivot, other);
    order[pivot + 1..].reverse();
}
