//! The host's own page tables: x86-64 4-level paging (SDM 3A 5.5, tables 5-15 to 5-20).

use super::walk::level_bytes;
use super::{Attr, PtFormat};
use crate::addr::PhysAddr;

bitflags::bitflags! {
    /// Bits of an entry besides the address.
    #[derive(Clone, Copy)]
    struct Bits: u64 {
        const PRESENT = 1 << 0;
        const WRITE = 1 << 1;
        const USER = 1 << 2;
        const WRITE_THROUGH = 1 << 3;
        const CACHE_DISABLE = 1 << 4;
        const ACCESSED = 1 << 5;
        const DIRTY = 1 << 6;
        /// PS: the entry of level 2 or 3 maps a page.
        const PAGE_SIZE = 1 << 7;
        const NO_EXECUTE = 1 << 63;
        /// PAT index 3: UC in the power-on PAT and in ours.
        const UNCACHED = 1 << 3 | 1 << 4;
    }
}

/// Bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// x86-64 4-level paging with NX. Accessed and dirty are set from the start: nobody asks for them, and hardware need
/// not write to the tables.
#[derive(Clone, Copy, Debug)]
pub struct HostFormat;

impl PtFormat for HostFormat {
    const DIRTY: u64 = 1 << 6;

    fn table(table: PhysAddr, _level: usize) -> u64 {
        table.0 & ADDRESS | (Bits::PRESENT | Bits::WRITE | Bits::USER | Bits::ACCESSED).bits()
    }

    fn leaf(pa: PhysAddr, attr: Attr, level: usize) -> u64 {
        let mut bits = Bits::PRESENT | Bits::ACCESSED | Bits::DIRTY;
        bits.set(Bits::WRITE, attr.write);
        bits.set(Bits::USER, attr.user);
        bits.set(Bits::UNCACHED, attr.uncached);
        bits.set(Bits::NO_EXECUTE, !attr.execute);
        bits.set(Bits::PAGE_SIZE, level > 1);
        pa.0 & ADDRESS | bits.bits()
    }

    fn is_present(entry: u64) -> bool {
        has(entry, Bits::PRESENT)
    }

    fn is_leaf(entry: u64, level: usize) -> bool {
        level == 1 || (level < Self::LEVELS && has(entry, Bits::PAGE_SIZE))
    }

    fn addr(entry: u64, level: usize) -> PhysAddr {
        // Bit 12 of a large page's entry is PAT.
        let low = if Self::is_leaf(entry, level) { level_bytes(level) - 1 } else { 0 };
        PhysAddr(entry & ADDRESS & !low)
    }

    fn attr(entry: u64) -> Attr {
        Attr {
            read: true,
            write: has(entry, Bits::WRITE),
            execute: !has(entry, Bits::NO_EXECUTE),
            uncached: has(entry, Bits::UNCACHED),
            user: has(entry, Bits::USER),
        }
    }
}

fn has(entry: u64, bits: Bits) -> bool {
    Bits::from_bits_retain(entry).contains(bits)
}
