//! Mapping memory and ports.

use super::{Call, Failure, Outcome, Result, lock_tree};
use crate::cap::{Found, Target, Tree};
use crate::cpu::{Attention, Local};
use crate::object::dma_space::DmaSpace;
use crate::object::guest_space::GuestSpace;
use crate::object::pd::Pd;
use crate::sched;
use hypercall_abi::cap::MapFlags;
use hypercall_abi::{ObjectType, PAGE_SIZE, Rights, Selector, Status, USER_END};
use kcore::addr::PhysAddr;
use kcore::cap::Slots;
use kcore::paging::{self, Attr, HostFormat, MapDone, MapError, PageSize, Partial};
use khw::mem::Tables;
use khw::virt::nested;

/// Largest guest-physical address: what four levels of nested tables reach.
pub(super) const GUEST_END: u64 = 1 << 48;

/// Entries of page tables that are written before interrupts are let in.
const STRETCH: usize = 128;

/// How often that may be in one call.
const SHARE: usize = 8;

/// Ports that the kernel keeps: the 8259s, which it masked for good.
const KERNEL_PORTS: [u64; 4] = [0x20, 0x21, 0xa0, 0xa1];

/// First port of the serial line that the kernel may log to.
const COM1: u64 = 0x3f8;

/// Maps memory or ports.
pub(super) fn map(call: &Call) -> Result {
    let [_, address, offset, count, flags, _] = call.args;
    let target = call.selector_at(0)?;
    let flags = u32::try_from(flags).ok().and_then(MapFlags::from_bits).ok_or(Status::BadArgument)?;
    let mut tree = lock_tree()?;
    let found = call.capability()?;
    if !matches!(found.kind, ObjectType::Memory | ObjectType::Ports) {
        return Err(Status::BadType.into());
    }
    let (first, count) =
        kcore::cap::range::sub_range(found.object, found.count, offset, count).ok_or(Status::BadArgument)?;
    match found.kind {
        ObjectType::Memory => {
            let request = Request { address, offset, first, pages: count, flags };
            map_memory(call, &mut tree, found, target, request)
        }
        _ if address != 0 || !flags.is_empty() => Err(Status::BadArgument.into()),
        _ => map_ports(call, &mut tree, found, target, (first, count)),
    }
}

#[derive(Clone, Copy)]
struct Request {
    address: u64,
    offset: u64,
    first: u64,
    pages: u64,
    flags: MapFlags,
}

fn map_memory(call: &Call, tree: &mut Tree, found: Found, target: Selector, request: Request) -> Result {
    let Request { address, offset, first, pages, flags } = request;
    let base = offset
        .checked_mul(PAGE_SIZE)
        .and_then(|skip| address.checked_sub(skip))
        .ok_or(Status::BadArgument)?;
    // All of the capability must fit, since all of it may be mapped, and is unmapped, from `base` on.
    let bytes = found.count.checked_mul(PAGE_SIZE).ok_or(Status::BadArgument)?;
    let end = base.checked_add(bytes).ok_or(Status::BadArgument)?;
    // A device is never cached and RAM always is: aliases of other types are undefined (SDM 3A 12.12.4).
    let is_device = !crate::boot::memory::is_ram(first);
    if !address.is_multiple_of(PAGE_SIZE) || flags.contains(MapFlags::UNCACHED) != is_device {
        return Err(Status::BadArgument.into());
    }
    let target = match call.ec.pd.look_up(target)? {
        found if found.kind == ObjectType::Pd => Target::Pd(found.cast::<Pd>(Rights::PD_MAP)?),
        found if found.kind == ObjectType::GuestSpace => {
            Target::Guest(found.cast::<GuestSpace>(Rights::GUEST_MAP)?)
        }
        found if found.kind == ObjectType::DmaSpace => Target::Dma(found.cast::<DmaSpace>(Rights::DMA_MAP)?),
        _ => return Err(Status::BadType.into()),
    };
    let is_in_range = match target {
        Target::Pd(_) => base >= PAGE_SIZE && end <= USER_END,
        // Devices do not execute, and reach no other devices.
        Target::Dma(_) => end <= khw::iommu::end() && !is_device && !flags.contains(MapFlags::EXECUTE),
        _ => end <= GUEST_END,
    };
    if !is_in_range {
        return Err(Status::BadArgument.into());
    }
    check_rights(found.rights, flags)?;
    let was_bound = attach(tree, found.slot, target, base)?;
    let attr = Attr {
        read: flags.contains(MapFlags::READ),
        write: flags.contains(MapFlags::WRITE),
        execute: flags.contains(MapFlags::EXECUTE),
        uncached: flags.contains(MapFlags::UNCACHED),
        user: true,
    };
    let piece = Piece { target, address, pa: PhysAddr(first << 12), pages, attr };
    let mapped = map_pages(call.local, &piece);
    if !was_bound && mapped.is_err_and(|partial| partial.pages == 0) {
        target.bound_list().unbind(tree, found.slot);
    }
    finish(call.local, target, mapped, pages)
}

