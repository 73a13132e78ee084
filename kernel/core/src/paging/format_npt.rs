//! AMD nested paging (APM 2 15.25): the host's format, walked with user rights; and AMD's I/O page tables, which are the same with
//! rights and levels in bits that the CPU ignores (AMD I/O Virtualization Technology Specification 2.2.3, tables 14 and 15).

use super::{Attr, HostFormat, PtFormat};
use crate::addr::PhysAddr;

/// Reads, and writes, of devices pass. Every level must let them.
const IO_READ: u64 = 1 << 61;
const IO_WRITE: u64 = 1 << 62;
/// First bit of the level that an I/O page table's entry leads to; 0 for a page.
const IO_NEXT_LEVEL: u32 = 9;

/// [`HostFormat`] with U/S always set: the nested walk counts as a user access (APM 2 15.25.5). A new leaf is clean.
#[derive(Clone, Copy, Debug)]
pub struct NptFormat;

impl PtFormat for NptFormat {
    const DIRTY: u64 = HostFormat::DIRTY;

    fn table(table: PhysAddr, level: usize) -> u64 {
        HostFormat::table(table, level) | (level as u64 - 1) << IO_NEXT_LEVEL | IO_READ | IO_WRITE
    }

    fn leaf(pa: PhysAddr, attr: Attr, level: usize) -> u64 {
        let io = if attr.write { IO_READ | IO_WRITE } else { IO_READ };
        HostFormat::leaf(pa, Attr { user: true, ..attr }, level) & !Self::DIRTY | io
    }

    fn is_present(entry: u64) -> bool {
        HostFormat::is_present(entry)
    }

    fn is_leaf(entry: u64, level: usize) -> bool {
        HostFormat::is_leaf(entry, level)
    }

    fn addr(entry: u64, level: usize) -> PhysAddr {
        HostFormat::addr(entry, level)
    }

    fn attr(entry: u64) -> Attr {
        HostFormat::attr(entry)
    }
}
