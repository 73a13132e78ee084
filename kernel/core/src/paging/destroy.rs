//! Taking a whole tree apart.

use super::{ENTRIES, PtFormat, PtMemory};
use crate::addr::PhysAddr;

/// Frees the tables below `root`, depth first: true if none is left.
///
/// Stops once it has visited `budget` entries, which it counts down, and has freed a table. With `user_half_only`, entries 256
/// and up of the root are left alone: they are shared kernel tables. The root itself is the caller's to free. No CPU may use the
/// tree, or hold cached parts of it, from the first call on. A table is unlinked when it is freed, so the next call finds by
/// itself where to go on, with up to 512 visits for each level.
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
    for i in 0..entries {
        *budget = budget.saturating_sub(1);
        let entry = mem.read(table, i);
        if !F::is_present(entry) || F::is_leaf(entry, level) {
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
    true
}