/// Each way of using memory that the mapping asks for is one that the capability allows.
fn check_rights(held: Rights, flags: MapFlags) -> core::result::Result<(), Status> {
    let pairs = [
        (MapFlags::READ, Rights::READ),
        (MapFlags::WRITE, Rights::WRITE),
        (MapFlags::EXECUTE, Rights::EXECUTE),
    ];
    let is_allowed = pairs.iter().all(|&(flag, right)| !flags.contains(flag) || held.contains(right));
    // Every format makes what is present readable.
    if is_allowed && held.contains(Rights::READ) { Ok(()) } else { Err(Status::BadRights) }
}

/// Binds the slot to the target at `base`, or checks that it is bound just so: whether it was.
fn attach(tree: &mut Tree, slot: u32, target: Target, base: u64) -> core::result::Result<bool, Status> {
    let addr = target.header() as *const _ as u64;
    let entry = tree.slot(slot);
    if entry.bound == 0 {
        target.bound_list().bind(tree, slot, addr, base);
        return Ok(false);
    }
    let is_same = entry.bound == addr && entry.address == base;
    if is_same && target.bound_list().unmapping.get().0 != slot { Ok(true) } else { Err(Status::Occupied) }
}

/// Pages to map.
#[derive(Clone, Copy)]
struct Piece {
    target: Target,
    address: u64,
    pa: PhysAddr,
    pages: u64,
    attr: Attr,
}

impl Piece {
    /// What is left of it after this many pages.
    fn after(&self, done: u64) -> Self {
        let skip = done * PAGE_SIZE;
        Piece { address: self.address + skip, pa: self.pa.offset(skip), pages: self.pages - done, ..*self }
    }
}

/// Maps as many pages as one call may.
fn map_pages(local: &Local, piece: &Piece) -> core::result::Result<MapDone, Partial> {
    let first = map_stretch(piece)?;
    Ok(if first.pages == piece.pages { first } else { map_on(local, first, piece) })
}

/// Goes on after the first stretch.
#[cold]
fn map_on(local: &Local, mut all: MapDone, piece: &Piece) -> MapDone {
    for _ in 1..SHARE {
        if all.pages == piece.pages || !sched::preemption_point(local) {
            break;
        }
        let mapped = map_stretch(&piece.after(all.pages));
        let (pages, reduced_rights) = match mapped {
            Ok(done) => (done.pages, done.reduced_rights),
            Err(partial) => (partial.pages, partial.reduced_rights),
        };
        all.pages += pages;
        all.reduced_rights |= reduced_rights;
        if mapped.is_err() {
            // The error shows when the caller goes on.
            break;
        }
    }
    all
}

#[inline(never)]
fn map_stretch(piece: &Piece) -> core::result::Result<MapDone, Partial> {
    let Piece { target, address, pa, pages, attr } = *piece;
    // SAFETY: for all arms: the tables of a space are paid from its pool, and only changed under the tree lock, which
    // the caller holds.
    unsafe {
        match target {
            Target::Pd(pd) => paging::map_bounded::<HostFormat, _>(
                &mut Tables::new(pd.pool),
                pd.root,
                address,
                pa,
                pages,
                attr,
                PageSize::M2,
                STRETCH,
            ),
            Target::Guest(space) => {
                nested::map(&mut Tables::new(space.pool), space.root, address, pa, pages, attr, STRETCH)
            }
            Target::Dma(space) => {
                khw::iommu::map(space.pool, space.space.root, address, pa, pages, attr, STRETCH)
            }
            _ => Ok(MapDone { pages: 0, reduced_rights: false }),
        }
    }
}

