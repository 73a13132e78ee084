//! Capabilities: slots in object spaces, one derivation tree, one lock for changing either.
//!
//! A slot is named by the physical address of its 64 bytes, shifted right by six. Looking a selector up takes no lock: a slot
//! that is emptied is reused only after a grace period, and what a look-up returns is used within one kernel entry.

use crate::object::dma_space::DmaSpace;
use crate::object::guest_space::GuestSpace;
use crate::object::pd::Pd;
use crate::object::signal::Signal;
use crate::object::vcpu::Vcpu;
use crate::object::{Header, Object};
use crate::reclaim::Reclaim;
use crate::trace::Ring;
use core::cell::Cell;
use core::sync::atomic::{Ordering, fence};
use hypercall_abi::{ObjectType, Rights, Selector, Status};
use kcore::addr::PhysAddr;
use kcore::cap::{Slot, Slots, space, tree};
use khw::mem::phys_to_virt;
use khw::sync::{Guard, Lock};

/// Shift from a slot's physical address to its number.
const SLOT_SHIFT: u32 = 6;

/// The right to change slots: what the tree lock guards.
#[derive(Debug)]
pub struct Tree {
    /// What is on its way out.
    pub reclaim: Reclaim,
}

static TREE: Lock<Tree> = Lock::new(Tree { reclaim: Reclaim::new() });

/// Bit of [`Slot::state`]: what is derived from the slot is being revoked, so nothing may be derived.
pub const REVOKING: u8 = 1;
/// Bit of [`Slot::state`]: the object, whose first capability it is, is ending.
pub const DOOMED: u8 = 2;

/// How often a CPU tries to take the tree lock before it lets interrupts in and tries again.
const LOCK_ATTEMPTS: usize = 256;

/// The call must start again: another CPU holds the tree lock, and may be waiting for this one.
#[derive(Clone, Copy, Debug)]
pub struct Restart;

/// Takes the tree lock, or says that this CPU must serve requests and interrupts first.
pub fn lock_tree() -> Result<Guard<'static, Tree>, Restart> {
    for _ in 0..LOCK_ATTEMPTS {
        if let Some(guard) = TREE.try_lock() {
            khw::flush_checker::begin();
            return Ok(guard);
        }
        if khw::smp::has_request() {
            break;
        }
        core::hint::spin_loop();
    }
    Err(Restart)
}

impl Slots for Tree {
    fn slot(&self, id: u32) -> &Slot {
        // SAFETY: ids come from `slot_id` of slots in tables that live at least as long as a capability is in them; the
        // tree lock is held.
        unsafe { &*slot_ptr(id) }
    }

    fn slot_mut(&mut self, id: u32) -> &mut Slot {
        // SAFETY: as in `slot`. Look-ups on other CPUs read words of the slot at the same time; they cope with any
        // mixture of a slot's old and new words, since memory behind either is still there.
        unsafe { &mut *slot_ptr(id) }
    }
}

fn slot_ptr(id: u32) -> *mut Slot {
    phys_to_virt(PhysAddr((id as u64) << SLOT_SHIFT)).cast()
}

/// What a look-up found: a copy of the words that matter.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its type.
    pub kind: ObjectType,
    /// What it allows.
    pub rights: Rights,
    /// Address of the object, or first unit of the range.
    pub object: u64,
    /// Length of the range, or badge of the notification.
    pub count: u64,
    /// The slot.
    pub slot: u32,
}

