//! Dirty flags: which pages were written through these tables.

use super::walk::{index, level_bytes, split, walk};
use super::{ENTRIES, MapError, PageSize, PtFormat, PtMemory};
use crate::addr::PhysAddr;

/// Words of a report.
const REPORT_WORDS: usize = 3;

/// One bit for each unit of memory.
pub type Report = [u64; REPORT_WORDS];

/// Units of `size` in one call of [`collect_dirty`]: a bound on the entries that are looked at.
pub const fn report_units(size: PageSize) -> u64 {
    match size {
        PageSize::K4 => 64 * REPORT_WORDS as u64,
        _ => 8,
    }
}

/// What [`collect_dirty`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bit n: unit n was written.
    pub report: Report,
    /// A flag was cleared, or a page split: a flush is due, also after an error.
    pub needs_flush: bool,
    /// There was no frame to split a page that was written and is larger than the units.
    pub error: Option<MapError>,
}

/// Collects and clears the dirty flags of `units` units of `size` from `va` on. A larger page that was written is split, and its
/// units count as written. No write is lost: whatever comes after a flag was cleared, and the flush, sets it again. After an
/// error no flag was cleared.
pub fn collect_dirty<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    va: u64,
    units: u64,
    size: PageSize,
) -> Collected {
    debug_assert!(units <= report_units(size) && va.is_multiple_of(size.bytes()));
    let mut done = Collected::default();
    let (level, end) = (size.level(), va + units * size.bytes());
    // Units whose entries are in one table, or which are part of one larger page.
    let span = level_bytes(level + 1);
    let spans = (va & !(span - 1)..end).step_by(span as usize);
    for start in spans.clone() {
        match split_dirty::<F, M>(mem, root, start, level) {
            Ok(has_split) => done.needs_flush |= has_split,
            Err(error) => {
                done.error = Some(error);
                return done;
            }
        }
    }
    for start in spans {
        let at = walk::<F, M>(mem, root, start, level);
        // One that is still larger was clean a moment ago. If it is not any more, it is reported, and again next time.
        let is_large = at.level > level && F::is_leaf(at.entry, at.level);
        let is_all_dirty = is_large && F::is_present(at.entry) && at.entry & F::DIRTY != 0;
        for address in (start.max(va)..end.min(start + span)).step_by(size.bytes() as usize) {
            if is_all_dirty || at.level == level && clear_unit::<F, M>(mem, at.table, address, level) {
                let unit = ((address - va) / size.bytes()) as usize;
                done.report[unit / 64] |= 1 << (unit % 64);
                done.needs_flush = true;
            }
        }
    }
    done
}

/// Clears the flags of a unit, which has an entry of its own in `table`; whether one was set.
fn clear_unit<F: PtFormat, M: PtMemory>(mem: &mut M, table: PhysAddr, va: u64, level: usize) -> bool {
    let slot = index(va, level);
    let entry = mem.read(table, slot);
    if !F::is_present(entry) || F::is_leaf(entry, level) {
        return clear::<F, M>(mem, table, slot);
    }
    let below = F::addr(entry, level);
    (0..ENTRIES).fold(false, |any, slot| clear::<F, M>(mem, below, slot) | any)
}

/// Splits a page above `level` that was written, down to `level`; whether there was one.
fn split_dirty<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    va: u64,
    level: usize,
) -> Result<bool, MapError> {
    let mut has_split = false;
    loop {
        let at = walk::<F, M>(mem, root, va, level);
        let is_large = at.level > level && F::is_present(at.entry) && F::is_leaf(at.entry, at.level);
        if !is_large || at.entry & F::DIRTY == 0 {
            return Ok(has_split);
        }
        split::<F, M>(mem, at, va & !(level_bytes(at.level) - 1))?;
        has_split = true;
    }
}

