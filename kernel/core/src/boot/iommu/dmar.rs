//! Intel's table, DMAR (Intel Virtualization Technology for Directed I/O, revision 4.1, chapter 8).

use super::super::le;
use super::{Architecture, IommuUnit, Units, structures};
use crate::addr::PhysAddr;

/// Where the remapping structures begin (8.1).
const STRUCTURES: usize = 48;
/// Type of a hardware unit definition, DRHD (8.3).
const HARDWARE_UNIT: u16 = 0;

/// Adds the units of a table; how many could not be added. Which devices are behind which unit does not matter: all units get the
/// same tables.
pub fn parse(table: &[u8], units: &mut Units) -> u32 {
    let mut dropped = 0;
    let header = |rest: &[u8]| Some((le::u16(rest, 0)?, le::u16(rest, 2)?));
    structures(table, STRUCTURES, header, |kind, structure| {
        if kind == HARDWARE_UNIT {
            dropped += u32::from(!unit(structure).is_some_and(|unit| unit.add_to(units)));
        }
    });
    dropped
}

fn unit(structure: &[u8]) -> Option<IommuUnit> {
    Some(IommuUnit {
        architecture: Architecture::Vtd,
        segment: le::u16(structure, 6)?,
        address: PhysAddr(le::u64(structure, 8)?),
        ..IommuUnit::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::table;
    use super::*;

    /// As QEMU's: all devices, and its I/O APIC.
    const UNIT: &[u8] = &[0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, 3, 8, 0, 0, 0, 0xff, 0, 0];
    /// Reserved memory, then a unit of segment 1.
    const RESERVED: &[u8] = &[1, 0, 8, 0, 9, 9, 9, 9];
    const OTHER: &[u8] = &[0, 0, 16, 0, 0, 0, 1, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0];

    #[test]
    fn the_units_are_found() {
        let mut units = Units::new();
        assert_eq!(parse(&table(STRUCTURES, &[UNIT, RESERVED, OTHER]), &mut units), 0);
        let unit =
            |address, segment| IommuUnit { address: PhysAddr(address), segment, ..IommuUnit::default() };
        assert_eq!(*units, [unit(0xfed9_0000, 0), unit(0xfed9_1000, 1)]);
    }

    #[test]
    fn a_structure_that_is_too_short_or_too_long_ends_the_list_or_is_dropped() {
        for (len, found, dropped) in [(0, 0, 0), (3, 0, 0), (12, 0, 1), (25, 0, 0), (16, 1, 0)] {
            let mut short = UNIT[..16].to_vec();
            short[2] = len;
            let mut units = Units::new();
            let lost = parse(&table(STRUCTURES, &[&short]), &mut units);
            assert_eq!((units.len(), lost), (found, dropped), "length {len}");
        }
    }
}
