//! Page tables of four levels: one engine for host, EPT and NPT formats.
//!
//! 1. [`PtMemory`] is the memory that tables live in, [`PtFormat`] the layout of an entry; the engine knows neither.
//! 2. Hardware may walk the tables at any moment: a table is filled before it is linked and unlinked before it is
//!    freed, and every write moves an address from its old translation to its new one and nothing else.
//! 3. The engine never flushes. It says when a flush is due; the caller does it before it relies on the change.
//! 4. Level 4 is the root, level 1 holds 4 KiB leaves. Bits of an address above 47 are ignored, so that canonical
//!    kernel addresses and guest-physical addresses are both fine.

mod destroy;
mod dirty;
mod format_ept;
mod format_host;
mod format_npt;
mod map;
mod unmap;
mod walk;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use destroy::destroy;
pub use dirty::{Collected, Report, collect_dirty, report_units};
pub use format_ept::EptFormat;
pub use format_host::HostFormat;
pub use format_npt::NptFormat;
pub use map::{map, map_bounded};
pub use unmap::unmap;
pub use walk::lookup;

use crate::addr::PhysAddr;

/// Entries in a table of any level.
pub const ENTRIES: usize = 512;

/// The memory that page tables live in.
pub trait PtMemory {
    /// Reads entry `index` (below [`ENTRIES`]) of `table`.
    fn read(&self, table: PhysAddr, index: usize) -> u64;
    /// Writes entry `index` of `table` in one store; stores become visible in the order of the calls.
    fn write(&mut self, table: PhysAddr, index: usize, entry: u64);
    /// Clears `bits` of an entry that hardware may change at the same time; what it was before.
    fn clear(&mut self, table: PhysAddr, index: usize, bits: u64) -> u64;
    /// A zeroed frame, if there is one left.
    fn alloc_table(&mut self) -> Option<PhysAddr>;
    /// Takes back a frame of `alloc_table`.
    fn free_table(&mut self, table: PhysAddr);
}

/// The layout of an entry. Zero is never present.
pub trait PtFormat {
    /// Levels of a full walk.
    const LEVELS: usize = 4;
    /// Set by hardware in a leaf of any level when its page is written.
    const DIRTY: u64;
    /// The entry of `level`, above 1, that links `table`, with every right: leaves decide.
    fn table(table: PhysAddr, level: usize) -> u64;
    /// The entry that maps a page of `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) at `pa`, aligned to that size.
    fn leaf(pa: PhysAddr, attr: Attr, level: usize) -> u64;
    /// Whether hardware would follow or use the entry.
    fn is_present(entry: u64) -> bool;
    /// Whether a present entry of `level` maps a page rather than links a table.
    fn is_leaf(entry: u64, level: usize) -> bool;
    /// The table or page that a present entry of `level` points at.
    fn addr(entry: u64, level: usize) -> PhysAddr;
    /// The attributes of a leaf: those it was made with, as far as the format can tell them apart.
    fn attr(entry: u64) -> Attr;
}

/// Rights and memory type of a translation. Every format makes a present page readable, whatever `read` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
    /// Uncached; write-back otherwise.
    pub uncached: bool,
    /// Accessible in user mode (host format only; the others always set it).
    pub user: bool,
}

impl Attr {
    /// Whether a cached translation with `self` would allow, or mean, something that `new` does not.
    const fn is_stale_under(self, new: Attr) -> bool {
        self.read && !new.read
            || self.write && !new.write
            || self.execute && !new.execute
            || self.user && !new.user
            || self.uncached != new.uncached
    }
}

/// Size of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// 4 KiB.
    K4,
    /// 2 MiB.
    M2,
    /// 1 GiB.
    G1,
}

impl PageSize {
    /// The level whose leaves have this size.
    pub const fn level(self) -> usize {
        match self {
            PageSize::K4 => 1,
            PageSize::M2 => 2,
            PageSize::G1 => 3,
        }
    }

    /// Bytes in a page of this size.
    pub const fn bytes(self) -> u64 {
        walk::level_bytes(self.level())
    }

    /// 4 KiB pages in a page of this size.
    pub const fn pages(self) -> u64 {
        walk::level_pages(self.level())
    }
}

/// Why an operation stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No frame for a table.
    NoMemory,
    /// The address translates to something else.
    Occupied,
}

/// How far an operation got before an error. What is done is whole: each page is in its old or its new state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Pages, from the first, that were dealt with.
    pub pages: u64,
    /// Whether those took rights away: a flush is due.
    pub reduced_rights: bool,
    /// What went wrong with the next page.
    pub error: MapError,
}

/// What [`map`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapDone {
    /// Pages, from the first, that are mapped; fewer than asked only if the limit was reached.
    pub pages: u64,
    /// A page had a right that it lost, another memory type, or another size: a flush is due.
    pub reduced_rights: bool,
}

/// What [`unmap`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// Pages that translated to the expected frames and no longer do; a flush is due if there are any.
    pub pages_removed: u64,
    /// Pages, from the first, that were dealt with; fewer than asked only if the limit was reached.
    pub visited_pages: u64,
}

/// What an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Physical address of the byte.
    pub pa: PhysAddr,
    /// Attributes of the page.
    pub attr: Attr,
    /// Size of the page.
    pub size: PageSize,
}
