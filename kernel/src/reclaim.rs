//! The end of capabilities and objects.
//!
//! 1. Under the tree lock, capabilities are taken out of the tree leaf first; what a capability mapped is unmapped. The first
//!    capability of an object takes the object with it, and with that the objects that depend on it.
//! 2. Objects that other CPUs may be using are handed to those CPUs, which let go of them ([`let_go`]).
//! 3. After one grace period nothing refers to any of them, and their memory is freed.
//!
//! Every step leaves a consistent state, so a long revocation stops at a preemption point and the hypercall starts again.

use crate::cap::{self, Target, Tree, slots_of};
use crate::cpu::{self, Attention, Local};
use crate::hypercall::ipc;
use crate::object::ec::{Ec, State, WaitResult};
use crate::object::guest_space::GuestSpace;
use crate::object::pd::Pd;
use crate::object::pool::Pool;
use crate::object::portal::Portal;
use crate::object::sc::Sc;
use crate::object::signal::Signal;
use crate::object::vcpu::Vcpu;
use crate::object::{Header, InPool, List, interrupt};
use crate::{sched, trace};
use core::sync::atomic::Ordering;
use hypercall_abi::{ObjectType, Status};
use kcore::addr::PhysAddr;
use kcore::cap::{Slot, Slots, tree};
use kcore::paging::{self, HostFormat};
use khw::mem::Tables;
use khw::smp;
use khw::virt::nested;

/// Steps between looks for an interrupt.
const STEPS: usize = 64;

/// Objects on their way out.
#[derive(Debug, Default)]
pub struct Reclaim {
    /// Out of the tree; what depends on them is not.
    dying: List<Header, InPool>,
    /// Freed after the grace period.
    dead: List<Header, InPool>,
    /// Freed after all others, the deepest first: a pool is paid by its parent.
    dead_pools: List<Header, InPool>,
    needs_grace: bool,
}

/// Whether an operation got to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It did.
    Done,
    /// It should be called again after interrupts were let in.
    More,
}

/// Revokes what is derived from `root`, and `root` itself if asked. Afterwards the memory is free.
pub fn revoke(tree: &mut Tree, root: u32, with_root: bool) -> Progress {
    tree.slot_mut(root).state |= cap::REVOKING;
    let mut reclaim = Reclaim::default();
    let mut progress = Progress::Done;
    let mut steps = 0;
    while let Some(leaf) = tree::first_leaf_below(tree, root) {
        reclaim.delete(tree, leaf);
        steps += 1;
        if steps == STEPS {
            progress = Progress::More;
            break;
        }
    }
    if progress == Progress::Done {
        tree.slot_mut(root).state &= !cap::REVOKING;
        if with_root && !tree.slot(root).is_empty() {
            progress = reclaim.delete_root(tree, root);
        }
    }
    reclaim.finish(tree);
    progress
}

impl Reclaim {
    /// Deletes a capability that has no descendants.
    fn delete(&mut self, tree: &mut Tree, slot: u32) {
        match object_of(tree.slot(slot)).filter(|header| header.root_slot.get() == slot) {
            Some(header) => self.doom(tree, header),
            None => self.remove(tree, slot),
        }
    }

    /// As [`Self::delete`], in steps for a pool, which may have any number of objects.
    fn delete_root(&mut self, tree: &mut Tree, slot: u32) -> Progress {
        let object = object_of(tree.slot(slot)).filter(|header| header.root_slot.get() == slot);
        if let Some(pool) = object.and_then(as_pool) {
            for _ in 0..STEPS {
                let Some(header) = deepest(pool).objects.first() else {
                    self.delete(tree, slot);
                    return Progress::Done;
                };
                self.doom(tree, header);
            }
            return Progress::More;
        }
        self.delete(tree, slot);
        Progress::Done
    }

    /// Empties a slot: unmaps, unbinds, unlinks.
    fn remove(&mut self, tree: &mut Tree, slot: u32) {
        self.unmap(tree, slot);
        let was_leaf = tree::remove_leaf(tree, slot);
        debug_assert!(was_leaf, "a capability with descendants was removed");
        if tree.slot(slot).kind == ObjectType::Irqs as u8 {
            interrupt::unbind_slot(slot);
        }
        cap::empty(tree, slot);
        // Another CPU may be looking at the slot: it is reused after a grace period only.
        self.needs_grace = true;
    }

