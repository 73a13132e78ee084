//! Sets of free numbers: selectors, addresses, page frames.

use alloc::collections::BTreeMap;

/// A set of numbers, kept as maximal ranges, from which aligned runs are taken and to which they return.
#[derive(Clone, Debug, Default)]
pub struct RangeSet {
    /// First number of each range, and how many follow. Ranges neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// No number.
    pub const fn new() -> Self {
        RangeSet { ranges: BTreeMap::new() }
    }

    /// Takes the lowest run of `count` numbers (at least 1) that starts at a multiple of `align` (at least 1).
    pub fn take(&mut self, count: u64, align: u64) -> Option<u64> {
        debug_assert!(count > 0 && align > 0);
        let (base, length, start) = self.ranges.iter().find_map(|(&base, &length)| {
            let start = base.checked_next_multiple_of(align)?;
            let end = start.checked_add(count)?;
            (end <= base + length).then_some((base, length, start))
        })?;
        self.ranges.remove(&base);
        self.insert_range(base, start - base);
        self.insert_range(start + count, base + length - (start + count));
        Some(start)
    }

    /// Puts `count` numbers from `start` back. Numbers that are already in the set stay in it once.
    pub fn put(&mut self, start: u64, count: u64) {
        let (mut first, mut end) = (start, start.saturating_add(count));
        // Every range that overlaps or touches the new one becomes part of it.
        while let Some((&base, &length)) = self.ranges.range(..=end).next_back() {
            if base + length < first {
                break;
            }
            self.ranges.remove(&base);
            first = first.min(base);
            end = end.max(base + length);
        }
        self.insert_range(first, end - first);
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u64 {
        self.ranges.values().sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn insert_range(&mut self, start: u64, count: u64) {
        if count > 0 {
            self.ranges.insert(start, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_aligned_and_come_back_as_one() {
        let mut set = RangeSet::new();
        set.put(3, 100);
        let aligned = set.take(16, 16);
        let lowest = set.take(2, 1);
        assert_eq!((aligned, lowest), (Some(16), Some(3)));
        set.put(16, 16);
        set.put(3, 2);
        assert_eq!(set.len(), 100);
        assert_eq!(set.take(100, 1), Some(3));
        assert!(set.is_empty());
    }

    #[test]
    fn a_run_longer_than_any_range_is_refused() {
        let mut set = RangeSet::new();
        set.put(1, 4);
        set.put(8, 4);
        assert_eq!(set.take(5, 1), None);
        assert_eq!(set.take(4, 8), Some(8));
    }

    #[test]
    fn numbers_put_twice_are_handed_out_once() {
        let mut set = RangeSet::new();
        set.put(0, 8);
        set.put(4, 8);
        set.put(20, 1);
        set.put(12, 8);
        assert_eq!(set.len(), 21);
        assert_eq!(set.take(21, 1), Some(0));
        assert_eq!(set.take(1, 1), None);
    }

    #[test]
    fn the_end_of_the_number_space_does_not_overflow() {
        let mut set = RangeSet::new();
        set.put(u64::MAX - 10, 100);
        assert_eq!(set.take(1, 1 << 63), None);
        assert_eq!(set.take(10, 1), Some(u64::MAX - 10));
    }
}