/// Clears the flag of a leaf; whether it was set.
fn clear<F: PtFormat, M: PtMemory>(mem: &mut M, table: PhysAddr, index: usize) -> bool {
    let entry = mem.read(table, index);
    F::is_present(entry) && entry & F::DIRTY != 0 && mem.clear(table, index, F::DIRTY) & F::DIRTY != 0
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeMemory;
    use super::super::{Attr, EptFormat, NptFormat, lookup, map, unmap};
    use super::*;

    const ATTR: Attr = Attr { read: true, write: true, execute: true, uncached: false, user: true };
    const VA: u64 = 1 << 30;
    const PA: PhysAddr = PhysAddr(3 << 30);

    /// What the CPU does when the guest writes.
    fn write<F: PtFormat>(mem: &mut FakeMemory, root: PhysAddr, va: u64) {
        let at = walk::<F, _>(mem, root, va, 1);
        mem.write(at.table, index(va, at.level), at.entry | F::DIRTY);
    }

    fn mapped<F: PtFormat>(pages: u64) -> (FakeMemory, PhysAddr) {
        let (mut mem, root) = FakeMemory::new(64);
        map::<F, _>(&mut mem, root, VA, PA, pages, ATTR, PageSize::G1).unwrap();
        (mem, root)
    }

    fn small_pages_are_reported_once<F: PtFormat>() {
        let (mut mem, root) = mapped::<F>(200);
        write::<F>(&mut mem, root, VA + 0x1000);
        write::<F>(&mut mem, root, VA + 150 * 0x1000);
        let first = collect_dirty::<F, _>(&mut mem, root, VA, 192, PageSize::K4);
        assert_eq!(first.report, [2, 0, 1 << (150 - 128)]);
        assert!(first.needs_flush);
        let again = collect_dirty::<F, _>(&mut mem, root, VA, 192, PageSize::K4);
        assert_eq!(again, Collected::default());
    }

    #[test]
    fn a_page_that_was_written_is_reported_once() {
        small_pages_are_reported_once::<EptFormat>();
        small_pages_are_reported_once::<NptFormat>();
    }

    #[test]
    fn a_large_page_is_one_unit_or_split() {
        let (mut mem, root) = mapped::<EptFormat>(1024);
        write::<EptFormat>(&mut mem, root, VA + (2 << 20));
        let large = collect_dirty::<EptFormat, _>(&mut mem, root, VA, 8, PageSize::M2);
        assert_eq!(large.report, [2, 0, 0]);
        assert_eq!(lookup::<EptFormat, _>(&mem, root, VA).unwrap().size, PageSize::M2);
        write::<EptFormat>(&mut mem, root, VA);
        let small = collect_dirty::<EptFormat, _>(&mut mem, root, VA + 0x1000, 64, PageSize::K4);
        assert_eq!(small.report, [u64::MAX, 0, 0]);
        assert_eq!(lookup::<EptFormat, _>(&mem, root, VA).unwrap().size, PageSize::K4);
        // The rest of the large page was not asked for, and is not lost.
        let rest = collect_dirty::<EptFormat, _>(&mut mem, root, VA, 1, PageSize::K4);
        assert_eq!(rest.report, [1, 0, 0]);
    }

    #[test]
    fn a_call_that_crosses_the_end_of_a_table_reports_both_sides() {
        let (mut mem, root) = mapped::<EptFormat>(700);
        let va = VA + 500 * 0x1000;
        for page in [499, 500, 511, 512, 650, 692] {
            write::<EptFormat>(&mut mem, root, VA + page * 0x1000);
        }
        // The first 512 pages are one large page: all of it was written.
        let done = collect_dirty::<EptFormat, _>(&mut mem, root, va, 192, PageSize::K4);
        assert_eq!(done.report, [0x1fff, 0, 1 << (650 - 500 - 128)]);
        let again = collect_dirty::<EptFormat, _>(&mut mem, root, va, 192, PageSize::K4);
        assert_eq!(again, Collected::default());
        let behind = collect_dirty::<EptFormat, _>(&mut mem, root, VA + 692 * 0x1000, 1, PageSize::K4);
        assert_eq!(behind.report, [1, 0, 0]);
    }

    #[test]
    fn a_clean_large_page_stays_large() {
        let (mut mem, root) = mapped::<NptFormat>(512);
        let done = collect_dirty::<NptFormat, _>(&mut mem, root, VA, 192, PageSize::K4);
        assert_eq!(done, Collected::default());
        assert_eq!(lookup::<NptFormat, _>(&mem, root, VA).unwrap().size, PageSize::M2);
    }

    #[test]
    fn a_table_of_small_pages_is_one_large_unit() {
        let (mut mem, root) = mapped::<NptFormat>(511);
        write::<NptFormat>(&mut mem, root, VA + 77 * 0x1000);
        let done = collect_dirty::<NptFormat, _>(&mut mem, root, VA, 2, PageSize::M2);
        assert_eq!(done.report, [1, 0, 0]);
        let again = collect_dirty::<NptFormat, _>(&mut mem, root, VA, 192, PageSize::K4);
        assert_eq!(again.report, [0; 3]);
    }

    #[test]
    fn without_memory_for_a_split_nothing_is_cleared() {
        let (mut mem, root) = mapped::<EptFormat>(512);
        write::<EptFormat>(&mut mem, root, VA);
        mem.quota = 0;
        let done = collect_dirty::<EptFormat, _>(&mut mem, root, VA, 1, PageSize::K4);
        assert_eq!((done.error, done.report), (Some(MapError::NoMemory), [0; 3]));
        let large = collect_dirty::<EptFormat, _>(&mut mem, root, VA, 1, PageSize::M2);
        assert_eq!(large.report, [1, 0, 0]);
    }

    #[test]
    fn a_page_that_changes_its_rights_or_its_size_counts_as_written() {
        let (mut mem, root) = mapped::<EptFormat>(512);
        unmap::<EptFormat, _>(&mut mem, root, VA, 1, PA, &mut 1).unwrap();
        let split = collect_dirty::<EptFormat, _>(&mut mem, root, VA, 2, PageSize::K4);
        assert_eq!(split.report, [2, 0, 0]);
        let read_only = Attr { write: false, ..ATTR };
        let (va, pa) = (VA + 0x1000, PA.offset(0x1000));
        map::<EptFormat, _>(&mut mem, root, va, pa, 1, read_only, PageSize::K4).unwrap();
        let narrowed = collect_dirty::<EptFormat, _>(&mut mem, root, va, 1, PageSize::K4);
        assert_eq!(narrowed.report, [1, 0, 0]);
    }
}
