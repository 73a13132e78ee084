//! Mapping memory.

use super::{Group, Needs, group};
use crate::layout::PD;
use crate::prelude::*;
use crate::threads::{self, HIGH};
use crate::world::{board, free_frames, map_all};
use core::sync::atomic::Ordering;
use hypercall_abi::boot_info::RegionKind;

pub(super) const GROUP: Group = group!(
    "memory",
    Needs::Nothing => [
        mapped_memory_is_read_and_written,
        map_checks_its_arguments,
        mapping_checks_rights_of_memory_and_target,
        a_capability_has_one_position_in_one_space,
        an_address_with_another_frame_is_occupied,
        mapping_again_changes_rights,
        a_part_is_unmapped_and_the_rest_stays,
        unmap_checks_its_arguments,
        revoking_memory_takes_its_mappings_along,
        device_memory_is_uncached_and_ram_is_not,
        large_mappings_are_made_in_steps_or_by_large_pages,
        a_page_out_of_a_large_page_is_unmapped,
        a_page_out_of_a_large_page_of_a_guest_is_unmapped,
        deleting_part_of_a_large_page_without_memory_never_fails,
        two_views_of_the_same_frames_agree,
        a_child_does_not_see_the_parents_memory,
        a_domain_that_ends_leaves_its_memory_mappable,
    ],
);

const R: u64 = MapFlags::READ.bits() as u64;
const W: u64 = MapFlags::WRITE.bits() as u64;
const X: u64 = MapFlags::EXECUTE.bits() as u64;
const UNCACHED: u64 = MapFlags::UNCACHED.bits() as u64;

fn poke(address: u64, value: u64) {
    // SAFETY: the tests of this file pass addresses that they mapped, in the window that nothing else uses.
    unsafe { (address as *mut u64).write_volatile(value) }
}

fn peek(address: u64) -> u64 {
    // SAFETY: as in `poke`.
    unsafe { (address as *const u64).read_volatile() }
}

extern "C" fn load(address: u64) -> ! {
    board(1).store(peek(address), Ordering::Relaxed);
    board(0).fetch_add(1, Ordering::Release);
    threads::park()
}

extern "C" fn store(address: u64) -> ! {
    poke(address, 1);
    threads::park()
}

/// Reading `address` in this domain faults.
#[track_caller]
fn is_unmapped(w: &mut World, address: u64) -> Check {
    let stack = w.stacks.take();
    let fault = w.fault_with(0, load as *const () as u64, stack - 8, address)?;
    equal("fault", (fault.vector, fault.address), (14, address))
}

#[track_caller]
fn is_read_only(w: &mut World, address: u64) -> Check {
    peek(address);
    let stack = w.stacks.take();
    let fault = w.fault_with(0, store as *const () as u64, stack - 8, address)?;
    equal("fault", (fault.vector, fault.address), (14, address))
}

fn mapped_memory_is_read_and_written(w: &mut World) -> Check {
    let memory = w.ram(5)?;
    let address = w.addresses(5);
    call(Map, memory, [PD, address, 0, 5, R | W]).gives([5, 0, 0])?;
    for page in 0..5 {
        poke(address + page * PAGE, page + 77);
    }
    for page in 0..5 {
        equal("word", peek(address + page * PAGE), page + 77)?;
    }
    call(Unmap, memory, [0, 5]).gives([5, 0, 0])?;
    is_unmapped(w, address + 4 * PAGE)
}

