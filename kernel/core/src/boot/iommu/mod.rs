//! What the firmware says about IOMMUs.

pub mod dmar;
pub mod ivrs;

use super::fixed::FixedVec;
use super::regions::Region;
use crate::addr::PhysAddr;

/// The architecture of an IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Architecture {
    /// Intel's.
    #[default]
    Vtd,
    /// AMD's.
    AmdVi,
}

/// A unit that remaps the DMA of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IommuUnit {
    /// Its architecture. All units of a machine have the same.
    pub architecture: Architecture,
    /// Physical address of its registers, a multiple of 4096.
    pub address: PhysAddr,
    /// The PCI segment that its devices are in.
    pub segment: u16,
    /// AMD: attributes of its HyperTransport link, as IVHD flags.
    pub link_flags: u8,
    /// AMD: its own bus, device and function.
    pub function: u16,
}

/// All units, as far as there is room.
pub type Units = FixedVec<IommuUnit, 8>;

/// Registers are below this: what the kernel can map.
const ADDRESS_END: u64 = 1 << 46;

impl IommuUnit {
    /// Its registers, whole pages.
    pub fn registers(&self) -> Region {
        let bytes = match self.architecture {
            Architecture::Vtd => 0x1000,
            Architecture::AmdVi => 0x4000,
        };
        Region { base: self.address.0, end: self.address.0 + bytes }
    }

    /// Adds it to `units`, unless it is there; false if it cannot be used, or there is no room.
    fn add_to(self, units: &mut Units) -> bool {
        if units.iter().any(|unit| unit.address == self.address) {
            return true;
        }
        let is_sane = self.address.is_page_aligned() && (1..ADDRESS_END).contains(&self.address.0);
        is_sane && units.push(self)
    }
}

/// Calls `each` for the structures that begin at byte `at` of a table, with their type and bytes: `header` says the type and
/// the length of what begins at a place.
fn structures(
    table: &[u8],
    at: usize,
    header: fn(&[u8]) -> Option<(u16, u16)>,
    mut each: impl FnMut(u16, &[u8]),
) {
    let mut rest = table.get(at..).unwrap_or_default();
    while let Some((kind, len)) = header(rest).filter(|&(_, len)| len >= 4)
        && let Some((structure, after)) = rest.split_at_checked(len.into())
    {
        each(kind, structure);
        rest = after;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// A table with a header of zeroes, `at` bytes long, and these structures.
    pub(crate) fn table(at: usize, structures: &[&[u8]]) -> Vec<u8> {
        let mut bytes = std::vec![0; at];
        structures.iter().for_each(|structure| bytes.extend(*structure));
        bytes
    }

    #[test]
    fn a_unit_that_is_listed_twice_is_one_and_one_without_sane_registers_is_none() {
        let mut units = Units::new();
        let unit = |address| IommuUnit { address: PhysAddr(address), ..IommuUnit::default() };
        assert!(unit(0xfed9_0000).add_to(&mut units) && unit(0xfed9_0000).add_to(&mut units));
        for address in [0, 0xfed9_1010, ADDRESS_END, !4095] {
            assert!(!unit(address).add_to(&mut units), "{address:#x}");
        }
        assert_eq!(units.len(), 1);
        assert!((1..8).all(|n| unit(0x1000 * n).add_to(&mut units)));
        assert!(!unit(0x9000).add_to(&mut units));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            lengths in prop::collection::vec((48usize..300, 0u8..80), 0..8),
        ) {
            let mut bytes = bytes;
            for (at, len) in lengths {
                bytes.get_mut(at).into_iter().for_each(|byte| *byte = len);
            }
            for parse in [dmar::parse, ivrs::parse] {
                let mut units = Units::new();
                let dropped = parse(&bytes, &mut units);
                prop_assert!(units.len() + dropped as usize <= bytes.len() / 4);
                prop_assert!(units.iter().all(|unit| unit.address.is_page_aligned()));
            }
        }
    }
}
