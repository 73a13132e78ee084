//! Where the instruction is that the CPU has just fetched: the guest's page tables are followed, and not judged, since the CPU did
//! that, and set their accessed flags.

use vdev::guest_mem::GuestMemory;

const PAGE_SIZE: u64 = 4096;
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LEVELS: usize = 4;

/// The translation of a page of 64-bit code, and what it depends on: it holds as long as that is the same, which takes less time
/// to see than to translate again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    /// Page number.
    page: u64,
    root: u64,
    /// The entries, each with its address; the last one again where there are fewer.
    entries: [(u64, u64); LEVELS],
    /// Physical address of the page.
    frame: u64,
}

impl Trace {
    /// A translation of nothing, which never holds: its entries are where no memory is.
    pub(super) const NONE: Trace =
        Trace { page: u64::MAX, root: 0, entries: [(u64::MAX, 0); LEVELS], frame: 0 };

    /// Follows the tables at `root` to the page of `linear`, and says whether it got there. If not, the CPU went by other tables,
    /// which the guest has changed.
    pub(super) fn follow(&mut self, memory: &impl GuestMemory, root: u64, linear: u64) -> bool {
        self.page = Self::NONE.page;
        let mut table = root & ADDRESS;
        for level in 0..LEVELS {
            let shift = 39 - 9 * level;
            let address = table + (linear >> shift & 0x1ff) * 8;
            let Some(entry) = memory.read_u64(address).ok().filter(|entry| entry & PRESENT != 0) else {
                return false;
            };
            self.entries[level..].fill((address, entry));
            // 512 GiB pages do not exist.
            if level == LEVELS - 1 || level > 0 && entry & LARGE != 0 {
                let offset_mask = (1 << shift) - 1;
                self.frame = (entry & !offset_mask | linear & offset_mask) & ADDRESS;
                (self.page, self.root) = (linear / PAGE_SIZE, root);
                return true;
            }
            table = entry & ADDRESS;
        }
        false
    }

    /// The physical address of `linear`, if it is still found so from `root`.
    pub(super) fn find(&self, memory: &impl GuestMemory, root: u64, linear: u64) -> Option<u64> {
        let holds = self.page == linear / PAGE_SIZE && self.holds(memory, root);
        holds.then_some(self.frame + linear % PAGE_SIZE)
    }

    /// Whether the page is still found so from `root`.
    #[inline(always)]
    pub(super) fn holds(&self, memory: &impl GuestMemory, root: u64) -> bool {
        let is_same = |&(address, entry): &(u64, u64)| memory.has_u64(address, u64::MAX, entry);
        self.root == root && self.entries.iter().all(is_same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdev::guest_mem::VecMemory;

    const ROOT: u64 = 0x1018;

    fn find(memory: &VecMemory, linear: u64) -> Option<Trace> {
        let mut trace = Trace::NONE;
        trace.follow(memory, ROOT, linear).then_some(trace)
    }

    #[test]
    fn pages_of_every_size_are_followed_until_an_entry_changes() {
        let mut memory = VecMemory::new(0x10_0000);
        for (address, entry) in [
            (0x1000, 0x2007),
            (0x2000, 0x3007),
            (0x2008, 0x8000_0000_0000_0087),
            (0x3000, 0x4007),
            (0x3008, 0x40_0087),
            (0x4008, 0x5007),
        ] {
            memory.write_u64(address, entry).unwrap();
        }
        for (linear, physical) in [(0x1234, 0x5234), (0x20_1234, 0x40_1234), (0x4012_3456, 0x12_3456)] {
            let trace = find(&memory, linear).unwrap();
            assert_eq!(trace.find(&memory, ROOT, linear), Some(physical), "{linear:#x}");
            assert_eq!(trace.find(&memory, ROOT, linear ^ 1), Some(physical ^ 1), "the same page");
            assert_eq!(trace.find(&memory, ROOT, linear ^ 0x1000), None, "another page");
            assert_eq!(trace.find(&memory, 0x1000, linear), None, "another address space");
        }
        assert!(find(&memory, 0x2000).is_none());
        let trace = find(&memory, 0x1234).unwrap();
        memory.write_u64(0x4008, 0x6007).unwrap();
        assert_eq!(trace.find(&memory, ROOT, 0x1234), None);
        assert_eq!(Trace::NONE.find(&memory, 0, u64::MAX), None);
    }
}