impl Found {
    /// The object, if it is a `T` and the capability has `rights`.
    pub fn cast<T: Object>(&self, rights: Rights) -> Result<&'static T, Status> {
        if self.kind != T::KIND {
            return Err(Status::BadType);
        }
        self.demand(rights)?;
        // SAFETY: a slot of this kind holds the address of a live `T` (or one whose grace period is not over).
        Ok(unsafe { &*(self.object as *const T) })
    }

    /// The semaphore or notification, if it is one and the capability has `rights`.
    pub fn signal(&self, rights: Rights) -> Result<&'static Signal, Status> {
        if !matches!(self.kind, ObjectType::Sm | ObjectType::Ntfn) {
            return Err(Status::BadType);
        }
        self.demand(rights)?;
        // SAFETY: as in `cast`; both kinds are `Signal`.
        Ok(unsafe { &*(self.object as *const Signal) })
    }

    /// Signals the semaphore or notification, or raises the interrupt of a vCPU, that the capability is for.
    #[inline]
    pub fn raise(&self) -> Result<(), Status> {
        if self.kind == ObjectType::Vcpu {
            return self.cast::<Vcpu>(Rights::VCPU_INTERRUPT)?.raise(self.count);
        }
        self.signal(Rights::SIGNAL)?.signal(self.count);
        Ok(())
    }

    /// Type and rights, first unit of a range or 0, length of a range or badge: what `CapInfo` says.
    pub fn describe(&self) -> [u64; 3] {
        let is_range = self.kind as u8 >= ObjectType::Memory as u8 && self.kind != ObjectType::Log;
        // Kernel addresses are nobody's business.
        let first = if is_range { self.object } else { 0 };
        [self.kind as u64 | (self.rights.bits() as u64) << 16, first, self.count]
    }

    /// Checks the type and rights of a range.
    pub fn range(&self, kind: ObjectType, rights: Rights) -> Result<(), Status> {
        if self.kind != kind { Err(Status::BadType) } else { self.demand(rights) }
    }

    /// The frame of a page of a memory capability, for the kernel to use.
    pub fn ram_page(&self, rights: Rights, page: u64) -> Result<PhysAddr, Status> {
        self.range(ObjectType::Memory, rights)?;
        if page >= self.count || !crate::boot::memory::is_ram(self.object + page) {
            return Err(Status::BadArgument);
        }
        Ok(PhysAddr((self.object + page) << 12))
    }

    fn demand(&self, rights: Rights) -> Result<(), Status> {
        if self.rights.contains(rights) { Ok(()) } else { Err(Status::BadRights) }
    }
}

impl Pd {
    fn table(&self, selector: Selector) -> Option<(u64, usize)> {
        let (directory_index, slot_index) = space::split(selector)?;
        // SAFETY: the directory is a frame of this domain; the index is below 512.
        let table =
            unsafe { phys_to_virt(self.directory).cast::<u64>().add(directory_index).read_volatile() };
        Some((table, slot_index))
    }

    /// Address of the slot at a selector.
    #[inline]
    fn slot_at(&self, selector: Selector) -> Result<u64, Status> {
        match self.table(selector) {
            None | Some((0, _)) => Err(Status::BadSelector),
            Some((table, index)) => Ok(table + index as u64 * 64),
        }
    }

    /// The slot at a selector, whatever is in it.
    pub fn slot(&self, selector: Selector) -> Result<u32, Status> {
        Ok((self.slot_at(selector)? >> SLOT_SHIFT) as u32)
    }

    /// The object at a selector, if it is a `T` and the capability has `rights`: what [`Self::look_up`] and [`Found::cast`]
    /// come to, without what they find out beside.
    #[inline]
    pub fn find<T: Object>(&self, selector: Selector, rights: Rights) -> Result<&'static T, Status> {
        let slot: *const Slot = phys_to_virt(PhysAddr(self.slot_at(selector)?)).cast();
        // SAFETY: the table is a frame of this domain; each word is read once.
        let (kind, held, object) = unsafe {
            (
                (&raw const (*slot).kind).read_volatile(),
                (&raw const (*slot).rights).read_volatile(),
                (&raw const (*slot).object).read_volatile(),
            )
        };
        if kind != T::KIND as u8 || held & rights.bits() != rights.bits() {
            return self.look_up(selector)?.cast(rights);
        }
        // SAFETY: as in `cast`.
        Ok(unsafe { &*(object as *const T) })
    }

    /// Looks a selector up.
    #[inline]
    pub fn look_up(&self, selector: Selector) -> Result<Found, Status> {
        let addr = self.slot_at(selector)?;
        let slot: *const Slot = phys_to_virt(PhysAddr(addr)).cast();
        // SAFETY: the table is a frame of this domain; each word is read once.
        let (kind, rights, object, count) = unsafe {
            (
                (&raw const (*slot).kind).read_volatile(),
                (&raw const (*slot).rights).read_volatile(),
                (&raw const (*slot).object).read_volatile(),
                (&raw const (*slot).count).read_volatile(),
            )
        };
        match ObjectType::from_raw(kind) {
            None | Some(ObjectType::Null) => Err(Status::BadSelector),
            Some(kind) => Ok(Found {
                kind,
                rights: Rights::from_bits_retain(rights),
                object,
                count,
                slot: (addr >> SLOT_SHIFT) as u32,
            }),
        }
    }

    /// An empty slot at `selector`, with its table allocated. Under the tree lock.
    pub fn empty_slot(&self, tree: &Tree, selector: Selector) -> Result<u32, Status> {
        let (mut table, index) = self.table(selector).ok_or(Status::BadArgument)?;
        if selector == Selector::NULL {
            return Err(Status::BadArgument);
        }
        if table == 0 {
            table = self.pool.take_frame().ok_or(Status::NoMemory)?.0;
            let (directory_index, _) = space::split(selector).ok_or(Status::BadArgument)?;
            // SAFETY: as in `table`; the tree lock is held.
            unsafe { phys_to_virt(self.directory).cast::<u64>().add(directory_index).write_volatile(table) };
        }
        let id = ((table + index as u64 * 64) >> SLOT_SHIFT) as u32;
        if tree.slot(id).kind != ObjectType::Null as u8 { Err(Status::Occupied) } else { Ok(id) }
    }

    /// The first slot table there is from index `first` on, for the end of the domain.
    pub fn table_from(&self, first: usize) -> Option<(usize, PhysAddr)> {
        (first..512).find_map(|index| {
            // SAFETY: the directory is a frame of this domain, the index below 512.
            let table = unsafe { phys_to_virt(self.directory).cast::<u64>().add(index).read_volatile() };
            (table != 0).then_some((index, PhysAddr(table)))
        })
    }
}

