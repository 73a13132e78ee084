//! Which pages are free: pure bookkeeping.

use alloc::vec::Vec;
use usys::range::RangeSet;

/// Pages of one region that are in use.
#[derive(Debug, PartialEq, Eq)]
pub struct Extent {
    /// Index of the region, in the order in which they were added.
    pub region: usize,
    /// First page in the region.
    pub offset: u64,
    /// Pages.
    pub pages: u64,
}

#[derive(Clone, Debug)]
struct Region {
    /// Physical page number of its first page: alignment is physical.
    first: u64,
    free: RangeSet,
}

/// The free pages of the machine.
#[derive(Clone, Debug, Default)]
pub struct PageAllocator {
    regions: Vec<Region>,
}

impl PageAllocator {
    /// No pages.
    pub const fn new() -> Self {
        PageAllocator { regions: Vec::new() }
    }

    /// Adds a region of `pages` free pages whose first has the physical page number `first`.
    pub fn add_region(&mut self, first: u64, pages: u64) {
        let mut free = RangeSet::new();
        free.put(first, pages);
        self.regions.push(Region { first, free });
    }

    /// Takes `pages` pages (at least 1) in one piece whose physical address is a multiple of `align` pages.
    pub fn take(&mut self, pages: u64, align: u64) -> Option<Extent> {
        self.regions.iter_mut().enumerate().find_map(|(region, entry)| {
            let page = entry.free.take(pages, align)?;
            Some(Extent { region, offset: page - entry.first, pages })
        })
    }

    /// Takes exactly these pages out, before anything else was taken from them.
    pub fn exclude(&mut self, region: usize, offset: u64, pages: u64) {
        let Some(entry) = self.regions.get_mut(region) else {
            return;
        };
        let total = entry.free.len();
        let mut rest = RangeSet::new();
        rest.put(entry.first, offset.min(total));
        let end = offset.saturating_add(pages).min(total);
        rest.put(entry.first + end, total - end);
        entry.free = rest;
    }

    /// Gives pages back.
    pub fn put(&mut self, extent: Extent) {
        if let Some(entry) = self.regions.get_mut(extent.region) {
            entry.free.put(entry.first + extent.offset, extent.pages);
        }
    }

    /// Physical page number of the first page of these.
    pub fn first_page(&self, extent: &Extent) -> u64 {
        self.regions.get(extent.region).map_or(0, |region| region.first + extent.offset)
    }

    /// Free pages.
    pub fn free_pages(&self) -> u64 {
        self.regions.iter().map(|region| region.free.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superpages_are_aligned_by_physical_address() {
        let mut allocator = PageAllocator::new();
        allocator.add_region(0x123, 2000);
        let extent = allocator.take(512, 512).unwrap();
        assert_eq!((0x123 + extent.offset) % 512, 0);
        assert_eq!(allocator.first_page(&extent), 0x123 + extent.offset);
        assert_eq!(allocator.free_pages(), 2000 - 512);
    }

    #[test]
    fn memory_of_a_dead_process_is_used_again() {
        let mut allocator = PageAllocator::new();
        allocator.add_region(0, 100);
        let first = allocator.take(60, 1).unwrap();
        assert_eq!(allocator.take(60, 1), None);
        allocator.put(first);
        assert!(allocator.take(100, 1).is_some());
    }

    #[test]
    fn excluded_pages_are_never_handed_out() {
        let mut allocator = PageAllocator::new();
        allocator.add_region(10, 100);
        allocator.exclude(0, 90, 10);
        assert_eq!(allocator.free_pages(), 90);
        assert_eq!(allocator.take(91, 1), None);
        assert_eq!(allocator.take(90, 1).map(|extent| extent.offset), Some(0));
    }

    #[test]
    fn a_second_region_serves_what_the_first_cannot() {
        let mut allocator = PageAllocator::new();
        allocator.add_region(0, 10);
        allocator.add_region(0x10_0000, 1000);
        let extent = allocator.take(512, 512).unwrap();
        assert_eq!((extent.region, extent.offset), (1, 0));
    }
}
