//! The end of capabilities and objects.
//!
//! 1. Under the tree lock, capabilities are taken out of the tree leaf first; what a capability mapped is unmapped. The first
//!    capability of an object ends the object: it loses its rights, so that nobody can use it but to go on with its end, and goes
//!    itself when nothing depends on the object any more.
//! 2. Objects that other CPUs may be using are handed to those CPUs, which let go of them ([`let_go`]).
//! 3. After one grace period nothing refers to any of them, and their memory is freed.
//!
//! All of it is done in small steps, each of which leaves a consistent state. When a call has done its share it waits for the
//! grace period, frees what is dead, lets interrupts in, and starts again. What is dying is in a list for all calls: the last that
//! was begun is finished first, whoever works on it. So it matters neither how deep objects depend on each other nor whether the
//! thread that began survives.

mod free;
mod unmap;

pub use free::let_go;

use crate::cap::{self, BoundList, DOOMED, REVOKING, Tree, slots_of};
use crate::cpu;
use crate::object::dma_space::DmaSpace;
use crate::object::ec::Ec;
use crate::object::guest_space::GuestSpace;
use crate::object::pd::Pd;
use crate::object::pool::Pool;
use crate::object::portal::Portal;
use crate::object::sc::Sc;
use crate::object::signal::Signal;
use crate::object::vcpu::Vcpu;
use crate::object::{Header, InPool, List, interrupt};
use crate::{sched, trace};
use hypercall_abi::ObjectType;
use kcore::cap::{Slot, Slots, tree};
use kcore::paging::{self, HostFormat};
use khw::mem::Tables;
use khw::smp;
use khw::virt::nested;

/// What a call does before it lets interrupts in, in visits to page-table entries.
const STRETCH: usize = 128;

/// How often it does so before it lets go of the tree, if nobody more urgent becomes ready.
const SHARE: usize = 12;

/// What a step costs that deals with a capability, an object or a page table.
const STEP: usize = 32;

/// What is on its way out.
#[derive(Debug)]
pub struct Reclaim {
    /// Objects whose end has begun. Each waits for those before it.
    dying: List<Header, InPool>,
    /// Freed after the grace period.
    dead: List<Header, InPool>,
    /// Freed after all others, and after the pools that they paid for.
    dead_pools: List<Header, InPool>,
    /// Something was taken away that a CPU may still use.
    needs_grace: bool,
    /// A CPU was told to let go of something.
    has_doomed: bool,
    /// What is left until interrupts are let in.
    left: usize,
    /// How often they may be before the call's share is used up.
    stretches: usize,
    /// The last stamp of a slot.
    stamp: u16,
}

// SAFETY: the links of objects in the lists are used by whoever has the list, which is under the tree lock.
unsafe impl Send for Reclaim {}

impl Reclaim {
    /// Nothing.
    pub const fn new() -> Self {
        Reclaim {
            dying: List::new(),
            dead: List::new(),
            dead_pools: List::new(),
            needs_grace: false,
            has_doomed: false,
            left: 0,
            stretches: 0,
            stamp: 0,
        }
    }
}

impl Default for Reclaim {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// Revokes what is derived from `root`, and `root` itself if asked; then what that ended is freed. False if the call
    /// must start again, after interrupts were let in.
    pub fn revoke(&mut self, root: u32, with_root: bool) -> bool {
        self.begin();
        self.slot_mut(root).state |= REVOKING;
        let mut is_done = false;
        loop {
            if is_done {
                // For others. The slot is not to be looked at any more: its domain may be gone.
                let Some(header) = self.reclaim.dying.first() else { break };
                self.bury(header);
            } else {
                is_done = self.revoke_one(root, with_root);
            }
            if !self.may_go_on() {
                break;
            }
        }
        self.finish();
        is_done
    }

