//! Free memory, and taking it back.

use crate::error::StartError;
use crate::frames::{Extent, PageAllocator};
use alloc::vec::Vec;
use usys::abi::boot_info::{BootInfo, MAX_REGIONS, RegionKind};
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Memory, Narrow};
use usys::memory::Mapping;
use usys::selector;
use usys::start::RootHeap;

/// Pages that are mapped at a time to zero memory: 16 MiB.
const SCRUB_PAGES: u64 = 4096;

/// Pages in use, with the capability that everything about them is derived from.
#[derive(Debug)]
pub struct Allocation {
    extent: Extent,
    /// Physical address of its first page.
    address: u64,
    memory: Cap<Memory>,
}

impl Allocation {
    /// The capability.
    pub fn memory(&self) -> Cap<Memory> {
        self.memory
    }

    /// Pages.
    pub fn pages(&self) -> u64 {
        self.extent.pages
    }

    /// Physical address of its first page; the others follow.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// The machine's free memory.
#[derive(Debug)]
pub struct FreeMemory {
    allocator: PageAllocator,
    /// Capabilities of the regions, by the allocator's index.
    regions: Vec<Cap<Memory>>,
}

impl FreeMemory {
    /// The free regions of the machine, without this process's heap.
    pub fn new(info: &BootInfo) -> Self {
        let mut memory = FreeMemory { allocator: PageAllocator::new(), regions: Vec::new() };
        let heap = RootHeap::choose(info);
        let regions = &info.regions[..(info.region_count as usize).min(MAX_REGIONS)];
        let free = regions.iter().enumerate().filter(|(_, region)| region.kind == RegionKind::Free as u32);
        for (index, region) in free {
            memory.allocator.add_region(region.base / PAGE_SIZE, region.pages);
            if let Some(heap) = heap.filter(|heap| heap.region == index) {
                memory.allocator.exclude(memory.regions.len(), heap.offset, heap.pages);
            }
            memory.regions.push(Cap::new(Selector(region.selector)));
        }
        memory
    }

    /// Takes `pages` zeroed pages in one piece whose physical address is a multiple of `align` pages.
    ///
    /// Pages that no process had yet are zeroed too: what was there at boot may be left of any VM's modules.
    pub fn allocate(&mut self, pages: u64, align: u64) -> Result<Allocation, StartError> {
        let extent = self.allocator.take(pages, align).ok_or(StartError::Memory { pages })?;
        let range = Narrow::rights(Rights::ALL).range(extent.offset, extent.pages);
        let region = self.regions[extent.region];
        let memory = selector::allocate()
            .and_then(|to| region.derive(to, range).inspect_err(|_| selector::release(to)));
        let memory = match memory {
            Ok(memory) => memory,
            Err(error) => {
                self.allocator.put(extent);
                return Err(error.into());
            }
        };
        let address = self.allocator.first_page(&extent) * PAGE_SIZE;
        let allocation = Allocation { extent, address, memory };
        if let Err(error) = zero(&allocation) {
            self.free(allocation);
            return Err(error);
        }
        Ok(allocation)
    }

    /// Ends every use of the pages, in every process, and makes them free.
    pub fn free(&mut self, allocation: Allocation) {
        if let Err(error) = allocation.memory.delete() {
            // Somebody may still use them: they are lost rather than shared.
            log::error!("{} pages cannot be taken back: {error}", allocation.extent.pages);
            return;
        }
        selector::release(allocation.memory.selector());
        self.allocator.put(allocation.extent);
    }

    /// Free pages.
    pub fn free_pages(&self) -> u64 {
        self.allocator.free_pages()
    }
}

fn zero(allocation: &Allocation) -> Result<(), StartError> {
    let mut offset = 0;
    while offset < allocation.pages() {
        let pages = SCRUB_PAGES.min(allocation.pages() - offset);
        let mapping = Mapping::new(allocation.memory, offset, pages, true)?;
        mapping.window().zero(0, mapping.window().len())?;
        offset += pages;
    }
    Ok(())
}
