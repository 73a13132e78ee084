//! AMD nested paging (APM 2 15.25): the host's format, walked with user rights.

use super::{Attr, HostFormat, PtFormat};
use crate::addr::PhysAddr;

/// [`HostFormat`] with U/S always set: the nested walk counts as a user access (APM 2 15.25.5). A new leaf is clean.
#[derive(Clone, Copy, Debug)]
pub struct NptFormat;

impl PtFormat for NptFormat {
    const DIRTY: u64 = HostFormat::DIRTY;

    fn table(table: PhysAddr) -> u64 {
        HostFormat::table(table)
    }

    fn leaf(pa: PhysAddr, attr: Attr, level: usize) -> u64 {
        HostFormat::leaf(pa, Attr { user: true, ..attr }, level) & !Self::DIRTY
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