    /// What tells the capability in a slot, which is about to be revoked, from what is there later.
    pub fn stamp(&mut self, slot: u32) -> u16 {
        if self.slot(slot).stamp == 0 {
            self.reclaim.stamp = self.reclaim.stamp.wrapping_add(1).max(1);
            self.slot_mut(slot).stamp = self.reclaim.stamp;
        }
        self.slot(slot).stamp
    }

    /// Begins a call's share.
    pub fn begin(&mut self) {
        self.reclaim.left = STRETCH;
        self.reclaim.stretches = SHARE;
    }

    /// Between two steps: lets interrupts in if it is time. False if the call's share is used up, or somebody more urgent is ready.
    pub fn may_go_on(&mut self) -> bool {
        if self.reclaim.left > 0 {
            return true;
        }
        self.reclaim.left = STRETCH;
        self.reclaim.stretches = self.reclaim.stretches.saturating_sub(1);
        self.reclaim.stretches > 0 && sched::preemption_point(cpu::local())
    }

    fn spend(&mut self, cost: usize) {
        self.reclaim.left = self.reclaim.left.saturating_sub(cost);
    }

    /// One step; true if that was the last.
    fn revoke_one(&mut self, root: u32, with_root: bool) -> bool {
        if let Some(leaf) = tree::first_leaf_below(self, root) {
            self.remove(leaf);
        } else if with_root && self.slot(root).state & DOOMED == 0 {
            self.delete(root);
        } else if with_root && let Some(header) = self.reclaim.dying.first() {
            self.bury(header);
        }
        let slot = self.slot_mut(root);
        let is_done = slot.child == 0 && (!with_root || slot.is_empty());
        if is_done && slot.state & DOOMED == 0 {
            slot.state &= !REVOKING;
        }
        is_done
    }

    /// Deletes a capability that has no descendants, and begins the end of the object if it is its first one.
    fn delete(&mut self, slot: u32) {
        match root_object(slot, self.slot(slot)) {
            Some(header) => self.doom(header),
            None => self.remove(slot),
        }
    }

    /// Empties a slot without descendants: unmaps, unlinks. If there is a lot to unmap, this is a step of it.
    fn remove(&mut self, slot: u32) {
        self.spend(STEP);
        if !self.unmap(slot) {
            return;
        }
        let was_leaf = tree::remove_leaf(self, slot);
        debug_assert!(was_leaf, "a capability with descendants was removed");
        if self.slot(slot).kind == ObjectType::Irqs as u8 {
            interrupt::unbind_slot(slot);
        }
        cap::empty(self, slot);
        // Another CPU may be looking at the slot: it is reused after a grace period only.
        self.reclaim.needs_grace = true;
    }

    /// Whether the end of an object has begun.
    fn is_ending(&self, header: &Header) -> bool {
        let root = header.root_slot.get();
        root == 0 || self.slot(root).state & DOOMED != 0
    }

    /// Begins the end of an object, or brings it forward.
    fn doom(&mut self, header: &'static Header) {
        if self.is_ending(header) {
            self.reclaim.dying.remove(header);
        } else {
            let slot = self.slot_mut(header.root_slot.get());
            slot.state |= DOOMED | REVOKING;
            slot.rights = 0;
            if let Some(pool) = header.pool {
                pool.objects.remove(header);
                pool.ending.set(pool.ending.get() + 1);
            }
        }
        self.reclaim.dying.push_front(header);
    }

    /// One step to the end of a dying object, or the end itself when nothing depends on the object.
    fn bury(&mut self, header: &'static Header) {
        self.spend(STEP);
        let root = header.root_slot.get();
        if root != 0
            && let Some(leaf) = tree::first_leaf_below(self, root)
        {
            return self.remove(leaf);
        }
        if self.strip(header) {
            return;
        }
        self.reclaim.dying.remove(header);
        if root != 0 {
            self.remove(root);
            header.root_slot.set(0);
        }
        if let Some(pool) = header.pool {
            pool.ending.set(pool.ending.get() - 1);
        }
        self.reclaim.needs_grace = true;
        sever(header);
        match cpu_of(header) {
            Some(cpu) => {
                self.reclaim.has_doomed = true;
                cpu::of(cpu as usize).queues.lock().doomed.push_back(header);
            }
            None if header.kind == ObjectType::Pool => self.reclaim.dead_pools.push_back(header),
            None => self.reclaim.dead.push_back(header),
        }
    }