fn map_checks_its_arguments(w: &mut World) -> Check {
    let memory = w.ram(4)?;
    let at = w.addresses(4);
    for (address, offset, count, flags) in [
        (at, 0, 0, R),
        (at, 0, 5, R),
        (at, 4, 1, R),
        (at, 3, 2, R),
        (at, u64::MAX, 1, R),
        (at, 1, u64::MAX, R),
        (at + 1, 0, 1, R),
        (at + 2048, 0, 1, R),
        (at, 0, 1, R | 1 << 4),
        (at, 0, 1, R | 1 << 31),
        (at, 0, 1, R | 1 << 32),
        (at, 0, 1, u64::MAX),
        (0, 0, 1, R),
        // Page 0 of the capability would be at 0, and below it.
        (PAGE, 1, 1, R),
        (PAGE, 2, 1, R),
        (USER_END, 0, 1, R),
        (USER_END - PAGE, 0, 2, R),
        // The last page of the capability would be beyond.
        (USER_END - 2 * PAGE, 0, 1, R),
        (1 << 47, 0, 1, R),
        (0xffff_8000_0000_0000, 0, 1, R),
        (u64::MAX - PAGE + 1, 0, 1, R),
    ] {
        call(Map, memory, [PD, address, offset, count, flags]).fails(BadArgument)?;
    }
    let sm = w.sm(0)?;
    call(Map, memory, [sm, at, 0, 4, R]).fails(BadType)?;
    call(Map, sm, [PD, at, 0, 1, R]).fails(BadType)?;
    let empty = w.sel();
    call(Map, memory, [empty, at, 0, 4, R]).fails(BadSelector)?;
    // The last place where it fits.
    let pd = w.pd()?;
    call(Map, memory, [pd, USER_END - 4 * PAGE, 0, 4, R]).gives([4, 0, 0])
}

fn mapping_checks_rights_of_memory_and_target(w: &mut World) -> Check {
    let memory = w.ram(1)?;
    let at = w.addresses(1);
    for (right, flags) in [
        (Rights::READ, R),
        (Rights::READ, 0),
        (Rights::READ, W),
        (Rights::WRITE, R | W),
        (Rights::EXECUTE, R | X),
    ] {
        let weak = w.without(memory, right)?;
        call(Map, weak, [PD, at, 0, 1, flags]).fails(BadRights)?;
    }
    let pd = w.pd()?;
    let no_map = w.without(pd, Rights::PD_MAP)?;
    call(Map, memory, [no_map, at, 0, 1, R]).fails(BadRights)?;
    if w.info.machine & 3 != 0 {
        let space = w.guest_space()?;
        let no_map = w.without(space, Rights::GUEST_MAP)?;
        call(Map, memory, [no_map, at, 0, 1, R]).fails(BadRights)?;
        let just = w.derive(space, Rights::GUEST_MAP)?;
        for (address, offset) in [(1 << 48, 0), (0xffff_ffff_ffff_f000, 0), (0, 1)] {
            call(Map, memory, [just, address, offset, 1, R]).fails(BadArgument)?;
        }
        call(Map, memory, [just, (1 << 48) - PAGE, 0, 1, R]).gives([1, 0, 0])?;
        call(Unmap, memory, [0, 1]).gives([1, 0, 0])?;
        call(Map, memory, [just, 0, 0, 1, R]).gives([1, 0, 0])?;
        call(Unmap, memory, [0, 1]).gives([1, 0, 0])?;
    }
    let just = w.derive(pd, Rights::PD_MAP)?;
    call(Map, memory, [just, at, 0, 1, 0]).gives([1, 0, 0])
}

fn a_capability_has_one_position_in_one_space(w: &mut World) -> Check {
    let memory = w.ram(4)?;
    let (at, other) = (w.addresses(4), w.addresses(4));
    let pd = w.pd()?;
    call(Map, memory, [PD, at + PAGE, 1, 1, R]).gives([1, 0, 0])?;
    call(Map, memory, [PD, other, 0, 1, R]).fails(Occupied)?;
    call(Map, memory, [PD, at, 1, 1, R]).fails(Occupied)?;
    call(Map, memory, [pd, at, 0, 1, R]).fails(Occupied)?;
    call(Map, memory, [PD, at + 3 * PAGE, 3, 1, R]).gives([1, 0, 0])?;
    call(Map, memory, [PD, at, 0, 4, R]).gives([4, 0, 0])?;
    // A part does not end the attachment; all of it does.
    call(Unmap, memory, [0, 3]).gives([3, 0, 0])?;
    call(Map, memory, [PD, other, 0, 1, R]).fails(Occupied)?;
    call(Unmap, memory, [0, 4]).gives([4, 0, 0])?;
    call(Map, memory, [PD, other, 0, 4, R]).gives([4, 0, 0])
}

