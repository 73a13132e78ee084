//! Creating objects: destination slot in the caller's object space, memory from a pool.

use super::{Call, Failure, Outcome, Result, lock_tree};
use crate::cap::{self, Tree};
use crate::cpu::PRIORITIES;
use crate::object::dma_space::DmaSpace;
use crate::object::ec::{Ec, State};
use crate::object::guest_space::GuestSpace;
use crate::object::pd::Pd;
use crate::object::pool::{MAX_DEPTH, Pool};
use crate::object::portal::Portal;
use crate::object::sc::Sc;
use crate::object::signal::Signal;
use crate::object::vcpu::{Frames, Vcpu};
use crate::object::{Header, Object};
use crate::sched;
use hypercall_abi::regs::unpack_ec_place;
use hypercall_abi::{ObjectType, Rights, Status, USER_END};
use kcore::addr::PhysAddr;
use kcore::iommu::Space;
use kcore::sched::budget::Budget;
use khw::entry::Frame;
use khw::iommu;

/// Largest period of a scheduling context: an hour, in microseconds.
const MAX_PERIOD_US: u64 = 3_600_000_000;

/// The destination slot and the pool of argument 0.
fn prepare(call: &Call, tree: &Tree) -> core::result::Result<(u32, &'static Pool), Failure> {
    let pool = call.ec.pd.look_up(call.selector_at(0)?)?.cast::<Pool>(Rights::POOL_CREATE)?;
    Ok((call.ec.pd.empty_slot(tree, call.selector())?, pool))
}

/// Makes the object of `value` and its first capability.
fn finish<T: Object>(
    tree: &mut Tree,
    slot: u32,
    pool: &'static Pool,
    value: T,
    header: impl FnOnce(&'static T) -> &'static Header,
) -> core::result::Result<&'static T, Status> {
    let object = pool.create_object(value).ok_or(Status::NoMemory)?;
    cap::insert_object(tree, slot, header(object));
    Ok(object)
}

/// Creates a pool of argument 1 frames, whose scheduling contexts have priorities below argument 2 (0: those of the parent).
pub(super) fn pool(call: &Call) -> Result {
    let mut tree = lock_tree()?;
    let (slot, parent) = prepare(call, &tree)?;
    if call.args[1] == 0 {
        return Err(Status::BadArgument.into());
    }
    // 0 keeps the parent's ceiling; otherwise one more than the new one.
    let max_priority = match call.args[2] {
        0 => parent.max_priority,
        above if above <= parent.max_priority as u64 + 1 => (above - 1) as u8,
        _ => return Err(Status::BadArgument.into()),
    };
    if parent.depth >= MAX_DEPTH {
        return Err(Status::Unsupported.into());
    }
    let pool = Pool::create(parent, call.args[1], max_priority).ok_or(Status::NoMemory)?;
    cap::insert_object(&mut tree, slot, pool.header());
    Ok(Outcome::OK)
}

/// Creates a protection domain.
pub(super) fn pd(call: &Call) -> Result {
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let pd = Pd::create(Header::new(ObjectType::Pd, Some(pool)), pool).ok_or(Status::NoMemory)?;
    let frames = [pd.directory, pd.root];
    match finish(&mut tree, slot, pool, pd, Pd::header) {
        Ok(_) => Ok(Outcome::OK),
        Err(status) => Err(give_back(pool, &frames, status)),
    }
}

/// Creates an execution context: argument 1 the domain, 2 the CPU and kind, 3 and 4 RIP and RSP, 5 RDI.
pub(super) fn ec(call: &Call) -> Result {
    let [_, _, place, ip, sp, argument] = call.args;
    let (cpu, is_handler) = unpack_ec_place(place).ok_or(Status::BadArgument)?;
    if cpu as usize >= khw::smp::cpu_count() || ip >= USER_END || sp >= USER_END {
        return Err(Status::BadArgument.into());
    }
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let pd = call.ec.pd.look_up(call.selector_at(1)?)?.cast::<Pd>(Rights::PD_CONTROL)?;
    let mut frame = Frame::user(ip, sp);
    frame.rdi = argument;
    let ec = Ec::new(Header::new(ObjectType::Ec, Some(pool)), pd, cpu, is_handler, frame);
    let ec = finish(&mut tree, slot, pool, ec, Ec::header)?;
    pd.ecs.push_back(ec);
    Ok(Outcome::OK)
}

/// Creates a scheduling context and starts its thread: argument 1 the thread, 2 the priority, 3 and 4 budget and period in µs.
pub(super) fn sc(call: &Call) -> Result {
    let [_, _, priority, budget_us, period_us, _] = call.args;
    let is_in_range = priority < PRIORITIES as u64
        && (1..=MAX_PERIOD_US).contains(&period_us)
        && (1..=period_us).contains(&budget_us);
    if !is_in_range {
        return Err(Status::BadArgument.into());
    }
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let ec = call.ec.pd.look_up(call.selector_at(1)?)?.cast::<Ec>(Rights::EC_CONTROL)?;
    if ec.is_handler {
        return Err(Status::BadType.into());
    }
    if ec.own_sc.get().is_some() || ec.state.get() == State::Faulted {
        return Err(Status::Occupied.into());
    }
    if priority > pool.max_priority as u64 {
        return Err(Status::BadRights.into());
    }
    let ticks = crate::boot::clock::ticks_from_us;
    let budget = Budget::new(ticks(budget_us), ticks(period_us));
    let sc = Sc::new(Header::new(ObjectType::Sc, Some(pool)), ec, priority as u8, budget);
    let sc = finish(&mut tree, slot, pool, sc, Sc::header)?;
    ec.own_sc.set(Some(sc));
    sched::start(sc);
    Ok(Outcome::OK)
}

