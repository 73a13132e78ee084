//! Nested page tables in the format of this machine.

use super::features;
use crate::flush_checker;
use kcore::addr::PhysAddr;
use kcore::paging::{
    self, Attr, Collected, EptFormat, MapDone, NptFormat, PageSize, Partial, PtMemory, Translation, Unmapped,
};

fn uses_ept() -> bool {
    features().is_ok_and(|features| features.is_vmx)
}

fn largest() -> PageSize {
    if features().is_ok_and(|features| features.has_nested_1g) { PageSize::G1 } else { PageSize::M2 }
}

/// Maps `pages` pages at guest-physical `address` to frames from `pa` on, with about `limit` visits to entries.
pub fn map<M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    address: u64,
    pa: PhysAddr,
    pages: u64,
    attr: Attr,
    limit: usize,
) -> Result<MapDone, Partial> {
    flush_checker::nested(root, || {
        if uses_ept() {
            paging::map_bounded::<EptFormat, M>(mem, root, address, pa, pages, attr, largest(), limit)
        } else {
            paging::map_bounded::<NptFormat, M>(mem, root, address, pa, pages, attr, largest(), limit)
        }
    })
}

/// Removes translations that point at frames from `frame` on, with at most `budget` visits to entries.
pub fn unmap<M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    address: u64,
    pages: u64,
    frame: PhysAddr,
    budget: &mut usize,
) -> Result<Unmapped, Partial> {
    flush_checker::nested(root, || {
        if uses_ept() {
            paging::unmap::<EptFormat, M>(mem, root, address, pages, frame, budget)
        } else {
            paging::unmap::<NptFormat, M>(mem, root, address, pages, frame, budget)
        }
    })
}

/// What guest-physical `address` leads to, if that is RAM.
pub fn ram_at<M: PtMemory>(mem: &M, root: PhysAddr, address: u64) -> Option<Translation> {
    let found = if uses_ept() {
        paging::lookup::<EptFormat, M>(mem, root, address)
    } else {
        paging::lookup::<NptFormat, M>(mem, root, address)
    };
    // Devices are uncached, and RAM never is.
    found.filter(|found| !found.attr.uncached)
}

/// Collects and clears dirty flags of `units` units of `size` from `address` on.
pub fn collect_dirty<M: PtMemory>(
    mem: &mut M,
    root: PhysAddr,
    address: u64,
    units: u64,
    size: PageSize,
) -> Collected {
    flush_checker::nested(root, || {
        if uses_ept() {
            paging::collect_dirty::<EptFormat, M>(mem, root, address, units, size)
        } else {
            paging::collect_dirty::<NptFormat, M>(mem, root, address, units, size)
        }
    })
}

/// Frees tables below `root`, which nobody uses, with `budget` visits to entries; true if none is left.
pub fn destroy<M: PtMemory>(mem: &mut M, root: PhysAddr, budget: &mut usize) -> bool {
    flush_checker::nested_end(root);
    if uses_ept() {
        paging::destroy::<EptFormat, M>(mem, root, false, budget)
    } else {
        paging::destroy::<NptFormat, M>(mem, root, false, budget)
    }
}