fn an_address_with_another_frame_is_occupied(w: &mut World) -> Check {
    let (first, second) = (w.ram(4)?, w.ram(4)?);
    let at = w.addresses(4);
    call(Map, first, [PD, at + 2 * PAGE, 2, 1, R]).gives([1, 0, 0])?;
    // The first page is the problem: nothing happens, and it is not attached.
    call(Map, second, [PD, at + 2 * PAGE, 2, 2, R]).fails(Occupied)?;
    let elsewhere = w.addresses(4);
    call(Map, second, [PD, elsewhere, 0, 1, R]).gives([1, 0, 0])?;
    call(Unmap, second, [0, 4]).gives([4, 0, 0])?;
    // A later page: the pages before it are mapped.
    let answer = call(Map, second, [PD, at, 0, 4, R]);
    equal("status and pages", (answer.status(), answer.values[0]), (Some(Partial), 2))?;
    call(Map, second, [PD, at + 2 * PAGE, 2, 2, R]).fails(Occupied)?;
    // The same frame is no other one.
    let again = w.derive(first, Rights::ALL)?;
    call(Map, again, [PD, at + 2 * PAGE, 2, 1, R]).gives([1, 0, 0])
}

fn mapping_again_changes_rights(w: &mut World) -> Check {
    let memory = w.ram(2)?;
    let at = w.addresses(2);
    call(Map, memory, [PD, at, 0, 2, R | W]).gives([2, 0, 0])?;
    poke(at, 5);
    call(Map, memory, [PD, at, 0, 1, R]).gives([1, 0, 0])?;
    is_read_only(w, at)?;
    poke(at + PAGE, 6);
    call(Map, memory, [PD, at, 0, 1, R | W]).gives([1, 0, 0])?;
    poke(at, 7);
    equal("word", peek(at), 7)?;
    // Not executable, unless asked for: 0xc3 would return.
    let fault = w.fault_at(0, at, 0)?;
    equal("fault", (fault.vector, fault.address), (14, at))?;
    poke(at, 0x0b0f);
    call(Map, memory, [PD, at, 0, 1, R | X]).gives([1, 0, 0])?;
    let fault = w.fault_at(0, at, 0)?;
    equal("fault", (fault.vector, fault.rip), (6, at))
}

fn a_part_is_unmapped_and_the_rest_stays(w: &mut World) -> Check {
    let memory = w.ram(6)?;
    let at = w.addresses(6);
    call(Map, memory, [PD, at, 0, 6, R | W]).gives([6, 0, 0])?;
    (0..6).for_each(|page| poke(at + page * PAGE, page));
    call(Unmap, memory, [2, 2]).gives([2, 0, 0])?;
    for page in [0, 1, 4, 5] {
        equal("word", peek(at + page * PAGE), page)?;
    }
    is_unmapped(w, at + 2 * PAGE)?;
    is_unmapped(w, at + 3 * PAGE)?;
    // Again: nothing is there, which is no error.
    call(Unmap, memory, [2, 2]).gives([2, 0, 0])?;
    call(Map, memory, [PD, at + 2 * PAGE, 2, 2, R]).gives([2, 0, 0])?;
    equal("word", peek(at + 2 * PAGE), 2)
}

fn unmap_checks_its_arguments(w: &mut World) -> Check {
    let memory = w.ram(4)?;
    let at = w.addresses(4);
    call(Unmap, memory, [0, 4]).fails(Unbound)?;
    call(Map, memory, [PD, at, 0, 4, R]).gives([4, 0, 0])?;
    for (offset, count) in [(0, 0), (0, 5), (4, 1), (3, 2), (u64::MAX, 1), (1, u64::MAX), (0, 1 << 52)] {
        call(Unmap, memory, [offset, count]).fails(BadArgument)?;
    }
    let pool = w.pool;
    call(Unmap, pool, [0, 1]).fails(BadType)?;
    // No right is needed.
    let weak = w.derive(memory, Rights::READ)?;
    call(Unmap, weak, [0, 4]).fails(Unbound)?;
    call(Unmap, memory, [0, 4]).gives([4, 0, 0])?;
    call(Unmap, memory, [0, 4]).fails(Unbound)
}

