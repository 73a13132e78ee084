//! Which device answers at an I/O port or a guest-physical address.

use alloc::vec::Vec;
use core::{fmt, ops::Range};

/// An address space with devices in it; `T` names a device.
///
/// The same type serves ports and memory: a port is a small address.
#[derive(Clone, Debug)]
pub struct Bus<T> {
    /// Sorted by start; disjoint and not empty.
    entries: Vec<(Range<u64>, T)>,
}

/// Why a device cannot be put on a bus.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BusError {
    /// The range holds no address.
    EmptyRange,
    /// A device is there already, at this range.
    Overlap(Range<u64>),
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyRange => write!(f, "empty address range"),
            Self::Overlap(range) => write!(f, "overlaps the device at {:#x}..{:#x}", range.start, range.end),
        }
    }
}

impl core::error::Error for BusError {}

impl<T> Default for Bus<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T: Copy> Bus<T> {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the addresses of `range` to `device`. A device may have several ranges.
    pub fn insert(&mut self, range: Range<u64>, device: T) -> Result<(), BusError> {
        if range.is_empty() {
            return Err(BusError::EmptyRange);
        }
        // The first entry that ends after our start is the only one that can be the first to overlap.
        let position = self.entries.partition_point(|(other, _)| other.end <= range.start);
        if let Some((other, _)) = self.entries.get(position)
            && other.start < range.end
        {
            return Err(BusError::Overlap(other.clone()));
        }
        self.entries.insert(position, (range, device));
        Ok(())
    }

    /// The device at `address`, and how far into its range that is.
    pub fn find(&self, address: u64) -> Option<(T, u64)> {
        let position = self.entries.partition_point(|(range, _)| range.end <= address);
        let (range, device) = self.entries.get(position)?;
        Some((*device, address.checked_sub(range.start)?))
    }

    /// Every range and its device, by ascending address.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, T)> + '_ {
        self.entries.iter().map(|(range, device)| (range.clone(), *device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_belongs_to_the_device_whose_range_holds_it() {
        let mut bus = Bus::new();
        bus.insert(0x3f8..0x400, "com1").unwrap();
        bus.insert(0x70..0x72, "rtc").unwrap();
        assert_eq!(bus.find(0x3f8), Some(("com1", 0)));
        assert_eq!(bus.find(0x3ff), Some(("com1", 7)));
        assert_eq!(bus.find(0x71), Some(("rtc", 1)));
        assert_eq!(bus.find(0x400), None);
        assert_eq!(bus.find(0x6f), None);
    }

    #[test]
    fn a_range_that_touches_a_device_is_free_and_one_that_reaches_into_it_is_not() {
        let mut bus = Bus::new();
        bus.insert(10..20, 0).unwrap();
        assert_eq!(bus.insert(15..16, 1), Err(BusError::Overlap(10..20)));
        assert_eq!(bus.insert(0..30, 1), Err(BusError::Overlap(10..20)));
        assert_eq!(bus.insert(0..11, 1), Err(BusError::Overlap(10..20)));
        assert_eq!(bus.insert(5..5, 1), Err(BusError::EmptyRange));
        bus.insert(0..10, 1).unwrap();
        bus.insert(20..u64::MAX, 2).unwrap();
    }

    proptest! {
        #[test]
        fn what_was_inserted_is_found_and_nothing_else(
            ranges in prop::collection::vec((0u64..200, 0u64..20), 0..20), probe in 0u64..230,
        ) {
            let mut bus = Bus::new();
            let mut accepted: Vec<(Range<u64>, usize)> = Vec::new();
            for (id, (start, len)) in ranges.into_iter().enumerate() {
                let range = start..start + len;
                let is_free = accepted.iter().all(|(a, _)| a.end <= range.start || range.end <= a.start);
                prop_assert_eq!(bus.insert(range.clone(), id).is_ok(), len > 0 && is_free);
                if len > 0 && is_free {
                    accepted.push((range, id));
                }
            }
            let holder = accepted.iter().find(|(range, _)| range.contains(&probe));
            let expected = holder.map(|(range, id)| (*id, probe - range.start));
            prop_assert_eq!(bus.find(probe), expected);
        }
    }
}
