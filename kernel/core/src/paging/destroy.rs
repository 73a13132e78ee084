//! Taking a whole tree apart.

use super::{ENTRIES, PtFormat, PtMemory};
use crate::addr::PhysAddr;

/// Frees the tables below `root`, depth first, at most `limit` of them (but at least one): true if none is left.
///
/// With `user_half_only`, entries 256 and up of the root are left alone: they are shared kernel tables. The root itself
/// is the caller's to free. No CPU may use the tree, or hold cached parts of it, from the first call on. A table is
/// unlinked when it is freed, so the next call finds by itself where to go on; each freed table costs up to 512 reads,
/// and finding the place up to 512 for each level.
pub fn destroy<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    user_half_only: bool,
    limit: usize,
) -> bool {
    let entries = if user_half_only { ENTRIES / 2 } else { ENTRIES };
    let mut left = limit.max(1);
    free_below::<F, M>(mem, root, F::LEVELS, entries, &mut left)
}

/// Frees the tables linked by the first `entries` entries of `table`; true if all are. Recursion is as deep as levels.
fn free_below<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    table: PhysAddr,
    level: usize,
    entries: usize,
    left: &mut usize,
) -> bool {
    for i in 0..entries {
        let entry = mem.read(table, i);
        if !F::is_present(entry) || F::is_leaf(entry, level) {
            continue;
        }
        let child = F::addr(entry, level);
        // Leaves of a last-level table need no visit: the frame goes back as it is.
        if level > 2 && !free_below::<F, M>(mem, child, level - 1, ENTRIES, left) {
            return false;
        }
        if *left == 0 {
            return false;
        }
        mem.write(table, i, 0);
        mem.free_table(child);
        *left -= 1;
    }
    true
}
