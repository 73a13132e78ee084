//! Taking a whole tree apart.

use super::{ENTRIES, PtFormat, PtMemory};
use crate::addr::PhysAddr;

/// What a present entry costs, in visits to entries that are written.
const COST: usize = 2;

/// Absent entries that are passed over at once.
const GROUP: usize = 8;

/// Frees the tables below `root`, depth first: true if none is left.
///
/// Stops once it has spent `budget`, which it counts down, and has freed a table: `COST` for each present entry, and 1 for a
/// `GROUP` of absent ones. With `user_half_only`, entries 256 and up of the root are left alone: they are shared kernel tables. The
/// root itself is the caller's to free. No CPU may use the tree, or hold cached parts of it, from the first call on. A table is
/// unlinked when it is freed, so the next call finds by itself where to go on, past up to 512 absent entries of each level.
pub fn destroy<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    user_half_only: bool,
    budget: &mut usize,
) -> bool {
    let entries = if user_half_only { ENTRIES / 2 } else { ENTRIES };
    free_below::<F, M>(mem, root, F::LEVELS, entries, budget)
}

/// Frees the tables linked by the first `entries` entries of `table`; true if all are. Recursion is as deep as levels.
fn free_below<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    table: PhysAddr,
    level: usize,
    entries: usize,
    budget: &mut usize,
) -> bool {
    let mut next = 0;
    while let Some(i) = present_from::<F, M>(mem, table, next, entries) {
        *budget = budget.saturating_sub(COST + (i - next) / GROUP);
        next = i + 1;
        let entry = mem.read(table, i);
        if F::is_leaf(entry, level) {
            continue;
        }
        let child = F::addr(entry, level);
        // Leaves of a last-level table need no visit: the frame goes back as it is.
        if level > 2 && !free_below::<F, M>(mem, child, level - 1, ENTRIES, budget) {
            return false;
        }
        mem.write(table, i, 0);
        mem.free_table(child);
        if *budget == 0 {
            return false;
        }
    }
    *budget = budget.saturating_sub((entries - next) / GROUP);
    true
}

/// The first present entry of `table` from `next` on, and before `entries`.
fn present_from<F: PtFormat, M: PtMemory>(
    mem: &M,
    table: PhysAddr,
    mut next: usize,
    entries: usize,
) -> Option<usize> {
    while next < entries {
        // Absent entries are zero.
        if next.is_multiple_of(GROUP) && (next..next + GROUP).fold(0, |all, i| all | mem.read(table, i)) == 0
        {
            next += GROUP;
        } else if F::is_present(mem.read(table, next)) {
            return Some(next);
        } else {
            next += 1;
        }
    }
    None
}
