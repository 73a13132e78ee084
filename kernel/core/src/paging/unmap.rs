//! Unmapping.

use hypercall_abi::PAGE_SIZE;

use super::walk::{Position, index, level_bytes, level_pages, split, walk};
use super::{ENTRIES, Partial, PtFormat, PtMemory, Unmapped};
use crate::addr::PhysAddr;

/// Removes, out of `pages` pages from `va`, the translations to the frames from `frame`: page n only if it translates
/// to frame n. Others stay, and absent tables are skipped as wholes. Tables stay, even empty ones.
///
/// Stops once it has visited `budget` entries, which it counts down, and always after some progress: the caller goes on from
/// [`Unmapped::visited_pages`]. Splitting a superpage that lies only partly in the range takes a table: [`super::MapError::NoMemory`]
/// is possible.
pub fn unmap<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    va: u64,
    pages: u64,
    frame: PhysAddr,
    budget: &mut usize,
) -> Result<Unmapped, Partial> {
    debug_assert!(va.is_multiple_of(PAGE_SIZE) && frame.is_page_aligned());
    let mut done = Unmapped { pages_removed: 0, visited_pages: 0 };
    while done.visited_pages < pages && (*budget > 0 || done.visited_pages == 0) {
        let next = Chunk {
            va: va.wrapping_add(done.visited_pages * PAGE_SIZE),
            frame: frame.offset(done.visited_pages * PAGE_SIZE),
            pages: pages - done.visited_pages,
        };
        let at = walk::<F, M>(mem, root, next.va, 1);
        *budget = budget.saturating_sub(1);
        let part = if at.level == 1 {
            small_pages::<F, M>(mem, at, next, budget)
        } else {
            match large_entry::<F, M>(mem, at, next) {
                Some(part) => part,
                None => {
                    if let Err(error) = split::<F, M>(mem, at, next.va) {
                        let pages = done.visited_pages;
                        return Err(Partial { pages, reduced_rights: done.pages_removed > 0, error });
                    }
                    *budget = budget.saturating_sub(ENTRIES);
                    continue;
                }
            }
        };
        done.pages_removed += part.pages_removed;
        done.visited_pages += part.visited_pages;
    }
    Ok(done)
}

/// What remains to be unmapped.
#[derive(Clone, Copy)]
struct Chunk {
    va: u64,
    frame: PhysAddr,
    pages: u64,
}

/// Removes matching entries of a table of 4 KiB pages, up to its end or the end of the chunk.
fn small_pages<F: PtFormat, M: PtMemory>(
    mem: &mut M,
    at: Position,
    chunk: Chunk,
    budget: &mut usize,
) -> Unmapped {
    let mut done = Unmapped { pages_removed: 0, visited_pages: 0 };
    for i in index(chunk.va, 1)..ENTRIES {
        if done.visited_pages == chunk.pages || (*budget == 0 && done.visited_pages > 0) {
            break;
        }
        *budget = budget.saturating_sub(1);
        let entry = mem.read(at.table, i);
        if F::is_present(entry) && F::addr(entry, 1) == chunk.frame.offset(done.visited_pages * PAGE_SIZE) {
            mem.write(at.table, i, 0);
            done.pages_removed += 1;
        }
        done.visited_pages += 1;
    }
    done
}

/// Deals with a hole or a superpage; `None` if that has to be split.
fn large_entry<F: PtFormat, M: PtMemory>(mem: &mut M, at: Position, chunk: Chunk) -> Option<Unmapped> {
    let offset = chunk.va & (level_bytes(at.level) - 1);
    let rest = (level_bytes(at.level) - offset) / PAGE_SIZE;
    let matches = F::is_present(at.entry) && F::addr(at.entry, at.level).offset(offset) == chunk.frame;
    if !matches {
        return Some(Unmapped { pages_removed: 0, visited_pages: rest.min(chunk.pages) });
    }
    let size = level_pages(at.level);
    if rest == size && chunk.pages >= size {
        mem.write(at.table, index(chunk.va, at.level), 0);
        return Some(Unmapped { pages_removed: size, visited_pages: size });
    }
    None
}
