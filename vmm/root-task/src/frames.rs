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
    /// A process had them before: they hold its data.
    pub is_used: bool,
}

#[derive(Clone, Debug)]
struct Region {
    /// Physical page number of its first page: alignment is physical.
    first: u64,
    fresh: RangeSet,
    used: RangeSet,
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
        let mut fresh = RangeSet::new();
        fresh.put(first, pages);
        self.regions.push(Region {
            first,
            fresh,
            used: RangeSet::new(),
        });
    }

    /// Takes `pages` pages (at least 1) in one piece whose physical address is a multiple of `align` pages. Pages that no
    /// process had come first: they need no scrubbing.
    pub fn take(&mut self, pages: u64, align: u64) -> Option<Extent> {
        let take_from = |is_used: bool| {
            move |(region, entry): (usize, &mut Region)| {
                let set = if is_used {
                    &mut entry.used
                } else {
                    &mut entry.fresh
                };
                let page = set.take(pages, align)?;
                Some(Extent {
                    region,
                    offset: page - entry.first,
                    pages,
                    is_used,
                })
            }
        };
        self.regions
            .iter_mut()
            .enumerate()
            .find_map(take_from(false))
            .or_else(|| self.regions.iter_mut().enumerate().find_map(take_from(true)))
    }

    /// Takes exactly these pages out, before anything else was taken from them.
    pub fn exclude(&mut self, region: usize, offset: u64, pages: u64) {
        let Some(entry) = self.regions.get_mut(region) else {
            return;
        };
        let total = entry.fresh.len();
        let mut rest = RangeSet::new();
        rest.put(entry.first, offset.min(total));
        let end = offset.saturating_add(pages).min(total);
        rest.put(entry.first + end, total - end);
        entry.fresh = rest;
    }

    /// Gives pages back.
    pub fn put(&mut self, extent: Extent) {
        if let Some(entry) = self.regions.get_mut(extent.region) {
            entry.used.put(entry.first + extent.offset, extent.pages);
        }
    }

    /// Free pages.
    pub fn free_pages(&self) -> u64 {
        self.regions
            .iter()
            .map(|region| region.fresh.len() + region.used.len())
            .sum()
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
        assert_eq!(allocator.free_pages(), 2000 - 512);
    }

    #[test]
    fn memory_of_a_dead_process_is_used_again_and_known_as_used() {
        let mut allocator = PageAllocator::new();
        allocator.add_region(0, 100);
        let first = allocator.take(60, 1).unwrap();
        assert!(!first.is_used);
        assert_eq!(allocator.take(60, 1), None);
        allocator.put(first);
        let again = allocator.take(60, 1).unwrap();
        assert!(again.is_used);
        assert!(!allocator.take(40, 1).unwrap().is_used);
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
