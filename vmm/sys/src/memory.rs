//! Mapping memory.
//!
//! A capability is mapped into one space at one linear position; for a second place a second capability is derived.
//! The memory that Rust owns (image, stack, heap) has no capability in the process itself; the root task, which
//! holds one for everything, derives from each frame once.

use crate::cap::{Cap, DmaSpace, GuestSpace, Memory, Narrow, Pd};
use crate::error::{Error, Result};
use crate::hypercall::{invoke, invoke_range};
use crate::lock::Mutex;
use crate::range::RangeSet;
use crate::window::Window;
use crate::{layout, process, selector};
use hypercall_abi::cap::MapFlags;
use hypercall_abi::{Hypercall, PAGE_SIZE, Rights, Selector, Status};

/// What memory can be mapped into.
pub trait AddressSpace: sealed::Sealed + Copy {
    /// Its selector.
    fn selector(self) -> Selector;
}

impl AddressSpace for Cap<Pd> {
    fn selector(self) -> Selector {
        Cap::selector(self)
    }
}

impl AddressSpace for Cap<GuestSpace> {
    fn selector(self) -> Selector {
        Cap::selector(self)
    }
}

impl AddressSpace for Cap<DmaSpace> {
    fn selector(self) -> Selector {
        Cap::selector(self)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::Cap<crate::cap::DmaSpace> {}
    impl Sealed for crate::Cap<crate::cap::Pd> {}
    impl Sealed for crate::Cap<crate::cap::GuestSpace> {}
}

impl Cap<Memory> {
    /// Maps `pages` pages from page `offset` of this capability at `address` of a space. Memory is never mapped over
    /// another mapping.
    pub fn map(
        self,
        space: impl AddressSpace,
        address: u64,
        offset: u64,
        pages: u64,
        flags: MapFlags,
    ) -> Result<()> {
        let space = space.selector().0.into();
        let step = |done: u64| {
            let rest = pages - done.min(pages);
            [space, address + done * PAGE_SIZE, offset + done, rest, flags.bits().into(), 0]
        };
        // SAFETY: the kernel maps only where nothing is mapped, hence where no reference points.
        unsafe { invoke_range(Hypercall::Map, self.selector(), step) }
    }

    /// Ends what all `pages` pages of this capability are mapped into or bound to.
    pub fn unmap(self, pages: u64) -> Result<()> {
        // SAFETY: mappings only go away: an access afterwards faults and ends this process.
        unsafe { invoke(Hypercall::Unmap, self.selector(), [0, pages, 0, 0, 0, 0]) }.map(drop)
    }
}

/// What [`Cap::collect_dirty`] reports on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyUnit {
    /// Up to 192 pages of 4 KiB.
    Page = 0,
    /// Up to 8 pages of 2 MiB.
    LargePage = 9,
}

impl Cap<GuestSpace> {
    /// Which of `count` units from guest-physical `address` on, a multiple of the unit, the guest wrote since this was last asked:
    /// a bit for each, from bit 0 of the first word on (SPEC.md 4.5).
    pub fn collect_dirty(self, address: u64, count: u64, unit: DirtyUnit) -> Result<[u64; 3]> {
        let arguments = [address, count, unit as u64, 0, 0, 0];
        // SAFETY: changes flags in nested page tables alone.
        unsafe { invoke(Hypercall::CollectDirty, self.selector(), arguments) }
    }
}

/// Most pages of a guest's memory.
const MAX_GUEST_PAGES: u64 = (layout::GUEST_MEMORY_END - layout::GUEST_MEMORY) / PAGE_SIZE;

/// Maps all `pages` pages of `memory`, which must be mapped nowhere else, as those from page `first` on of a guest's memory, which a
/// VMM has at [`layout::GUEST_MEMORY`].
pub fn map_guest_memory(memory: Cap<Memory>, first: u64, pages: u64) -> Result<()> {
    if first.checked_add(pages).is_none_or(|end| end > MAX_GUEST_PAGES) {
        return Err(Error { call: Hypercall::Map, status: Status::BadArgument });
    }
    let address = layout::GUEST_MEMORY + first * PAGE_SIZE;
    memory.map(process::pd(), address, 0, pages, MapFlags::READ | MapFlags::WRITE)
}

/// The first `pages` pages of a guest's memory, as far as they are mapped.
pub fn guest_memory(pages: u64) -> Window {
    let bytes = pages.min(MAX_GUEST_PAGES) * PAGE_SIZE;
    // SAFETY: these addresses are used for guest memory alone, no reference is made to them, and where nothing is mapped an
    // access faults.
    unsafe { Window::from_raw(layout::GUEST_MEMORY as *mut u8, bytes as usize) }
}

/// Free addresses for [`Mapping`]s.
static ADDRESSES: Mutex<RangeSet> = Mutex::new(RangeSet::new());

/// Makes the dynamic addresses available. Called once, before `main`.
pub(crate) fn init() {
    let pages = (layout::DYNAMIC_END - layout::DYNAMIC) / PAGE_SIZE;
    ADDRESSES.lock().put(layout::DYNAMIC / PAGE_SIZE, pages);
}

/// Takes addresses for `pages` pages, in a run whose first is a multiple of `align_pages` pages.
pub(crate) fn take_addresses(pages: u64, align_pages: u64) -> Result<u64> {
    let first = ADDRESSES.lock().take(pages, align_pages);
    first.map(|page| page * PAGE_SIZE).ok_or(Error { call: Hypercall::Map, status: Status::NoMemory })
}

/// Memory mapped into this process for as long as this value lives.
#[derive(Debug)]
pub struct Mapping {
    memory: Cap<Memory>,
    window: Window,
    address: u64,
    pages: u64,
}

impl Mapping {
    /// Maps `pages` pages (at least 1) from page `offset` of `source`, writable or not, through a capability of its own.
    pub fn new(source: Cap<Memory>, offset: u64, pages: u64, is_writable: bool) -> Result<Self> {
        let (rights, flags) = if is_writable {
            (Rights::READ | Rights::WRITE, MapFlags::READ | MapFlags::WRITE)
        } else {
            (Rights::READ, MapFlags::READ)
        };
        let address = take_addresses(pages, 1)?;
        // SAFETY: dynamic addresses are used for mappings alone; no reference is made to them.
        let window = unsafe { Window::from_raw(address as *mut u8, (pages * PAGE_SIZE) as usize) };
        let to = selector::allocate()?;
        // From here on dropping the value takes back what was done.
        let mapping = Mapping { memory: Cap::new(to), window, address, pages };
        source.derive(to, Narrow::rights(rights).range(offset, pages))?;
        mapping.memory.map(process::pd(), address, 0, pages, flags)?;
        Ok(mapping)
    }

    /// The mapped memory.
    pub fn window(&self) -> Window {
        self.window
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Fails only if the capability is gone already, together with its mapping.
        let _ = self.memory.delete();
        selector::release(self.memory.selector());
        ADDRESSES.lock().put(self.address / PAGE_SIZE, self.pages);
    }
}