/// Numbers of the slots in a table.
pub fn slots_of(table: PhysAddr) -> impl Iterator<Item = u32> {
    (0..64).map(move |index| ((table.0 + index * 64) >> SLOT_SHIFT) as u32)
}

/// Empties a slot that is out of the tree. A look-up on another CPU sees the old words or an empty slot: what it may read after the kind
/// stays until the slot is filled again, after a grace period.
pub fn empty(tree: &mut Tree, slot: u32) {
    // SAFETY: as in `Tree::slot_mut`; the kind goes first, so that what follows is not taken for the capability.
    unsafe { (&raw mut (*slot_ptr(slot)).kind).write_volatile(0) };
    fence(Ordering::Release);
    let entry = tree.slot_mut(slot);
    *entry = Slot { rights: entry.rights, object: entry.object, count: entry.count, ..Slot::EMPTY };
}

/// Fills an empty slot. The kind goes last, so that a look-up on another CPU sees all of the capability or none.
fn fill(tree: &mut Tree, slot: u32, kind: u8, rights: Rights, (object, count): (u64, u64)) {
    let entry = tree.slot_mut(slot);
    entry.rights = rights.bits();
    entry.object = object;
    entry.count = count;
    fence(Ordering::Release);
    // SAFETY: as in `Tree::slot_mut`.
    unsafe { (&raw mut (*slot_ptr(slot)).kind).write_volatile(kind) };
}

/// Puts the first capability of a new object into an empty slot.
pub fn insert_object(tree: &mut Tree, slot: u32, header: &'static Header) {
    fill(tree, slot, header.kind as u8, Rights::ALL, (header as *const Header as u64, 0));
    header.root_slot.set(slot);
    if let Some(pool) = header.pool {
        pool.objects.push_back(header);
    }
}

/// Puts a range that descends from nothing into an empty slot: at boot.
pub fn insert_range(tree: &mut Tree, slot: u32, kind: ObjectType, rights: Rights, first: u64, count: u64) {
    fill(tree, slot, kind as u8, rights, (first, count));
}

/// Derives a capability into an empty slot; fails if the derivation would be too deep, or an ancestor is being revoked.
pub fn insert_derived(
    tree: &mut Tree,
    parent: u32,
    slot: u32,
    rights: Rights,
    named: (u64, u64),
) -> Result<(), Status> {
    let mut ancestor = parent;
    while ancestor != 0 {
        if tree.slot(ancestor).state & REVOKING != 0 {
            return Err(Status::Aborted);
        }
        ancestor = tree.slot(ancestor).parent;
    }
    let kind = tree.slot(parent).kind;
    tree::insert_child(tree, parent, slot).map_err(|_| Status::Unsupported)?;
    fill(tree, slot, kind, rights, named);
    Ok(())
}

/// The slots that are mapped into one space: a list through the slots.
#[derive(Debug)]
pub struct BoundList {
    head: Cell<u32>,
    /// The slot that is being unmapped as a whole, and how many of its pages were; 0 for none.
    pub unmapping: Cell<(u32, u64)>,
}

impl BoundList {
    /// An empty list.
    pub const fn new() -> Self {
        BoundList { head: Cell::new(0), unmapping: Cell::new((0, 0)) }
    }

    /// The newest entry, 0 for none.
    pub fn first(&self) -> u32 {
        self.head.get()
    }

    /// Says that `slot` is bound to `target` from `address` on.
    pub fn bind(&self, tree: &mut Tree, slot: u32, target: u64, address: u64) {
        let head = self.head.get();
        if head != 0 {
            tree.slot_mut(head).bound_prev = slot;
        }
        let entry = tree.slot_mut(slot);
        entry.bound = target;
        entry.address = address;
        entry.bound_next = head;
        entry.bound_prev = 0;
        self.head.set(slot);
    }

