//! Where the instruction is that the CPU has just fetched: the guest's page tables are followed, and not judged, since the CPU did
//! that, and set their accessed flags.

use vdev::guest_mem::GuestMemory;

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LEVELS: usize = 4;

/// A translation of 64-bit code, and what it depends on: it holds as long as that is the same, which takes less time to see than
/// to translate again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    linear: u64,
    root: u64,
    /// The entries, each with its address.
    entries: [(u64, u64); LEVELS],
    count: usize,
    physical: u64,
}

impl Trace {
    /// Follows the tables at `root` to `linear`. `None` where that leads nowhere: then the CPU went by other tables, which the
    /// guest has changed.
    #[inline]
    pub(super) fn of_code(memory: &impl GuestMemory, root: u64, linear: u64) -> Option<Trace> {
        let mut trace = Trace { linear, root, entries: [(0, 0); LEVELS], count: 0, physical: 0 };
        let mut table = root & ADDRESS;
        for level in 0..LEVELS {
            let shift = 39 - 9 * level;
            let address = table + (linear >> shift & 0x1ff) * 8;
            let entry = memory.read_u64(address).ok().filter(|entry| entry & PRESENT != 0)?;
            trace.entries[level] = (address, entry);
            trace.count = level + 1;
            // 512 GiB pages do not exist.
            if level == LEVELS - 1 || level > 0 && entry & LARGE != 0 {
                let offset_mask = (1 << shift) - 1;
                trace.physical = entry & ADDRESS & !offset_mask | linear & offset_mask;
                return Some(trace);
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// The physical address.
    pub(super) fn physical(&self) -> u64 {
        self.physical
    }

    /// Whether `linear` is still found so from `root`.
    #[inline]
    pub(super) fn holds(&self, memory: &impl GuestMemory, root: u64, linear: u64) -> bool {
        self.linear == linear
            && self.root == root
            && self.entries[..self.count.min(LEVELS)]
                .iter()
                .all(|&(address, entry)| memory.read_u64(address) == Ok(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdev::guest_mem::VecMemory;

    #[test]
    fn pages_of_every_size_are_followed_until_an_entry_changes() {
        let mut memory = VecMemory::new(0x10_0000);
        memory.write_u64(0x1000, 0x2007).unwrap();
        memory.write_u64(0x2000, 0x3007).unwrap();
        memory.write_u64(0x2008, 0x8000_0000_0000_0087).unwrap();
        memory.write_u64(0x3000, 0x4007).unwrap();
        memory.write_u64(0x3008, 0x40_0087).unwrap();
        memory.write_u64(0x4008, 0x5007).unwrap();
        let find = |memory: &VecMemory, linear| Trace::of_code(memory, 0x1018, linear);
        for (linear, physical) in [(0x1234, 0x5234), (0x20_1234, 0x40_1234), (0x4012_3456, 0x12_3456)] {
            let trace = find(&memory, linear).unwrap();
            assert_eq!(trace.physical(), physical, "{linear:#x}");
            assert!(trace.holds(&memory, 0x1018, linear));
            assert!(!trace.holds(&memory, 0x1000, linear) && !trace.holds(&memory, 0x1018, linear + 1));
        }
        assert!(find(&memory, 0x2000).is_none());
        let trace = find(&memory, 0x1234).unwrap();
        memory.write_u64(0x4008, 0x6007).unwrap();
        assert!(!trace.holds(&memory, 0x1018, 0x1234));
    }
}