fn revoking_memory_takes_its_mappings_along(w: &mut World) -> Check {
    let memory = w.ram(3)?;
    let view = w.derive(memory, Rights::ALL)?;
    let at = w.addresses(3);
    call(Map, view, [PD, at, 0, 3, R | W]).gives([3, 0, 0])?;
    poke(at, 1);
    call(Revoke, memory, [0]).done()?;
    is_unmapped(w, at)?;
    call(CapInfo, view, []).fails(BadSelector)?;
    let view = w.derive(memory, Rights::ALL)?;
    call(Map, view, [PD, at, 0, 3, R]).gives([3, 0, 0])?;
    equal("word", peek(at), 1)?;
    call(Revoke, view, [1]).done()?;
    is_unmapped(w, at)
}

fn device_memory_is_uncached_and_ram_is_not(w: &mut World) -> Check {
    let memory = w.ram(1)?;
    let at = w.addresses(1);
    call(Map, memory, [PD, at, 0, 1, R | UNCACHED]).fails(BadArgument)?;
    let regions = &w.info.regions[..w.info.region_count as usize];
    let device = regions.iter().find(|region| region.kind == RegionKind::Device as u32);
    let Some(device) = device else { return Ok(()) };
    let page = w.part(device.selector.into(), 0, 1)?;
    call(Map, page, [PD, at, 0, 1, R]).fails(BadArgument)?;
    call(Map, page, [PD, at, 0, 1, R | X | UNCACHED]).fails(BadRights)?;
    call(Map, page, [PD, at, 0, 1, R | W | UNCACHED]).gives([1, 0, 0])?;
    peek(at);
    call(Unmap, page, [0, 1]).gives([1, 0, 0])
}

fn large_mappings_are_made_in_steps_or_by_large_pages(w: &mut World) -> Check {
    let (pool, pd) = (w.sub_pool(64)?, w.sel());
    call(CreatePd, pd, [pool]).done()?;
    // Out of step with 2 MiB: at most 1024 pages a call, and not many less while nothing else is to be done.
    let memory = w.large_ram(3000)?;
    let odd = 0x4000_0000 + PAGE;
    let mut done = 0;
    let mut calls = 0;
    while done < 3000 {
        let answer = call(Map, memory, [pd, odd + done * PAGE, done, 3000 - done, R]);
        let pages = answer.values[0];
        holds("pages of a call", (1..=1024).contains(&pages) && pages <= 3000 - done)?;
        done += pages;
        equal("is complete", answer.status() == Some(Success), done == 3000)?;
        calls += 1;
    }
    holds("few calls", (3..=6).contains(&calls))?;
    call(Unmap, memory, [0, 3000]).gives([3000, 0, 0])?;
    // In step: at once, and cheaply.
    let before = free_frames(pool)?;
    call(Map, memory, [pd, 0x8000_0000, 0, 3000, R]).gives([3000, 0, 0])?;
    holds("few tables", before - free_frames(pool)? <= 4)
}

fn split(w: &mut World, space: Sel, pool: Sel) -> Check {
    let memory = w.large_ram(1536)?;
    let base = 0x4000_0000;
    call(Map, memory, [space, base, 0, 1536, R | W]).gives([1536, 0, 0])?;
    let before = free_frames(pool)?;
    call(Unmap, memory, [700, 1]).gives([1, 0, 0])?;
    equal("a table to split it", before - free_frames(pool)?, 1)?;
    // The hole takes another frame, its neighbours do not.
    let other = w.ram(1)?;
    call(Map, other, [space, base + 699 * PAGE, 0, 1, R]).fails(Occupied)?;
    call(Map, other, [space, base + 701 * PAGE, 0, 1, R]).fails(Occupied)?;
    call(Map, other, [space, base + 700 * PAGE, 0, 1, R]).gives([1, 0, 0])?;
    call(Map, memory, [space, base + 700 * PAGE, 700, 1, R]).fails(Occupied)?;
    call(Unmap, other, [0, 1]).gives([1, 0, 0])?;
    map_all(memory, space, base, 0, 1536, MapFlags::READ)?;
    call(Unmap, memory, [0, 1536]).gives([1536, 0, 0])?;
    call(Map, other, [space, base, 0, 1, R]).gives([1, 0, 0])
}