/// Creates a portal: argument 1 the handler, 2 where it starts, 3 the id it is told.
pub(super) fn portal(call: &Call) -> Result {
    let [_, _, ip, id, ..] = call.args;
    if ip >= USER_END {
        return Err(Status::BadArgument.into());
    }
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let handler = call.ec.pd.look_up(call.selector_at(1)?)?.cast::<Ec>(Rights::EC_CONTROL)?;
    if !handler.is_handler {
        return Err(Status::BadType.into());
    }
    let portal = Portal::new(Header::new(ObjectType::Pt, Some(pool)), handler, ip, id);
    let portal = finish(&mut tree, slot, pool, portal, Portal::header)?;
    handler.portals.push_back(portal);
    Ok(Outcome::OK)
}

/// Creates a semaphore that counts argument 1.
pub(super) fn semaphore(call: &Call) -> Result {
    signal(call, ObjectType::Sm, call.args[1])
}

/// Creates a notification.
pub(super) fn notification(call: &Call) -> Result {
    signal(call, ObjectType::Ntfn, 0)
}

fn signal(call: &Call, kind: ObjectType, value: u64) -> Result {
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    finish(&mut tree, slot, pool, Signal::new(Header::new(kind, Some(pool)), value), Signal::header)?;
    Ok(Outcome::OK)
}

/// Creates a guest-physical address space.
pub(super) fn guest_space(call: &Call) -> Result {
    khw::virt::features().map_err(|_| Status::Unsupported)?;
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let header = Header::new(ObjectType::GuestSpace, Some(pool));
    let space = GuestSpace::create(header, pool).ok_or(Status::NoMemory)?;
    let frames = [space.root];
    match finish(&mut tree, slot, pool, space, GuestSpace::header) {
        Ok(_) => Ok(Outcome::OK),
        Err(status) => Err(give_back(pool, &frames, status)),
    }
}

/// Creates a DMA space.
pub(super) fn dma_space(call: &Call) -> Result {
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let mut frames = [PhysAddr(0); 2];
    take_frames(pool, &mut frames)?;
    let [root, table] = frames;
    let Some(domain) = iommu::take_domain() else {
        return Err(give_back(pool, &frames, Status::Unsupported));
    };
    // SAFETY: the frames were taken above.
    unsafe { iommu::prepare(root, table) };
    let header = Header::new(ObjectType::DmaSpace, Some(pool));
    let space = DmaSpace::new(header, pool, Space { root, domain });
    match finish(&mut tree, slot, pool, space, DmaSpace::header) {
        Ok(_) => Ok(Outcome::OK),
        Err(status) => {
            iommu::give_domain(domain);
            Err(give_back(pool, &frames, status))
        }
    }
}

/// Creates a vCPU on the caller's CPU: argument 1 the space, 2 that CPU.
pub(super) fn vcpu(call: &Call) -> Result {
    if call.args[2] != call.local.id as u64 {
        return Err(Status::WrongCpu.into());
    }
    let mut tree = lock_tree()?;
    let (slot, pool) = prepare(call, &tree)?;
    let space = call.ec.pd.look_up(call.selector_at(1)?)?.cast::<GuestSpace>(Rights::GUEST_VCPU)?;
    let mut frames: Frames = [PhysAddr(0); _];
    let mut fpu_area = [PhysAddr(0)];
    take_frames(pool, &mut frames)?;
    if let Err(failure) = take_frames(pool, &mut fpu_area) {
        give_back(pool, &frames, Status::NoMemory);
        return Err(failure);
    }
    let [fpu_area] = fpu_area;
    let Some(place) = pool.allocate::<Vcpu>() else {
        give_back(pool, &frames, Status::NoMemory);
        return Err(give_back(pool, &[fpu_area], Status::NoMemory));
    };
    let header = Header::new(ObjectType::Vcpu, Some(pool));
    let vcpu = place.put(Vcpu::new(header, space, pool, frames, fpu_area));
    cap::insert_object(&mut tree, slot, vcpu.header());
    space.vcpus.push_back(vcpu);
    Ok(Outcome::OK)
}

/// Takes zeroed frames, all or none.
fn take_frames(pool: &'static Pool, frames: &mut [PhysAddr]) -> core::result::Result<(), Failure> {
    for index in 0..frames.len() {
        match pool.take_frame() {
            Some(taken) => frames[index] = taken,
            None => return Err(give_back(pool, &frames[..index], Status::NoMemory)),
        }
    }
    Ok(())
}

/// Returns frames of an object that could not be made.
fn give_back(pool: &'static Pool, frames: &[PhysAddr], status: Status) -> Failure {
    for &frame in frames {
        // SAFETY: the frames were taken in this call, and nothing that lives refers to them.
        unsafe { pool.give_frame(frame) };
    }
    status.into()
}
