//! Page tables of devices, in the format of the machine's IOMMU.

use super::IOMMU;
use crate::mem::{FrameSource, Tables, phys_to_virt};
use kcore::addr::PhysAddr;
use kcore::boot::iommu::Architecture;
use kcore::iommu::Space;
use kcore::paging::{
    self, Attr, EptFormat, MapDone, NptFormat, PageSize, Partial, PtFormat, PtMemory, Unmapped,
};

/// Bytes in a cache line of every CPU that there is.
const LINE: u64 = 64;

/// Writes the cache lines of some memory back: not every IOMMU looks into the caches of CPUs.
///
/// # Safety
/// The memory is in the direct map.
pub(super) unsafe fn write_back(addr: PhysAddr, bytes: u64) {
    for line in (0..bytes).step_by(LINE as usize) {
        // SAFETY: CLFLUSH reads at most, and the caller says that the memory is mapped. Ordered with stores to the line; what
        // tells the unit is an uncached store, which comes after all of them (SDM 2A, CLFLUSH).
        unsafe {
            core::arch::asm!("clflush [{}]", in(reg) phys_to_virt(addr.offset(line)), options(nostack, preserves_flags));
        }
    }
}

/// Tables whose every change is written back.
struct WrittenBack<A>(Tables<A>);

impl<A: FrameSource> PtMemory for WrittenBack<A> {
    fn read(&self, table: PhysAddr, index: usize) -> u64 {
        self.0.read(table, index)
    }

    fn write(&mut self, table: PhysAddr, index: usize, entry: u64) {
        self.0.write(table, index, entry);
        // SAFETY: the tables are in the direct map.
        unsafe { write_back(table.offset(index as u64 * 8), 8) };
    }

    fn clear(&mut self, table: PhysAddr, index: usize, bits: u64) -> u64 {
        self.0.clear(table, index, bits)
    }

    fn alloc_table(&mut self) -> Option<PhysAddr> {
        let table = self.0.alloc_table()?;
        // SAFETY: the frame is in the direct map.
        unsafe { write_back(table, 4096) };
        Some(table)
    }

    fn free_table(&mut self, table: PhysAddr) {
        self.0.free_table(table);
    }
}

fn is_vtd() -> bool {
    IOMMU.lock().as_ref().is_some_and(|iommu| iommu.architecture == Architecture::Vtd)
}

/// Makes `table` the first below `root`: two zeroed frames become the tables of a space. Where units walk three levels, they begin
/// at the second.
///
/// # Safety
/// The frames are the caller's, in the direct map.
pub unsafe fn prepare(root: PhysAddr, table: PhysAddr) {
    let entry = if is_vtd() { EptFormat::table(table, 4) } else { NptFormat::table(table, 4) };
    // SAFETY: by the contract of this function.
    unsafe {
        write_back(table, 4096);
        Tables::new(()).write(root, 0, entry);
        write_back(root, 4096);
    }
}

/// The space as it is told to the units.
pub(super) fn as_hardware_walks(space: Space, levels: usize) -> Space {
    if levels == 4 {
        return space;
    }
    // SAFETY: only reads the root, a frame of the space.
    let entry = unsafe { Tables::new(()) }.read(space.root, 0);
    Space { root: EptFormat::addr(entry, 4), ..space }
}

/// As the function of the same name above.
pub(super) unsafe fn map<A: FrameSource>(
    frames: A,
    root: PhysAddr,
    address: u64,
    pa: PhysAddr,
    pages: u64,
    attr: Attr,
    limit: usize,
) -> Result<MapDone, Partial> {
    let largest = IOMMU.lock().as_ref().map_or(PageSize::K4, |iommu| iommu.shared.limits.largest);
    // SAFETY: by the contract of this function.
    let mut tables = unsafe { Tables::new(frames) };
    if is_vtd() {
        // Bits of EPT's that VT-d has not are clear: no memory type, no execution (VT-d 9.8).
        let attr = Attr { execute: false, uncached: true, ..attr };
        let mut tables = WrittenBack(tables);
        paging::map_bounded::<EptFormat, _>(&mut tables, root, address, pa, pages, attr, largest, limit)
    } else {
        // Bit 63 is NX of the CPU's only.
        let attr = Attr { execute: true, uncached: false, ..attr };
        paging::map_bounded::<NptFormat, _>(&mut tables, root, address, pa, pages, attr, largest, limit)
    }
}

/// As the function of the same name above.
pub(super) unsafe fn unmap<A: FrameSource>(
    frames: A,
    root: PhysAddr,
    address: u64,
    pages: u64,
    frame: PhysAddr,
    budget: &mut usize,
) -> Result<Unmapped, Partial> {
    // SAFETY: by the contract of this function.
    let mut tables = unsafe { Tables::new(frames) };
    if is_vtd() {
        paging::unmap::<EptFormat, _>(&mut WrittenBack(tables), root, address, pages, frame, budget)
    } else {
        paging::unmap::<NptFormat, _>(&mut tables, root, address, pages, frame, budget)
    }
}

/// Frees tables below `root`, of a space that no device has any more, with `budget` visits to entries; true if none is left.
///
/// # Safety
/// As [`Tables::new`].
pub unsafe fn release<A: FrameSource>(frames: A, root: PhysAddr, budget: &mut usize) -> bool {
    // SAFETY: by the contract of this function.
    let mut tables = unsafe { Tables::new(frames) };
    if is_vtd() {
        paging::destroy::<EptFormat, _>(&mut tables, root, false, budget)
    } else {
        paging::destroy::<NptFormat, _>(&mut tables, root, false, budget)
    }
}