fn a_page_out_of_a_large_page_is_unmapped(w: &mut World) -> Check {
    let (pool, pd) = (w.sub_pool(32)?, w.sel());
    call(CreatePd, pd, [pool]).done()?;
    split(w, pd, pool)
}

fn a_page_out_of_a_large_page_of_a_guest_is_unmapped(w: &mut World) -> Check {
    if w.info.machine & 3 == 0 {
        return Ok(());
    }
    let (pool, space) = (w.sub_pool(32)?, w.sel());
    call(CreateGuestSpace, space, [pool]).done()?;
    split(w, space, pool)
}

fn deleting_part_of_a_large_page_without_memory_never_fails(w: &mut World) -> Check {
    let (pool, pd) = (w.sub_pool(12)?, w.sel());
    call(CreatePd, pd, [pool]).done()?;
    let memory = w.large_ram(1536)?;
    let part = w.part(memory, 600, 10)?;
    let base = 0x4000_0000;
    call(Map, memory, [pd, base, 0, 1536, R]).gives([1536, 0, 0])?;
    call(Map, part, [pd, base + 600 * PAGE, 0, 10, R]).gives([10, 0, 0])?;
    let free = free_frames(pool)?;
    let drain = w.sel();
    call(CreatePool, drain, [pool, free, 0])
        .ok()
        .or_else(|_| call(CreatePool, drain, [pool, free - 1, 0]).ok())?;
    call(Unmap, part, [0, 1]).fails(NoMemory)?;
    call(Unmap, memory, [700, 1]).fails(NoMemory)?;
    // As a whole it must go, and takes the large page along.
    call(Revoke, part, [1]).done()?;
    let other = w.ram(1)?;
    call(Map, other, [pd, base + 600 * PAGE, 0, 1, R])
        .status()
        .map_or(Ok(()), |status| holds("the translation is gone", status != Occupied))?;
    call(Revoke, drain, [1]).done()?;
    call(Unmap, other, [0, 1]);
    map_all(memory, pd, base, 0, 1536, MapFlags::READ)
}

fn two_views_of_the_same_frames_agree(w: &mut World) -> Check {
    let memory = w.ram(2)?;
    let (a, b) = (w.view(memory, 2)?, w.view(memory, 2)?);
    poke(a + PAGE, 0x1234);
    equal("word in the other view", peek(b + PAGE), 0x1234)?;
    poke(b, 0x5678);
    equal("word in the first view", peek(a), 0x5678)
}

fn a_child_does_not_see_the_parents_memory(w: &mut World) -> Check {
    let child = w.child(64, 2)?;
    let memory = w.ram(1)?;
    let at = w.view(memory, 1)?;
    let told = w.sm(0)?;
    for (stack, address) in [(0, at), (1, hypercall_abi::boot_info::BOOT_INFO_ADDR)] {
        let (ec, _) = w.child_thread(&child, (0, HIGH, stack), load as *const () as u64, address)?;
        w.until("the child faults", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
        let fault = threads::fault_of(ec)?;
        equal("fault", fault.map(|fault| (fault.vector, fault.address)), Some((14, address)))?;
    }
    call(Wait, told, [NOW]).fails(Timeout)
}

fn a_domain_that_ends_leaves_its_memory_mappable(w: &mut World) -> Check {
    let memory = w.ram(4)?;
    for _ in 0..3 {
        let pd = w.pd()?;
        call(Map, memory, [pd, 0x40_0000, 0, 4, R]).gives([4, 0, 0])?;
        call(Revoke, pd, [1]).done()?;
    }
    let at = w.addresses(4);
    call(Map, memory, [PD, at, 0, 4, R]).gives([4, 0, 0])
}