    /// Undoes what a capability mapped or is bound to.
    pub fn unmap(&mut self, tree: &mut Tree, slot: u32) {
        let entry = *tree.slot(slot);
        let Some(target) = Target::of(&entry) else { return };
        target.bound_list().unbind(tree, slot);
        match target {
            Target::Pd(pd) if entry.kind == ObjectType::Ports as u8 => {
                pd.set_ports(entry.object, entry.count, false);
                self.needs_grace = true;
            }
            Target::Pd(_) | Target::Guest(_) => {
                self.unmap_all(target, entry.address, entry.object, entry.count)
            }
            Target::Doorbell(space) => {
                space.unbind_doorbell(entry.address);
                self.needs_grace = true;
            }
            Target::Utcb(ec) => {
                ec.utcb.store(0, Ordering::Release);
                self.needs_grace = true;
            }
            Target::VirtualApic(vcpu) => {
                vcpu.apic.frame.store(0, Ordering::Release);
                vcpu.kick();
                self.needs_grace = true;
            }
            Target::Trace(ring) => {
                ring.set_memory(0, 0);
                self.needs_grace = true;
            }
            Target::VcpuPage(vcpu) => {
                vcpu.lose_page();
                self.needs_grace = true;
            }
        }
    }

    /// Removes translations of a host space that point at the frames from `first` on. Fails, with nothing done beyond what counts
    /// as done, if a large page must be split and there is no frame for it.
    pub fn unmap_host(
        &mut self,
        pd: &'static Pd,
        address: u64,
        first: u64,
        pages: u64,
    ) -> Result<(), Status> {
        // SAFETY: the tables of `pd` are paid from its pool, and only changed under the tree lock, which is held.
        let mut tables = unsafe { Tables::new(pd.pool) };
        self.needs_grace = true;
        paging::unmap::<HostFormat, _>(&mut tables, pd.root, address, pages, PhysAddr(first << 12))
            .map(drop)
            .map_err(|_| Status::NoMemory)
    }

    /// Removes translations of a guest space that point at the frames from `first` on; fails as [`Self::unmap_host`].
    pub fn unmap_guest(
        &mut self,
        space: &'static GuestSpace,
        address: u64,
        first: u64,
        pages: u64,
    ) -> Result<(), Status> {
        // SAFETY: as in `unmap_host`.
        let mut tables = unsafe { Tables::new(space.pool) };
        self.needs_grace = true;
        let result = nested::unmap(&mut tables, space.root, address, pages, PhysAddr(first << 12));
        space.bump_generation();
        result.map(drop).map_err(|_| Status::NoMemory)
    }

    /// Removes all that a mapping may have mapped. Where a large page would have to be split without memory, all of it goes: the
    /// capability that mapped the rest of it can map that again.
    fn unmap_all(&mut self, target: Target, address: u64, first: u64, pages: u64) {
        let mut unmap = |address, first, pages| match target {
            Target::Pd(pd) => self.unmap_host(pd, address, first, pages),
            Target::Guest(space) => self.unmap_guest(space, address, first, pages),
            _ => Ok(()),
        };
        if unmap(address, first, pages).is_ok() {
            return;
        }
        const LARGEST: u64 = 1 << 18;
        let skip = (address >> 12 & (LARGEST - 1)).min(first);
        let _ = unmap(address - (skip << 12), first - skip, (pages + skip).next_multiple_of(LARGEST));
    }

    /// Takes an object, and its capabilities, out of the tree.
    fn doom(&mut self, tree: &mut Tree, header: &'static Header) {
        let root = header.root_slot.replace(0);
        if root == 0 {
            // It is dying already: two others that it depends on die too.
            return;
        }
        while let Some(leaf) = tree::first_leaf_below(tree, root) {
            self.remove(tree, leaf);
        }
        self.remove(tree, root);
        if let Some(pool) = header.pool {
            pool.objects.remove(header);
        }
        self.dying.push_back(header);
    }

