//! The flush checker: a model of what TLBs may hold, and the flushes that correctness needs.
//!
//! Emulators flush at every transition and so hide each missing INVEPT, INVVPID, ASID and CR3 load. Test and debug builds tell
//! this model of every change of a page table, every flush and every entry; the release build has none of it.
//!
//! Time is counted in changes of page tables that take something away ([`weakens`]). A flush makes what it covers as new as
//! the time it happened. Whatever is about to use a TLB must be as new as the last such change of its tables.

mod shootdown;
mod tags;
#[cfg(test)]
mod tests;

pub use shootdown::{Missing, Shootdown};
pub use tags::{Stale, Tags, User};

/// Whether a page-table entry that becomes `new` makes cached copies of `old` wrong. For the entries of every format: present
/// ones have one of bits 0 to 2; those and the accessed and dirty flags may be added without a flush, everything else not.
pub const fn weakens(old: u64, new: u64) -> bool {
    /// Memory type, page size, address, execute-disable.
    const MEANING: u64 = 0b11 << 3 | 1 << 7 | 0x000f_ffff_ffff_f000 | 1 << 63;
    old & 7 != 0 && (old & !new != 0 || (old ^ new) & MEANING != 0)
}
