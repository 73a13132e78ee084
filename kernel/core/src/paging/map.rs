//! Mapping.

use core::marker::PhantomData;

use hypercall_abi::PAGE_SIZE;

use super::walk::{Position, index, level_bytes, level_pages, split, walk};
use super::{Attr, ENTRIES, MapDone, MapError, PageSize, Partial, PtFormat, PtMemory};
use crate::addr::PhysAddr;

/// Maps `pages` pages from `va` to the frames from `pa`, both multiples of 4 KiB, in pages of up to `largest`.
///
/// A page that already translates to its frame takes on `attr`; one that translates to another frame is
/// [`MapError::Occupied`].
pub fn map<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    va: u64,
    pa: PhysAddr,
    pages: u64,
    attr: Attr,
    largest: PageSize,
) -> Result<MapDone, Partial> {
    map_bounded::<F, M>(mem, root, va, pa, pages, attr, largest, usize::MAX)
}

/// [`map`] that stops once it has visited `limit` entries (and always after some progress): the caller goes on from
/// [`MapDone::pages`].
#[expect(
    clippy::too_many_arguments,
    reason = "two ranges, their attributes and a bound: all of them plain numbers"
)]
pub fn map_bounded<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    va: u64,
    pa: PhysAddr,
    pages: u64,
    attr: Attr,
    largest: PageSize,
    limit: usize,
) -> Result<MapDone, Partial> {
    debug_assert!(va.is_multiple_of(PAGE_SIZE) && pa.is_page_aligned());
    // Through an entry and back, so that comparing attributes compares only what the format can express.
    let attr = F::attr(F::leaf(PhysAddr(0), attr, 1));
    let mut run = Run::<F, M> { mem, root, attr, reduced_rights: false, budget: limit, format: PhantomData };
    let mut done = 0;
    while done < pages && (run.budget > 0 || done == 0) {
        let next = Chunk {
            va: va.wrapping_add(done * PAGE_SIZE),
            pa: pa.offset(done * PAGE_SIZE),
            pages: pages - done,
        };
        match run.step(next, largest) {
            Ok(pages) => done += pages,
            Err((pages, error)) => {
                return Err(Partial { pages: done + pages, reduced_rights: run.reduced_rights, error });
            }
        }
    }
    Ok(MapDone { pages: done, reduced_rights: run.reduced_rights })
}

/// What remains to be mapped.
#[derive(Clone, Copy)]
struct Chunk {
    va: u64,
    pa: PhysAddr,
    pages: u64,
}

impl Chunk {
    /// The highest level whose pages fit at the start of the chunk.
    fn level(self, largest: PageSize) -> usize {
        let fits = |level| {
            (self.va | self.pa.0).is_multiple_of(level_bytes(level)) && self.pages >= level_pages(level)
        };
        (2..=largest.level()).rev().find(|&level| fits(level)).unwrap_or(1)
    }
}

/// One call of `map`.
struct Run<'a, F, M> {
    mem: &'a mut M,
    root: PhysAddr,
    attr: Attr,
    reduced_rights: bool,
    budget: usize,
    format: PhantomData<F>,
}

impl<F: PtFormat, M: PtMemory> Run<'_, F, M> {
    fn spend(&mut self, entries: usize) {
        self.budget = self.budget.saturating_sub(entries);
    }

    /// Maps the first pages of `chunk`, at least one, and says how many; with an error, how many before it.
    fn step(&mut self, chunk: Chunk, largest: PageSize) -> Result<u64, (u64, MapError)> {
        let mut target = chunk.level(largest);
        loop {
            let at = walk::<F, M>(self.mem, self.root, chunk.va, target);
            self.spend(1);
            if !F::is_present(at.entry) && at.level > target {
                self.link_table(at, chunk.va).map_err(|e| (0, e))?;
            } else if F::is_present(at.entry) && F::is_leaf(at.entry, at.level) && at.level > target {
                if let Some(pages) = self.inside_superpage(at, chunk).map_err(|e| (0, e))? {
                    return Ok(pages);
                }
            } else if F::is_present(at.entry) && !F::is_leaf(at.entry, at.level) {
                // Smaller pages are here already: keep their table.
                target -= 1;
            } else {
                return self.fill(at, chunk);
            }
        }
    }

    /// Links an empty table.
    fn link_table(&mut self, at: Position, va: u64) -> Result<(), MapError> {
        let table = self.mem.alloc_table().ok_or(MapError::NoMemory)?;
        self.mem.write(at.table, index(va, at.level), F::table(table, at.level));
        Ok(())
    }

    /// The chunk begins inside a superpage: how many of its pages that maps as wanted, or `None` after a split.
    fn inside_superpage(&mut self, at: Position, chunk: Chunk) -> Result<Option<u64>, MapError> {
        let offset = chunk.va & (level_bytes(at.level) - 1);
        if F::addr(at.entry, at.level).offset(offset) != chunk.pa {
            return Err(MapError::Occupied);
        }
        if F::attr(at.entry) == self.attr {
            let rest = (level_bytes(at.level) - offset) / PAGE_SIZE;
            return Ok(Some(rest.min(chunk.pages)));
        }
        split::<F, M>(self.mem, at, chunk.va)?;
        self.spend(ENTRIES);
        // A TLB may hold pages of both sizes until it is flushed, and some CPUs fail a machine check on that.
        self.reduced_rights = true;
        Ok(None)
    }

    /// Writes leaves into the table at `at`, up to its end, the end of the chunk, or a link to a smaller table.
    fn fill(&mut self, at: Position, chunk: Chunk) -> Result<u64, (u64, MapError)> {
        let size = level_pages(at.level);
        let mut done = 0;
        for i in index(chunk.va, at.level)..ENTRIES {
            if chunk.pages - done < size || (self.budget == 0 && done > 0) {
                break;
            }
            self.spend(1);
            let old = self.mem.read(at.table, i);
            let pa = chunk.pa.offset(done * PAGE_SIZE);
            if F::is_present(old) {
                if !F::is_leaf(old, at.level) {
                    break;
                }
                if F::addr(old, at.level) != pa {
                    return Err((done, MapError::Occupied));
                }
                self.reduced_rights |= F::attr(old).is_stale_under(self.attr);
            }
            if !F::is_present(old) || F::attr(old) != self.attr {
                // Hardware may set the old leaf's dirty flag until it is replaced: the page counts as written.
                let dirty = if F::is_present(old) { F::DIRTY } else { 0 };
                self.mem.write(at.table, i, F::leaf(pa, self.attr, at.level) | dirty);
            }
            done += size;
        }
        Ok(done)
    }
}