    /// Takes what depends on dying objects out of the tree too, and unbinds them. A worklist: how deep objects depend on
    /// each other is the user's choice, the kernel stack is not.
    fn bury(&mut self, tree: &mut Tree) {
        while let Some(header) = self.dying.pop_front() {
            match header.kind {
                ObjectType::Pool => {
                    while let Some(object) = as_pool(header).and_then(|pool| pool.objects.first()) {
                        self.doom(tree, object);
                    }
                }
                ObjectType::Pd => self.bury_pd(tree, as_object::<Pd>(header)),
                ObjectType::Ec => {
                    let ec = as_object::<Ec>(header);
                    ec.pd.ecs.remove(ec);
                    self.unbind_all(tree, &ec.bound);
                    Signal::unwatch(ec);
                    while let Some(portal) = ec.portals.pop_front() {
                        self.doom(tree, portal.header());
                    }
                    if let Some(sc) = ec.own_sc.take() {
                        self.doom(tree, sc.header());
                    }
                }
                ObjectType::Sc => {
                    let sc = as_object::<Sc>(header);
                    sc.owner.own_sc.set(None);
                    sched::retire(sc);
                }
                ObjectType::Pt => {
                    let portal = as_object::<Portal>(header);
                    portal.handler.portals.remove_if_linked(portal);
                }
                ObjectType::Sm | ObjectType::Ntfn => {
                    let signal = as_object::<Signal>(header);
                    interrupt::unbind_signal(signal);
                    if let Some(vcpu) = signal.bound_vcpu() {
                        vcpu.signal.set(None);
                    }
                    signal.bind_vcpu(None);
                    signal.unwatch_all();
                    signal.abort_waiters();
                }
                ObjectType::GuestSpace => {
                    let space = as_object::<GuestSpace>(header);
                    self.unbind_all(tree, &space.bound);
                    while let Some(vcpu) = space.vcpus.first() {
                        space.vcpus.remove(vcpu);
                        self.doom(tree, vcpu.header());
                    }
                }
                ObjectType::Vcpu => {
                    let vcpu = as_object::<Vcpu>(header);
                    vcpu.space.vcpus.remove_if_linked(vcpu);
                    self.unbind_all(tree, &vcpu.bound);
                    self.unbind_all(tree, &vcpu.apic.bound);
                    if let Some(signal) = vcpu.signal.take() {
                        signal.bind_vcpu(None);
                    }
                }
                _ => {}
            }
            match cpu_of(header) {
                Some(cpu) => cpu::of(cpu as usize).queues.lock().doomed.push_back(header),
                None => self.lay_out(header),
            }
        }
    }

    fn lay_out(&mut self, header: &'static Header) {
        let Some(pool) = as_pool(header) else {
            return self.dead.push_back(header);
        };
        let mut next = self.dead_pools.first();
        while let Some(other) = next {
            if as_pool(other).is_none_or(|other| other.depth <= pool.depth) {
                return self.dead_pools.insert_before(header, other);
            }
            next = self.dead_pools.after(other);
        }
        self.dead_pools.push_back(header);
    }

    fn bury_pd(&mut self, tree: &mut Tree, pd: &'static Pd) {
        while let Some(ec) = pd.ecs.first() {
            pd.ecs.remove(ec);
            self.doom(tree, ec.header());
        }
        for table in pd.tables() {
            for slot in slots_of(table) {
                if tree.slot(slot).is_empty() {
                    continue;
                }
                while let Some(leaf) = tree::first_leaf_below(tree, slot) {
                    self.delete(tree, leaf);
                }
                self.delete(tree, slot);
            }
        }
        self.unbind_all(tree, &pd.bound);
    }

    fn unbind_all(&mut self, tree: &mut Tree, list: &'static crate::cap::BoundList) {
        while list.first() != 0 {
            self.unmap(tree, list.first());
        }
    }

    /// Buries what is dying, waits for a grace period if anything was taken away, and frees what is dead.
    pub fn finish(&mut self, tree: &mut Tree) {
        self.bury(tree);
        if !self.needs_grace {
            return;
        }
        self.needs_grace = false;
        let_go(cpu::local());
        smp::synchronize();
        khw::flush_checker::freeing(true);
        for cpu in 0..smp::cpu_count() {
            loop {
                let released = cpu::of(cpu).queues.lock().released.pop_front();
                let Some(header) = released else { break };
                free(header);
            }
        }
        while let Some(header) = self.dead.pop_front().or_else(|| self.dead_pools.pop_front()) {
            free(header);
        }
        khw::flush_checker::freeing(false);
    }
}

/// The CPU that may be using an object without holding a reference from a look-up.
fn cpu_of(header: &'static Header) -> Option<u16> {
    match header.kind {
        ObjectType::Ec => Some(as_object::<Ec>(header).cpu),
        ObjectType::Sc => Some(as_object::<Sc>(header).owner.cpu),
        ObjectType::Vcpu => Some(as_object::<Vcpu>(header).cpu),
        _ => None,
    }
}

