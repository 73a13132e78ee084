//! AMD's table, IVRS (AMD I/O Virtualization Technology Specification, revision 3.07, chapter 5).

use super::super::le;
use super::{Architecture, IommuUnit, Units, structures};
use crate::addr::PhysAddr;

/// Where the definition blocks begin (5.2.1).
const BLOCKS: usize = 48;
/// Types of hardware definition blocks, IVHD (5.2.2). Newer firmware lists a unit once in each.
const HARDWARE: [u16; 3] = [0x10, 0x11, 0x40];

/// Adds the units of a table; how many could not be added. Which devices are behind which unit does not matter: all units get the
/// same tables.
pub fn parse(table: &[u8], units: &mut Units) -> u32 {
    let mut dropped = 0;
    let header = |rest: &[u8]| Some(((*rest.first()?).into(), le::u16(rest, 2)?));
    structures(table, BLOCKS, header, |kind, block| {
        if HARDWARE.contains(&kind) {
            dropped += u32::from(!unit(block).is_some_and(|unit| unit.add_to(units)));
        }
    });
    dropped
}

fn unit(block: &[u8]) -> Option<IommuUnit> {
    Some(IommuUnit {
        architecture: Architecture::AmdVi,
        link_flags: *block.get(1)?,
        function: le::u16(block, 4)?,
        address: PhysAddr(le::u64(block, 8)?),
        segment: le::u16(block, 16)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::table;
    use super::*;

    /// A unit at 00:02.0 that tunnels, with one device entry behind it.
    fn block(kind: u8) -> [u8; 28] {
        let mut block = [0; 28];
        block[..6].copy_from_slice(&[kind, 0x31, 28, 0, 0x10, 0]);
        block[8..16].copy_from_slice(&0xfed8_0000u64.to_le_bytes());
        block
    }

    #[test]
    fn a_unit_is_found_once() {
        let mut units = Units::new();
        let memory = [0x20, 0, 4, 0];
        let table = table(BLOCKS, &[&block(0x10), &memory, &block(0x11), &block(0x40)]);
        assert_eq!(parse(&table, &mut units), 0);
        let unit = IommuUnit {
            architecture: Architecture::AmdVi,
            address: PhysAddr(0xfed8_0000),
            segment: 0,
            link_flags: 0x31,
            function: 0x10,
        };
        assert_eq!(*units, [unit]);
    }

    #[test]
    fn a_block_that_is_too_short_or_too_long_ends_the_list_or_is_dropped() {
        for (len, found, dropped) in [(0, 0, 0), (3, 0, 0), (17, 0, 1), (29, 0, 0), (18, 1, 0)] {
            let mut short = block(0x10);
            short[2] = len;
            let mut units = Units::new();
            let lost = parse(&table(BLOCKS, &[&short]), &mut units);
            assert_eq!((units.len(), lost), (found, dropped), "length {len}");
        }
    }
}