    /// Takes something away that depends on a dying object, or begins to. False if there is nothing.
    fn strip(&mut self, header: &'static Header) -> bool {
        match header.kind {
            ObjectType::Pool => self.strip_pool(as_object(header)),
            ObjectType::Pd => self.strip_pd(as_object(header)),
            ObjectType::GuestSpace => self.strip_guest_space(as_object(header)),
            ObjectType::DmaSpace => self.strip_dma_space(as_object(header)),
            ObjectType::Ec => {
                let ec = as_object::<Ec>(header);
                let portal = ec.portals.first().map(Portal::header);
                self.doom_any(portal.or(ec.own_sc.get().map(Sc::header))) || self.unbind_first(&ec.bound)
            }
            ObjectType::Vcpu => {
                let vcpu = as_object::<Vcpu>(header);
                self.unbind_first(&vcpu.bound) || self.unbind_first(&vcpu.apic.bound)
            }
            ObjectType::Sm | ObjectType::Ntfn => as_object::<Signal>(header).dismiss_one(),
            _ => false,
        }
    }

    fn doom_any(&mut self, header: Option<&'static Header>) -> bool {
        header.map(|header| self.doom(header)).is_some()
    }

    fn unbind_first(&mut self, list: &BoundList) -> bool {
        let slot = list.first();
        slot != 0 && {
            self.unmap(slot);
            true
        }
    }

    fn strip_pool(&mut self, pool: &'static Pool) -> bool {
        if pool.objects.is_empty() && pool.ending.get() > 0 {
            // What it paid for is dying already, behind it.
            self.reclaim.dying.remove(pool.header());
            self.reclaim.dying.push_back(pool.header());
            return true;
        }
        self.doom_any(pool.objects.first())
    }

    fn strip_pd(&mut self, pd: &'static Pd) -> bool {
        if self.doom_any(pd.ecs.first().map(Ec::header)) {
            return true;
        }
        if let Some((index, table)) = pd.table_from(pd.cleared.get()) {
            pd.cleared.set(index);
            match slots_of(table).find(|&slot| !self.slot(slot).is_empty()) {
                Some(slot) => self.clear(slot),
                None => pd.cleared.set(index + 1),
            }
            return true;
        }
        pd.cleared.set(kcore::cap::space::DIRECTORY_ENTRIES);
        self.forget_first(&pd.bound)
            || self.free_tables(|budget| {
                // SAFETY: the tables are the domain's, whose contexts were let go of before the grace period.
                let mut tables = unsafe { Tables::new(pd.pool) };
                paging::destroy::<HostFormat, _>(&mut tables, pd.root, true, budget)
            })
    }

    /// One step to an empty slot, in the object space of a dying domain.
    fn clear(&mut self, slot: u32) {
        if let Some(leaf) = tree::first_leaf_below(self, slot) {
            return self.remove(leaf);
        }
        match root_object(slot, self.slot(slot)) {
            // Objects may have each other's first capability: that of one that is dying can go before it.
            Some(header) if self.is_ending(header) => {
                header.root_slot.set(0);
                self.remove(slot);
            }
            _ => self.delete(slot),
        }
    }

    fn strip_guest_space(&mut self, space: &'static GuestSpace) -> bool {
        self.doom_any(space.vcpus.first().map(Vcpu::header))
            || self.forget_first(&space.bound)
            || self.free_tables(|budget| {
                // SAFETY: the tables are the space's, whose vCPUs were let go of before the grace period.
                let mut tables = unsafe { Tables::new(space.pool) };
                nested::destroy(&mut tables, space.root, budget)
            })
    }