    /// Takes it out again.
    pub fn unbind(&self, tree: &mut Tree, slot: u32) {
        if self.unmapping.get().0 == slot {
            self.unmapping.set((0, 0));
        }
        let entry = tree.slot_mut(slot);
        let (next, prev) = (entry.bound_next, entry.bound_prev);
        (entry.bound, entry.address, entry.bound_next, entry.bound_prev) = (0, 0, 0, 0);
        if prev != 0 {
            tree.slot_mut(prev).bound_next = next;
        } else {
            self.head.set(next);
        }
        if next != 0 {
            tree.slot_mut(next).bound_prev = prev;
        }
    }
}

impl Default for BoundList {
    fn default() -> Self {
        Self::new()
    }
}

/// What a capability is mapped into or bound to.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// A protection domain's address space or ports.
    Pd(&'static Pd),
    /// A guest-physical space.
    Guest(&'static GuestSpace),
    /// A DMA space.
    Dma(&'static DmaSpace),
    /// A DMA space, as a device in it.
    Device(&'static DmaSpace),
    /// A guest-physical space, as the signal of one of its doorbells.
    Doorbell(&'static GuestSpace),
    /// An execution context, as its message area.
    Utcb(&'static crate::object::ec::Ec),
    /// A vCPU, as its state page.
    VcpuPage(&'static Vcpu),
    /// A vCPU, as its virtual-APIC page.
    VirtualApic(&'static Vcpu),
    /// A vCPU, as the word that ends its interrupts.
    EoiWord(&'static Vcpu),
    /// A CPU, as the ring of its trace.
    Trace(&'static Ring),
}

impl Target {
    /// In the address of a slot that is bound to a vCPU: as its virtual-APIC page.
    pub const APIC: u64 = 1 << 63;
    /// The same, as the page with its word for EOI.
    pub const EOI: u64 = 1 << 62;

    /// The header of the object.
    pub fn header(self) -> &'static Header {
        match self {
            Target::Pd(pd) => pd.header(),
            Target::Guest(space) | Target::Doorbell(space) => space.header(),
            Target::Dma(space) | Target::Device(space) => space.header(),
            Target::Utcb(ec) => ec.header(),
            Target::VcpuPage(vcpu) | Target::VirtualApic(vcpu) | Target::EoiWord(vcpu) => vcpu.header(),
            Target::Trace(ring) => &ring.header,
        }
    }

    /// The target of a bound slot.
    pub fn of(slot: &Slot) -> Option<Target> {
        if slot.bound == 0 {
            return None;
        }
        // SAFETY: a bound slot holds the address of a live object: its end unbinds it first (`reclaim`).
        unsafe {
            let header = &*(slot.bound as *const Header);
            match header.kind {
                ObjectType::Pd => Some(Target::Pd(&*(slot.bound as *const Pd))),
                ObjectType::GuestSpace if slot.kind < ObjectType::Memory as u8 => {
                    Some(Target::Doorbell(&*(slot.bound as *const GuestSpace)))
                }
                ObjectType::GuestSpace => Some(Target::Guest(&*(slot.bound as *const GuestSpace))),
                ObjectType::DmaSpace if slot.kind == ObjectType::Devices as u8 => {
                    Some(Target::Device(&*(slot.bound as *const DmaSpace)))
                }
                ObjectType::DmaSpace => Some(Target::Dma(&*(slot.bound as *const DmaSpace))),
                ObjectType::Ec => Some(Target::Utcb(&*(slot.bound as *const crate::object::ec::Ec))),
                ObjectType::Vcpu if slot.address & Self::APIC != 0 => {
                    Some(Target::VirtualApic(&*(slot.bound as *const Vcpu)))
                }
                ObjectType::Vcpu if slot.address & Self::EOI != 0 => {
                    Some(Target::EoiWord(&*(slot.bound as *const Vcpu)))
                }
                ObjectType::Vcpu => Some(Target::VcpuPage(&*(slot.bound as *const Vcpu))),
                ObjectType::Trace => Some(Target::Trace(&*(slot.bound as *const Ring))),
                _ => None,
            }
        }
    }

    /// The list of the object's bound slots.
    pub fn bound_list(self) -> &'static BoundList {
        match self {
            Target::Pd(pd) => &pd.bound,
            Target::Guest(space) | Target::Doorbell(space) => &space.bound,
            Target::Dma(space) => &space.bound,
            Target::Device(space) => &space.devices,
            Target::Utcb(ec) => &ec.bound,
            Target::VcpuPage(vcpu) => &vcpu.bound,
            Target::VirtualApic(vcpu) => &vcpu.apic.bound,
            Target::EoiWord(vcpu) => &vcpu.apic.eoi_bound,
            Target::Trace(ring) => &ring.bound,
        }
    }
}
