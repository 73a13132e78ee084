//! Undoing what capabilities mapped and are bound to.

use crate::cap::{Target, Tree};
use core::sync::atomic::Ordering;
use hypercall_abi::{ObjectType, PAGE_SIZE, Status};
use kcore::addr::PhysAddr;
use kcore::cap::Slots;
use kcore::paging::{self, HostFormat, PageSize};
use khw::iommu;
use khw::mem::Tables;
use khw::virt::nested;

impl Tree {
    /// Undoes what a capability mapped or is bound to. False if something is left for the call's next share.
    pub fn unmap(&mut self, slot: u32) -> bool {
        let entry = *self.slot(slot);
        let Some(target) = Target::of(&entry) else { return true };
        self.reclaim.needs_grace = true;
        match target {
            Target::Pd(pd) if entry.kind == ObjectType::Ports as u8 => {
                pd.set_ports(entry.object, entry.count, false);
            }
            Target::Pd(_) | Target::Guest(_) | Target::Dma(_) => {
                if !self.unmap_memory(target, slot) {
                    return false;
                }
            }
            Target::Device(_) => iommu::withdraw((entry.object + entry.address) as u16),
            Target::Doorbell(space) => space.unbind_doorbell(entry.address),
            Target::Utcb(ec) => ec.utcb.store(0, Ordering::Release),
            Target::VirtualApic(vcpu) => {
                vcpu.apic.frame.store(0, Ordering::Release);
                vcpu.kick();
            }
            Target::EoiWord(vcpu) => vcpu.apic.eoi_word.store(0, Ordering::Release),
            Target::Trace(ring) => ring.set_memory(0, 0),
            Target::VcpuPage(vcpu) => vcpu.lose_page(self.is_ending(vcpu.header())),
        }
        target.bound_list().unbind(self, slot);
        true
    }

    /// Removes the translations that a memory capability may have made; false if some are left. A space remembers how far it is with one
    /// capability, so another one waits.
    fn unmap_memory(&mut self, target: Target, slot: u32) -> bool {
        let progress = &target.bound_list().unmapping;
        let (slot, done, is_own) = match progress.get() {
            (0, _) => (slot, 0, true),
            (begun, done) => (begun, done, begun == slot),
        };
        let entry = self.slot(slot);
        let (address, first) = (entry.address + done * PAGE_SIZE, entry.object + done);
        let left = entry.count - done;
        let visited = match self.unmap_pages(target, address, first, left) {
            Ok(visited) => visited,
            Err(_) => self.unmap_large_page(target, address, first).min(left),
        };
        let is_done = visited == left;
        progress.set(if is_done { (0, 0) } else { (slot, done + visited) });
        is_done && is_own
    }

    /// Removes translations that point at the frames from `first` on: of as many pages as are returned, 1 at least. Fails if a large
    /// page must be split and there is no frame for it.
    pub fn unmap_pages(
        &mut self,
        target: Target,
        address: u64,
        first: u64,
        pages: u64,
    ) -> Result<u64, Status> {
        self.reclaim.needs_grace = true;
        let frame = PhysAddr(first << 12);
        let left = &mut self.reclaim.left;
        let result = match target {
            Target::Pd(pd) => {
                // SAFETY: the tables of a space are paid from its pool, and only changed under the tree lock, which is held.
                let mut tables = unsafe { Tables::new(pd.pool) };
                paging::unmap::<HostFormat, _>(&mut tables, pd.root, address, pages, frame, left)
            }
            Target::Guest(space) => {
                // SAFETY: as above.
                let mut tables = unsafe { Tables::new(space.pool) };
                let result = nested::unmap(&mut tables, space.root, address, pages, frame, left);
                space.bump_generation();
                result
            }
            Target::Dma(space) => {
                let root = space.space.root;
                // SAFETY: as above.
                unsafe { iommu::unmap(space.pool, root, address, pages, frame, left) }
            }
            // Message areas, vCPU pages, doorbells and devices go as a whole.
            _ => return Err(Status::BadArgument),
        };
        match result {
            Ok(done) => Ok(done.visited_pages),
            Err(partial) if partial.pages > 0 => Ok(partial.pages),
            Err(_) => Err(Status::NoMemory),
        }
    }

    /// Removes the large page at `address`, which cannot be split; how many of its pages are behind that. A capability that mapped
    /// the rest of it can map that again.
    fn unmap_large_page(&mut self, target: Target, address: u64, first: u64) -> u64 {
        let mut behind = 0;
        for size in [PageSize::M2, PageSize::G1] {
            let skip = (address / PAGE_SIZE % size.pages()).min(first);
            behind = size.pages() - skip;
            if self.unmap_pages(target, address - skip * PAGE_SIZE, first - skip, size.pages()).is_ok() {
                break;
            }
        }
        behind
    }
}
