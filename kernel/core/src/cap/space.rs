//! An object space: a directory page of tables, each a page of slots.

use hypercall_abi::{PAGE_SIZE, Selector};

use super::slot::SLOT_SIZE;

/// Slots in a table.
pub const TABLE_SLOTS: usize = PAGE_SIZE as usize / SLOT_SIZE;
/// Tables in the directory: 8 bytes for each.
pub const DIRECTORY_ENTRIES: usize = PAGE_SIZE as usize / size_of::<u64>();

const _: () = assert!(TABLE_SLOTS * DIRECTORY_ENTRIES == Selector::END as usize);

/// Index in the directory and index in the table of a selector's slot; `None` for the null selector and past the end.
pub const fn split(selector: Selector) -> Option<(usize, usize)> {
    if selector.0 == Selector::NULL.0 || selector.0 >= Selector::END {
        return None;
    }
    let index = selector.0 as usize;
    Some((index / TABLE_SLOTS, index % TABLE_SLOTS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_selector_but_null_has_a_slot_of_its_own() {
        let slots: BTreeSet<_> = (0..Selector::END).filter_map(|s| split(Selector(s))).collect();
        assert_eq!(slots.len(), Selector::END as usize - 1);
        assert!(slots.iter().all(|&(table, slot)| table < DIRECTORY_ENTRIES && slot < TABLE_SLOTS));
    }

    #[test]
    fn selectors_that_name_nothing_have_no_slot() {
        assert_eq!(split(Selector::NULL), None);
        assert_eq!(split(Selector(Selector::END)), None);
        assert_eq!(split(Selector(u32::MAX)), None);
    }
}
