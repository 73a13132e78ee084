//! Walking, looking up and splitting.

use hypercall_abi::PAGE_SIZE;

use super::{ENTRIES, MapError, PageSize, PtFormat, PtMemory, Translation};
use crate::addr::PhysAddr;

/// Bytes that one entry of `level` covers.
pub(super) const fn level_bytes(level: usize) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// 4 KiB pages that one entry of `level` covers.
pub(super) const fn level_pages(level: usize) -> u64 {
    1 << (9 * (level - 1))
}

/// Index of the entry for `va` in a table of `level`.
pub(super) const fn index(va: u64, level: usize) -> usize {
    (va >> (12 + 9 * (level - 1))) as usize % ENTRIES
}

/// Where a walk stopped.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) table: PhysAddr,
    pub(super) level: usize,
    pub(super) entry: u64,
}

/// Walks from `root` toward `va`: stops at level `target`, or above it at an entry that links no table.
pub(super) fn walk<F: PtFormat, M: PtMemory>(mem: &M, root: PhysAddr, va: u64, target: usize) -> Position {
    let mut table = root;
    let mut level = F::LEVELS;
    loop {
        let entry = mem.read(table, index(va, level));
        if level == target || !F::is_present(entry) || F::is_leaf(entry, level) {
            return Position { table, level, entry };
        }
        table = F::addr(entry, level);
        level -= 1;
    }
}

/// Replaces the superpage at `at`, which covers `va`, by a table of the next smaller pages with the same
/// translations. Changes nothing if there is no frame for the table.
pub(super) fn split<F: PtFormat, M: PtMemory>(mem: &mut M, at: Position, va: u64) -> Result<(), MapError> {
    let table = mem.alloc_table().ok_or(MapError::NoMemory)?;
    let (base, attr) = (F::addr(at.entry, at.level), F::attr(at.entry));
    let below = at.level - 1;
    // Hardware may set the large page's dirty flag until it is unlinked: all of it counts as written.
    let mut leaf = F::leaf(base, attr, below) | F::DIRTY;
    for i in 0..ENTRIES {
        mem.write(table, i, leaf);
        // The address is a field of its own in every format.
        leaf += level_bytes(below);
    }
    mem.write(at.table, index(va, at.level), F::table(table, at.level));
    Ok(())
}

/// What `va` translates to, if anything.
pub fn lookup<F: PtFormat, M: PtMemory>(mem: &M, root: PhysAddr, va: u64) -> Option<Translation> {
    let at = walk::<F, M>(mem, root, va, 1);
    if !F::is_present(at.entry) {
        return None;
    }
    let size = match at.level {
        1 => PageSize::K4,
        2 => PageSize::M2,
        _ => PageSize::G1,
    };
    let pa = F::addr(at.entry, at.level).offset(va & (size.bytes() - 1));
    Some(Translation { pa, attr: F::attr(at.entry), size })
}
