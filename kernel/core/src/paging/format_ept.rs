//! Intel extended page tables (SDM 3C 29.3.2, tables 29-1 to 29-6).

use super::walk::level_bytes;
use super::{Attr, PtFormat};
use crate::addr::PhysAddr;

bitflags::bitflags! {
    /// Bits of an entry besides the address.
    #[derive(Clone, Copy)]
    struct Bits: u64 {
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        const EXECUTE = 1 << 2;
        /// Memory type write-back, in bits 5 to 3 of a leaf; uncacheable is 0.
        const WRITE_BACK = 6 << 3;
        /// The entry of level 2 or 3 maps a page.
        const PAGE_SIZE = 1 << 7;
    }
}

const RIGHTS: Bits = Bits::READ.union(Bits::WRITE).union(Bits::EXECUTE);

/// Bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// EPT with accessed and dirty flags where the CPU has them. "Ignore PAT" is clear: the guest's PAT can make memory less cacheable.
///
/// A leaf is always readable: writable without readable is a misconfiguration, and execute-only is not everywhere
/// (SDM 3C 29.3.3.1).
#[derive(Clone, Copy, Debug)]
pub struct EptFormat;

impl PtFormat for EptFormat {
    const DIRTY: u64 = 1 << 9;

    fn table(table: PhysAddr, _level: usize) -> u64 {
        table.0 & ADDRESS | RIGHTS.bits()
    }

    fn leaf(pa: PhysAddr, attr: Attr, level: usize) -> u64 {
        let mut bits = Bits::READ;
        bits.set(Bits::WRITE, attr.write);
        bits.set(Bits::EXECUTE, attr.execute);
        bits.set(Bits::WRITE_BACK, !attr.uncached);
        bits.set(Bits::PAGE_SIZE, level > 1);
        pa.0 & ADDRESS | bits.bits()
    }

    fn is_present(entry: u64) -> bool {
        Bits::from_bits_retain(entry).intersects(RIGHTS)
    }

    fn is_leaf(entry: u64, level: usize) -> bool {
        level == 1 || (level < Self::LEVELS && has(entry, Bits::PAGE_SIZE))
    }

    fn addr(entry: u64, level: usize) -> PhysAddr {
        let low = if Self::is_leaf(entry, level) { level_bytes(level) - 1 } else { 0 };
        PhysAddr(entry & ADDRESS & !low)
    }

    fn attr(entry: u64) -> Attr {
        Attr {
            read: true,
            write: has(entry, Bits::WRITE),
            execute: has(entry, Bits::EXECUTE),
            uncached: !has(entry, Bits::WRITE_BACK),
            user: true,
        }
    }
}

fn has(entry: u64, bits: Bits) -> bool {
    Bits::from_bits_retain(entry).contains(bits)
}