    fn strip_dma_space(&mut self, space: &'static DmaSpace) -> bool {
        // Without devices nobody uses the tables.
        self.unbind_first(&space.devices)
            || self.forget_first(&space.bound)
            || self.free_tables(|budget| {
                // SAFETY: the tables are the space's, and no unit uses them: its devices were withdrawn.
                unsafe { khw::iommu::release(space.pool, space.space.root, budget) }
            })
    }

    /// Unbinds a slot from a space that nobody runs in: translations end with their tables.
    fn forget_first(&mut self, list: &BoundList) -> bool {
        let slot = list.first();
        slot != 0 && {
            list.unbind(self, slot);
            true
        }
    }

    /// Has `destroy` free as many page tables as this call may: true if some are left.
    fn free_tables(&mut self, destroy: impl FnOnce(&mut usize) -> bool) -> bool {
        // From here on nobody has them in a TLB.
        self.finish();
        khw::flush_checker::freeing(true);
        let is_done = destroy(&mut self.reclaim.left);
        khw::flush_checker::freeing(false);
        !is_done
    }

    /// Waits for a grace period if anything was taken away, and frees what is dead.
    pub fn finish(&mut self) {
        if !core::mem::take(&mut self.reclaim.needs_grace) {
            return;
        }
        trace::follow(cpu::local());
        let has_doomed = core::mem::take(&mut self.reclaim.has_doomed);
        if has_doomed {
            let_go(cpu::local());
        }
        smp::synchronize();
        if has_doomed {
            (0..smp::cpu_count()).for_each(free_released);
        }
        let Reclaim { dead, dead_pools, .. } = &self.reclaim;
        while let Some(header) = dead.pop_front().or_else(|| dead_pools.pop_front()) {
            free::free(header);
        }
    }
}

/// Frees what a CPU has let go of.
fn free_released(cpu: usize) {
    let pop = || cpu::of(cpu).queues.lock().released.pop_front();
    while let Some(header) = pop() {
        free::free(header);
    }
}

/// Takes an object, on which nothing depends any more, out of what it is part of.
fn sever(header: &'static Header) {
    match header.kind {
        ObjectType::Ec => {
            let ec = as_object::<Ec>(header);
            ec.pd.ecs.remove(ec);
            Signal::unwatch(ec);
        }
        ObjectType::Sc => {
            let sc = as_object::<Sc>(header);
            sc.owner.own_sc.set(None);
            sched::retire(sc);
        }
        ObjectType::Pt => {
            let portal = as_object::<Portal>(header);
            portal.handler.portals.remove(portal);
        }
        ObjectType::Sm | ObjectType::Ntfn => {
            let signal = as_object::<Signal>(header);
            interrupt::unbind_signal(signal);
            if let Some(vcpu) = signal.bound_vcpu() {
                vcpu.signal.set(None);
            }
            signal.bind_vcpu(None);
        }
        ObjectType::Vcpu => {
            let vcpu = as_object::<Vcpu>(header);
            vcpu.space.vcpus.remove(vcpu);
            if let Some(signal) = vcpu.signal.take() {
                signal.bind_vcpu(None);
            }
        }
        _ => {}
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

/// The object whose first capability is in the slot.
fn root_object(id: u32, slot: &Slot) -> Option<&'static Header> {
    if slot.kind == 0 || slot.kind >= ObjectType::Memory as u8 {
        return None;
    }
    // SAFETY: slots of these kinds hold the address of a live object.
    let header = unsafe { &*(slot.object as *const Header) };
    (header.root_slot.get() == id).then_some(header)
}

fn as_object<T>(header: &'static Header) -> &'static T {
    // SAFETY: the callers matched `header.kind`; the header is the first field of every object.
    unsafe { &*(header as *const Header).cast() }
}
