//! Which physical memory is free RAM, and which may be devices.

use hypercall_abi::PAGE_SIZE;

use super::fixed::FixedVec;
use super::multiboot::MemoryEntry;

/// Real-mode memory: the trampoline of the other CPUs, the BIOS data areas, the legacy video memory.
pub const LOW_MEMORY: Region = Region { base: 0, end: 1 << 20 };

const LARGE_PAGE: u64 = 2 << 20;

/// A range of physical memory, from `base` up to but not including `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Physical address of the first byte.
    pub base: u64,
    /// Physical address after the last byte.
    pub end: u64,
}

impl Region {
    /// Bytes.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.base)
    }

    /// Whether it has no byte.
    pub const fn is_empty(self) -> bool {
        self.end <= self.base
    }

    /// Pages, once it is aligned.
    pub const fn pages(self) -> u64 {
        self.len() / PAGE_SIZE
    }

    /// The whole pages inside.
    fn inward(self) -> Self {
        Region {
            base: self.base.checked_next_multiple_of(PAGE_SIZE).unwrap_or(self.end),
            end: floor(self.end),
        }
    }

    /// Every page it touches.
    fn outward(self) -> Self {
        Region {
            base: floor(self.base),
            end: self.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(floor(u64::MAX)),
        }
    }
}

impl From<MemoryEntry> for Region {
    fn from(entry: MemoryEntry) -> Self {
        Region { base: entry.base, end: entry.base.saturating_add(entry.len) }
    }
}

const fn floor(addr: u64) -> u64 {
    addr & !(PAGE_SIZE - 1)
}

/// Up to `N` disjoint page-aligned regions in ascending order, no two of which touch.
///
/// When there is no room the smallest region is given up, so that a set is never larger than it should be.
#[derive(Clone, Copy, Debug)]
pub struct RegionSet<const N: usize> {
    regions: FixedVec<Region, N>,
    lost: u64,
}