/// Lets go of objects of this CPU that are being destroyed.
pub fn let_go(local: &'static Local) {
    trace::follow(local);
    loop {
        let doomed = local.queues.lock().doomed.pop_front();
        let Some(header) = doomed else { return };
        match header.kind {
            ObjectType::Ec => let_go_of_ec(local, as_object::<Ec>(header)),
            ObjectType::Sc => {
                let sc = as_object::<Sc>(header);
                ipc::withdraw(sc);
                if local.sc.get().is_some_and(|current| core::ptr::eq(current, sc)) {
                    local.sc.set(None);
                    local.attention.add(Attention::SWITCH);
                    // Whom it helped goes on with what it has.
                    let running = local.ec.get().and_then(|ec| ec.sc.get());
                    if running.is_none() {
                        local.ec.set(None);
                    }
                }
            }
            ObjectType::Vcpu => {
                let vcpu = as_object::<Vcpu>(header);
                if let Some(ec) = vcpu.runner.get() {
                    vcpu.detach(ec, Status::Aborted);
                    sched::wake(ec, WaitResult::Failed(Status::Aborted));
                }
                vcpu.clear_hardware();
            }
            _ => {}
        }
        local.queues.lock().released.push_back(header);
    }
}

fn let_go_of_ec(local: &'static Local, ec: &'static Ec) {
    ipc::abandon(ec);
    ec.state.set(State::Dead);
    if let Some(sc) = ec.sc.take() {
        sched::retire(sc);
    }
    if local.ec.get().is_some_and(|current| core::ptr::eq(current, ec)) {
        local.ec.set(None);
    }
    if local.active.get().is_some_and(|active| core::ptr::eq(active, ec)) {
        local.active.set(None);
    }
}

/// Frees the memory of an object nothing refers to.
fn free(header: &'static Header) {
    let Some(pool) = header.pool else { return };
    // SAFETY: for all arms: the object is out of the tree and of all lists, its CPU let go of it, and a grace period has
    // passed. Frames are given back to the pool they came from.
    unsafe {
        match header.kind {
            ObjectType::Pool => {
                let own = as_object::<Pool>(header);
                own.dissolve();
                pool.free_object(own);
            }
            ObjectType::Pd => free_pd(pool, as_object::<Pd>(header)),
            ObjectType::Ec => pool.free_object(as_object::<Ec>(header)),
            ObjectType::Sc => pool.free_object(as_object::<Sc>(header)),
            ObjectType::Pt => pool.free_object(as_object::<Portal>(header)),
            ObjectType::Sm | ObjectType::Ntfn => pool.free_object(as_object::<Signal>(header)),
            ObjectType::GuestSpace => {
                let space = as_object::<GuestSpace>(header);
                let mut tables = Tables::new(space.pool);
                nested::destroy(&mut tables, space.root);
                space.pool.give_frame(space.root);
                match space.doorbells.load(Ordering::Relaxed) {
                    0 => {}
                    frame => space.pool.give_frame(PhysAddr(frame)),
                }
                pool.free_object(space);
            }
            ObjectType::Vcpu => {
                let vcpu = as_object::<Vcpu>(header);
                for &frame in vcpu.frames.iter().chain([&vcpu.fpu_area]) {
                    vcpu.pool.give_frame(frame);
                }
                pool.free_object(vcpu);
            }
            _ => {}
        }
    }
}

/// # Safety
/// As the arms of [`free`].
unsafe fn free_pd(pool: &'static Pool, pd: &'static Pd) {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut tables = Tables::new(pd.pool);
        while !paging::destroy::<HostFormat, _>(&mut tables, pd.root, true, usize::MAX) {}
        for table in pd.tables() {
            pd.pool.give_frame(table);
        }
        pd.pool.give_frame(pd.root);
        pd.pool.give_frame(pd.directory);
        for frame in pd.io_frames().into_iter().flatten() {
            pd.pool.give_frame(frame);
        }
        pool.free_object(pd);
    }
}

/// The object that a slot's capability names, if it is one.
fn object_of(slot: &Slot) -> Option<&'static Header> {
    // SAFETY: slots of kinds below 16 hold the address of a live object.
    (slot.kind != 0 && slot.kind < ObjectType::Memory as u8)
        .then(|| unsafe { &*(slot.object as *const Header) })
}

fn as_object<T>(header: &'static Header) -> &'static T {
    // SAFETY: the callers matched `header.kind`; the header is the first field of every object.
    unsafe { &*(header as *const Header).cast() }
}

fn as_pool(header: &'static Header) -> Option<&'static Pool> {
    (header.kind == ObjectType::Pool).then(|| as_object::<Pool>(header))
}

/// The first pool below `pool` whose first object is no pool with objects: so that pools end inside out.
fn deepest(mut pool: &'static Pool) -> &'static Pool {
    while let Some(inner) = pool.objects.first().and_then(as_pool).filter(|inner| !inner.objects.is_empty()) {
        pool = inner;
    }
    pool
}