fn finish(
    local: &Local,
    target: Target,
    mapped: core::result::Result<MapDone, Partial>,
    wanted: u64,
) -> Result {
    let (pages, reduced, error) = match mapped {
        Ok(done) => (done.pages, done.reduced_rights, None),
        Err(partial) => (partial.pages, partial.reduced_rights, Some(partial.error)),
    };
    if reduced {
        if let Target::Guest(space) = target {
            space.bump_generation();
        }
        khw::smp::synchronize();
        // The short way out is for who is still in its address space.
        local.attention.add(Attention::SWITCH);
    }
    match error {
        None if pages == wanted => Ok(Outcome::value(pages)),
        None => Ok(Outcome::Done(Status::Partial, [pages, 0, 0])),
        Some(_) if pages > 0 => Ok(Outcome::Done(Status::Partial, [pages, 0, 0])),
        Some(MapError::NoMemory) => Err(Status::NoMemory.into()),
        Some(MapError::Occupied) => Err(Status::Occupied.into()),
    }
}

fn map_ports(
    call: &Call,
    tree: &mut Tree,
    found: Found,
    target: Selector,
    (first, count): (u64, u64),
) -> Result {
    found.range(ObjectType::Ports, Rights::USE)?;
    let pd = call.ec.pd.look_up(target)?.cast::<Pd>(Rights::PD_MAP)?;
    if KERNEL_PORTS.iter().any(|&port| port >= first && port - first < count) {
        return Err(Status::BadArgument.into());
    }
    attach(tree, found.slot, Target::Pd(pd), 0)?;
    if first <= COM1 && COM1 - first < count {
        khw::console::give_up_serial();
    }
    if !pd.set_ports(first, count, true) {
        return Err(Status::NoMemory.into());
    }
    // Another CPU may run this domain with an older bitmap: it only lacks ports, and gets them at its next activation. This one does so
    // before user code goes on.
    call.local.attention.add(Attention::SWITCH);
    Ok(Outcome::value(count))
}

/// Unmaps part of what a memory capability mapped, or all that a port capability opened, or unbinds a doorbell.
pub(super) fn unmap(call: &Call) -> Result {
    let [offset, count, ..] = call.args;
    let mut tree = lock_tree()?;
    let found = call.capability()?;
    // A semaphore or notification counts as a range of one.
    let (own_first, own_count) = match found.kind {
        ObjectType::Memory | ObjectType::Ports | ObjectType::Devices => (found.object, found.count),
        ObjectType::Sm | ObjectType::Ntfn => (0, 1),
        _ => return Err(Status::BadType.into()),
    };
    let (first, count) =
        kcore::cap::range::sub_range(own_first, own_count, offset, count).ok_or(Status::BadArgument)?;
    let entry = *tree.slot(found.slot);
    let target = Target::of(&entry).ok_or(Failure::Status(Status::Unbound))?;
    tree.begin();
    let unmapped = if count == own_count {
        unmap_all(&mut tree, found.slot, count)
    } else if found.kind == ObjectType::Memory {
        unmap_part(&mut tree, target, entry.address + offset * PAGE_SIZE, first, count)
    } else {
        Err(Status::BadArgument)
    };
    tree.finish();
    Ok(match unmapped? {
        Some(pages) if pages == count => Outcome::value(count),
        Some(pages) => Outcome::Done(Status::Partial, [pages, 0, 0]),
        None => Outcome::Restart,
    })
}

fn unmap_all(tree: &mut Tree, slot: u32, count: u64) -> core::result::Result<Option<u64>, Status> {
    loop {
        if tree.unmap(slot) {
            return Ok(Some(count));
        }
        if !tree.may_go_on() {
            return Ok(None);
        }
    }
}

fn unmap_part(
    tree: &mut Tree,
    target: Target,
    address: u64,
    first: u64,
    count: u64,
) -> core::result::Result<Option<u64>, Status> {
    let done = tree.unmap_pages(target, address, first, count)?;
    Ok(Some(if done == count { done } else { unmap_on(tree, done, target, address, first, count) }))
}

/// Goes on after the first stretch.
#[cold]
fn unmap_on(tree: &mut Tree, mut done: u64, target: Target, address: u64, first: u64, count: u64) -> u64 {
    while done < count && tree.may_go_on() {
        match tree.unmap_pages(target, address + done * PAGE_SIZE, first + done, count - done) {
            Ok(pages) => done += pages,
            // It shows when the caller goes on.
            Err(_) => break,
        }
    }
    done
}