impl<const N: usize> RegionSet<N> {
    /// No region.
    pub fn new() -> Self {
        RegionSet { regions: FixedVec::new(), lost: 0 }
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes that were given up because there was no room.
    pub fn lost_bytes(&self) -> u64 {
        self.lost
    }

    /// Adds the whole pages of `region`.
    pub fn insert(&mut self, region: Region) {
        let mut new = region.inward();
        if new.is_empty() {
            return;
        }
        let first = self.regions.iter().position(|r| r.end >= new.base).unwrap_or(self.regions.len());
        while let Some(&old) = self.regions.get(first).filter(|old| old.base <= new.end) {
            new = Region { base: new.base.min(old.base), end: new.end.max(old.end) };
            self.regions.remove(first);
        }
        self.put(first, new);
    }

    /// Takes every page out that `region` touches.
    pub fn remove(&mut self, region: Region) {
        let gone = region.outward();
        if region.is_empty() {
            return;
        }
        let mut i = 0;
        while let Some(&old) = self.regions.get(i) {
            if old.base >= gone.end {
                return;
            }
            let below = Region { end: old.end.min(gone.base), ..old };
            let above = Region { base: old.base.max(gone.end), ..old };
            match (below.is_empty(), above.is_empty()) {
                (true, true) => {
                    self.regions.remove(i);
                    continue;
                }
                (false, true) => self.regions[i] = below,
                (true, false) => self.regions[i] = above,
                (false, false) => {
                    self.regions[i] = below;
                    self.put(i + 1, above);
                    return;
                }
            }
            i += 1;
        }
    }

    /// Takes `bytes`, rounded up to pages, out of the lowest region that has them at or above `floor`: at a multiple of
    /// 2 MiB if any region allows, else of a page.
    pub fn carve(&mut self, bytes: u64, floor: u64) -> Option<Region> {
        let bytes = bytes.checked_next_multiple_of(PAGE_SIZE)?;
        let fit = |align| {
            self.regions.iter().find_map(|region| {
                let base = region.base.max(floor).checked_next_multiple_of(align)?;
                let end = base.checked_add(bytes)?;
                (end <= region.end).then_some(Region { base, end })
            })
        };
        let found = fit(LARGE_PAGE).or_else(|| fit(PAGE_SIZE))?;
        self.remove(found);
        Some(found)
    }

    fn put(&mut self, at: usize, region: Region) {
        if self.regions.insert(at, region) {
            return;
        }
        let smallest =
            self.regions.iter().enumerate().min_by_key(|(_, r)| r.len()).map(|(i, r)| (i, r.len()));
        match smallest {
            Some((i, len)) if len < region.len() => {
                self.lost += len;
                self.regions.remove(i);
                let at = if i < at { at - 1 } else { at };
                let inserted = self.regions.insert(at, region);
                debug_assert!(inserted);
            }
            _ => self.lost += region.len(),
        }
    }
}

impl<const N: usize> Default for RegionSet<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// RAM that is nobody's: what the map calls RAM and does not also call something else, without [`LOW_MEMORY`] and
/// without every page that one of `reserved` touches.
pub fn free_ram<const N: usize>(map: &[MemoryEntry], reserved: &[Region]) -> RegionSet<N> {
    let mut set = RegionSet::new();
    map.iter().filter(|entry| entry.is_ram).for_each(|&entry| set.insert(entry.into()));
    map.iter().filter(|entry| !entry.is_ram).for_each(|&entry| set.remove(entry.into()));
    set.remove(LOW_MEMORY);
    reserved.iter().for_each(|&region| set.remove(region));
    set
}

/// What may be devices: everything below `limit` that has no RAM in it and that none of `excluded` touches.
pub fn devices<const N: usize>(map: &[MemoryEntry], limit: u64, excluded: &[Region]) -> RegionSet<N> {
    let mut set = RegionSet::new();
    set.insert(Region { base: 0, end: limit });
    map.iter().filter(|entry| entry.is_ram).for_each(|&entry| set.remove(entry.into()));
    excluded.iter().for_each(|&region| set.remove(region));
    set
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const PC: [MemoryEntry; 5] = [
        MemoryEntry { base: 0, len: 0x9_fc00, is_ram: true },
        MemoryEntry { base: 0x9_fc00, len: 0x400, is_ram: false },
        MemoryEntry { base: 0x10_0000, len: 0x7ee_0000, is_ram: true },
        MemoryEntry { base: 0x7fe_0000, len: 0x2_0000, is_ram: false },
        MemoryEntry { base: 0xfffc_0000, len: 0x4_0000, is_ram: false },
    ];

    const fn region(base: u64, end: u64) -> Region {
        Region { base, end }
    }

    #[test]
    fn free_ram_is_what_nobody_uses() {
        let reserved = [region(0x20_0000, 0x28_0123), region(0x28_0fff, 0x29_0001)];
        let free = free_ram::<8>(&PC, &reserved);
        assert_eq!(free.regions(), [region(0x10_0000, 0x20_0000), region(0x29_1000, 0x7fe_0000)]);
    }

    #[test]
    fn devices_are_between_the_ram() {
        let apic = region(0xfee0_0000, 0xfee0_1000);
        let found = devices::<8>(&PC, 1 << 32, &[LOW_MEMORY, apic]);
        assert_eq!(found.regions(), [region(0x7fe_0000, apic.base), region(apic.end, 1 << 32)]);
    }

    #[test]
    fn an_allotment_is_aligned_to_large_pages_where_it_fits() {
        let mut free = free_ram::<8>(&PC, &[]);
        assert_eq!(free.carve(0x30_0001, 0x30_0000), Some(region(0x40_0000, 0x70_1000)));
        assert_eq!(free.carve(0x7a0_0000, 0), None);
        let mut narrow = RegionSet::<2>::new();
        narrow.insert(region(0x1000, 0x20_1000));
        assert_eq!(narrow.carve(0x20_0000, 0), Some(region(0x1000, 0x20_1000)));
        assert_eq!(narrow.regions(), []);
    }

    #[test]
    fn a_full_set_gives_up_its_smallest_region() {
        let mut set = RegionSet::<2>::new();
        for r in [region(0x1000, 0x5000), region(0x8000, 0x9000), region(0x1_0000, 0x1_2000)] {
            set.insert(r);
        }
        assert_eq!(set.regions(), [region(0x1000, 0x5000), region(0x1_0000, 0x1_2000)]);
        assert_eq!(set.lost_bytes(), 0x1000);
    }

    proptest! {
        #[test]
        fn a_set_holds_the_pages_that_were_put_in_and_not_taken_out(
            ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..20, 0u64..4096, 0u64..4096), 0..40),
        ) {
            let mut set = RegionSet::<64>::new();
            let mut model = BTreeSet::new();
            for (insert, page, pages, low, high) in ops {
                let r = region(page * 4096 + low, (page + pages) * 4096 + high);
                if insert {
                    set.insert(r);
                    model.extend((r.base.div_ceil(4096)..r.end / 4096).collect::<Vec<_>>());
                } else {
                    set.remove(r);
                    model.retain(|&p| r.is_empty() || p < r.base / 4096 || p >= r.end.div_ceil(4096));
                }
                let found: Vec<u64> =
                    set.regions().iter().flat_map(|r| r.base / 4096..r.end / 4096).collect();
                prop_assert!(set.regions().windows(2).all(|w| w[0].end < w[1].base));
                prop_assert!(set.regions().iter().all(|r| !r.is_empty() && (r.base | r.end) % 4096 == 0));
                prop_assert_eq!(found, model.iter().copied().collect::<Vec<_>>());
            }
        }

        #[test]
        fn extreme_maps_do_not_panic(
            map in prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..20),
            bytes in any::<u64>(), floor in any::<u64>(),
        ) {
            let map: Vec<_> =
                map.into_iter().map(|(base, len, is_ram)| MemoryEntry { base, len, is_ram }).collect();
            let mut free = free_ram::<4>(&map, &[region(floor, bytes)]);
            free.carve(bytes, floor);
            devices::<4>(&map, bytes, &[]);
        }
    }
}
