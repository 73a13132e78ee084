//! What a test works with: a pool of its own, selectors, memory, addresses.

use crate::call::{Sel, call};
use crate::check::{Check, Failure, Seen, equal};
use crate::child;
use crate::layout::{
    ARENA, ARENA_PAGES, BOARD, BOARD_PAGES, FIXED, FIXED_PAGES, IMAGE, IMAGE_PAGES, PD, PORTS, RING,
    RING_PAGES, ROOT_POOL, SCRATCH, SCRATCH_COUNT, SLEEP, TEST_END, TEST_FIRST, TEST_POOL, WINDOW,
    WINDOW_PAGES,
};
use crate::prelude::{
    CapInfo, CreateEc, CreateGuestSpace, CreateNtfn, CreatePd, CreatePool, CreatePt, CreateSc, CreateSm,
    Derive, Map, MapFlags, PAGE, PoolInfo, Revoke, Rights, Unmap, Wait,
};
use crate::stretches;
use crate::threads::{self, Stacks};
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::regs::pack_ec_place;
use usys::abi::boot_info::{BootInfo, RegionKind};
use usys::cpu;

/// Frames of a test's pool.
const POOL_FRAMES: u64 = 768;

/// Everything that a test makes and uses.
#[derive(Debug)]
pub struct World {
    /// The kernel's boot information.
    pub info: &'static BootInfo,
    /// Pays for what the test makes.
    pub pool: Sel,
    next_selector: Sel,
    next_page: u64,
    next_address: u64,
    /// Stacks of the test's threads.
    pub stacks: Stacks,
    free_before: u64,
}

/// Read and write.
pub const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

/// A word of the board, which every thread and every child shares.
pub fn board(index: usize) -> &'static AtomicU64 {
    assert!(index < (BOARD_PAGES * PAGE / 8) as usize);
    // SAFETY: the board is mapped, in whoever runs this code, for as long as it runs, and used through atomics alone.
    unsafe { &*((BOARD as *const AtomicU64).add(index)) }
}

/// Waits without using the processor.
pub fn sleep(info: &BootInfo, microseconds: u64) {
    let ticks = (info.tsc_hz / 1000).max(1) * microseconds / 1000;
    call(Wait, SLEEP, [cpu::now() + ticks.max(1)]);
}

/// Free frames of a pool.
pub fn free_frames(pool: Sel) -> Seen<u64> {
    call(PoolInfo, pool, []).value()
}

impl World {
    /// Sets aside what [`crate::layout`] names. Once.
    pub fn prepare(info: &'static BootInfo) -> Check {
        let heap = usys::start::RootHeap::choose(info);
        let (index, region) = info.regions[..info.region_count as usize]
            .iter()
            .enumerate()
            .filter(|(_, region)| region.kind == RegionKind::Free as u32)
            .max_by_key(|(_, region)| region.pages)
            .ok_or_else(|| Failure("there is no memory".into()))?;
        let source = u64::from(region.selector);
        let reserved = heap.filter(|heap| heap.region == index).map_or(0, |heap| heap.pages);
        let first = (region.base / PAGE).next_multiple_of(512) - region.base / PAGE;
        let needed = first + ARENA_PAGES + FIXED_PAGES + IMAGE_PAGES + reserved;
        if region.pages < needed {
            return Err(Failure("the machine has too little memory".into()));
        }
        let derive = |to: Sel, offset: u64, pages: u64| {
            call(Derive, source, [0, to, Rights::ALL.bits().into(), offset, pages]).done()
        };
        derive(ARENA, first, ARENA_PAGES)?;
        derive(FIXED, first + ARENA_PAGES, FIXED_PAGES)?;
        derive(IMAGE, first + ARENA_PAGES + FIXED_PAGES, IMAGE_PAGES)?;
        if stretches::is_wanted(info) {
            derive(RING, first + ARENA_PAGES + FIXED_PAGES + IMAGE_PAGES, RING_PAGES)?;
        }
        map_all(FIXED, PD, BOARD, 0, FIXED_PAGES, RW)?;
        call(CreateSm, SLEEP, [ROOT_POOL, 0]).done()?;
        // Capability tables and page tables stay once they are there: a test must not be charged for the first use.
        for selector in (TEST_FIRST..TEST_END).step_by(64) {
            call(CreateSm, selector, [ROOT_POOL, 0]).done()?;
            call(Revoke, selector, [1]).done()?;
        }
        // So does the frame that a pool itself is in.
        call(CreatePool, TEST_POOL, [ROOT_POOL, 1, 0]).done()?;
        call(Revoke, TEST_POOL, [1]).done()?;
        call(Map, PORTS, [PD, 0, 0x80, 1, 0]).ok()?;
        call(Unmap, PORTS, [0, 0x1_0000]).ok()?;
        for table in (0..WINDOW_PAGES).step_by(512) {
            map_all(ARENA, PD, WINDOW + table * PAGE, table, 1, RW)?;
        }
        call(Unmap, ARENA, [0, ARENA_PAGES]).ok()?;
        child::prepare(info)
    }

    /// A world with a new pool.
    pub fn open(info: &'static BootInfo) -> Seen<World> {
        for index in 0..(BOARD_PAGES * PAGE / 8) as usize {
            board(index).store(0, Ordering::Relaxed);
        }
        let free_before = free_frames(ROOT_POOL)?;
        call(CreatePool, TEST_POOL, [ROOT_POOL, POOL_FRAMES, 0]).done()?;
        Ok(World {
            info,
            pool: TEST_POOL,
            next_selector: TEST_FIRST,
            next_page: 0,
            next_address: WINDOW,
            stacks: Stacks::new(),
            free_before,
        })
    }

    /// Ends everything that the test made; every frame must come back.
    pub fn close(mut self) -> Check {
        call(Revoke, TEST_POOL, [1]).done()?;
        self.pool = ROOT_POOL;
        call(Revoke, ARENA, [0]).done()?;
        call(Unmap, ARENA, [0, ARENA_PAGES]);
        self.sweep(SCRATCH, SCRATCH + SCRATCH_COUNT)?;
        self.sweep(TEST_FIRST, self.next_selector)?;
        equal("free frames after the test", free_frames(ROOT_POOL)?, self.free_before)
    }

    fn sweep(&self, first: Sel, end: Sel) -> Check {
        for selector in first..end {
            if call(CapInfo, selector, []).status() == Some(hypercall_abi::Status::Success) {
                call(Revoke, selector, [1]).done()?;
            }
        }
        Ok(())
    }

    /// Runs a part of a test with a pool of its own. What it made is ended afterwards, and its selectors, memory, addresses
    /// and stacks are free again.
    #[track_caller]
    pub fn scoped<T>(&mut self, frames: u64, part: impl FnOnce(&mut World) -> Seen<T>) -> Seen<T> {
        let pool = self.sel();
        let (selector, page, address) = (self.next_selector, self.next_page, self.next_address);
        let (outer, stacks) = (self.pool, self.stacks);
        call(CreatePool, pool, [outer, frames, 0]).done()?;
        self.pool = pool;
        let result = part(self);
        self.pool = outer;
        call(Revoke, pool, [1]).done()?;
        self.sweep(selector, self.next_selector)?;
        self.sweep(SCRATCH, SCRATCH + SCRATCH_COUNT)?;
        threads::clear_blocks(self.stacks != stacks);
        (self.next_selector, self.next_page, self.next_address) = (selector - 1, page, address);
        self.stacks = stacks;
        result
    }

    /// A selector that names nothing.
    pub fn sel(&mut self) -> Sel {
        self.next_selector += 1;
        assert!(self.next_selector < TEST_END, "too few selectors");
        self.next_selector - 1
    }

    /// `count` selectors in a row that name nothing: the first.
    pub fn sels(&mut self, count: u64) -> Sel {
        let first = self.sel();
        self.next_selector += count - 1;
        assert!(self.next_selector < TEST_END, "too few selectors");
        first
    }

    /// A semaphore.
    #[track_caller]
    pub fn sm(&mut self, count: u64) -> Seen<Sel> {
        let to = self.sel();
        call(CreateSm, to, [self.pool, count]).done()?;
        Ok(to)
    }

    /// A notification.
    #[track_caller]
    pub fn ntfn(&mut self) -> Seen<Sel> {
        let to = self.sel();
        call(CreateNtfn, to, [self.pool]).done()?;
        Ok(to)
    }

    /// A protection domain.
    #[track_caller]
    pub fn pd(&mut self) -> Seen<Sel> {
        let to = self.sel();
        call(CreatePd, to, [self.pool]).done()?;
        Ok(to)
    }

    /// A pool made from the test's.
    #[track_caller]
    pub fn sub_pool(&mut self, frames: u64) -> Seen<Sel> {
        let to = self.sel();
        call(CreatePool, to, [self.pool, frames, 0]).done()?;
        Ok(to)
    }

    /// A guest space.
    #[track_caller]
    pub fn guest_space(&mut self) -> Seen<Sel> {
        let to = self.sel();
        call(CreateGuestSpace, to, [self.pool]).done()?;
        Ok(to)
    }

    /// A thread of this domain that was not started: `ip` with `argument` in RDI and a stack of its own.
    #[track_caller]
    pub fn ec(&mut self, cpu: u16, ip: u64, argument: u64) -> Seen<Sel> {
        let to = self.sel();
        let stack = self.stacks.take();
        let place = pack_ec_place(cpu, false);
        call(CreateEc, to, [self.pool, PD, place, ip, stack - 8, argument]).done()?;
        Ok(to)
    }

    /// Starts a thread.
    #[track_caller]
    pub fn sc(&mut self, ec: Sel, priority: u64) -> Seen<Sel> {
        let to = self.sel();
        call(CreateSc, to, [self.pool, ec, priority, 10_000, 10_000]).done()?;
        Ok(to)
    }

    /// A portal handler of this domain.
    #[track_caller]
    pub fn handler(&mut self, cpu: u16) -> Seen<Sel> {
        let to = self.sel();
        let stack = self.stacks.take();
        call(CreateEc, to, [self.pool, PD, pack_ec_place(cpu, true), 0, stack]).done()?;
        Ok(to)
    }

    /// A portal of `handler` that calls a function.
    #[track_caller]
    pub fn portal(&mut self, handler: Sel, body: usys::portal::Body) -> Seen<Sel> {
        let to = self.sel();
        let id = body as *const () as u64;
        call(CreatePt, to, [self.pool, handler, usys::portal::entry(), id]).done()?;
        Ok(to)
    }

    /// Derives a capability with some of the rights.
    #[track_caller]
    pub fn derive(&mut self, source: Sel, rights: Rights) -> Seen<Sel> {
        let to = self.sel();
        call(Derive, source, [0, to, rights.bits().into()]).done()?;
        Ok(to)
    }

    /// Derives a capability that lacks a right.
    #[track_caller]
    pub fn without(&mut self, source: Sel, right: Rights) -> Seen<Sel> {
        self.derive(source, Rights::ALL.difference(right))
    }

    /// Derives part of a range.
    #[track_caller]
    pub fn part(&mut self, source: Sel, offset: u64, count: u64) -> Seen<Sel> {
        let to = self.sel();
        call(Derive, source, [0, to, Rights::ALL.bits().into(), offset, count]).done()?;
        Ok(to)
    }

    /// Takes pages that nothing else of the test uses.
    #[track_caller]
    pub fn ram(&mut self, pages: u64) -> Seen<Sel> {
        let offset = self.next_page;
        self.next_page += pages;
        assert!(self.next_page <= ARENA_PAGES, "too little memory");
        self.part(ARENA, offset, pages)
    }

    /// As [`Self::ram`], with a physical address that is a multiple of 2 MiB.
    #[track_caller]
    pub fn large_ram(&mut self, pages: u64) -> Seen<Sel> {
        self.next_page = self.next_page.next_multiple_of(512);
        self.ram(pages)
    }

    /// Addresses for `pages` pages in this domain, in the window.
    pub fn addresses(&mut self, pages: u64) -> u64 {
        let address = self.next_address;
        self.next_address += pages * PAGE;
        assert!(self.next_address <= WINDOW + WINDOW_PAGES * PAGE, "too few addresses");
        address
    }

    /// Derives `memory` once more and maps that into this domain, readable and writable: the address.
    #[track_caller]
    pub fn view(&mut self, memory: Sel, pages: u64) -> Seen<u64> {
        let view = self.derive(memory, Rights::ALL)?;
        let address = self.addresses(pages);
        map_all(view, PD, address, 0, pages, RW)?;
        Ok(address)
    }

    /// The TSC in this many µs.
    pub fn deadline(&self, microseconds: u64) -> u64 {
        cpu::now() + self.info.tsc_hz / 1_000_000 * microseconds
    }

    /// Waits without using the processor.
    pub fn sleep(&self, microseconds: u64) {
        sleep(self.info, microseconds);
    }

    /// Sleeps until something is so; at most twenty seconds, as emulators stand still now and then.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn() -> bool) -> Check {
        let limit = cpu::now() + 20 * self.info.tsc_hz;
        while !is_so() {
            if cpu::now() > limit {
                return Err(Failure::new(what, "nothing in 20 s", "it"));
            }
            self.sleep(200);
        }
        Ok(())
    }

    /// Whether there is a CPU with this number.
    pub fn has_cpu(&self, cpu: u16) -> bool {
        cpu < self.info.cpu_count
    }

    /// A CPU other than this one.
    pub fn other_cpu(&self) -> u16 {
        self.info.cpu_count - 1
    }
}

/// Maps all pages, in as many calls as that takes.
#[track_caller]
pub fn map_all(memory: Sel, space: Sel, address: u64, offset: u64, pages: u64, flags: MapFlags) -> Check {
    let mut done = 0;
    while done < pages {
        let arguments = [space, address + done * PAGE, offset + done, pages - done, flags.bits().into()];
        let answer = call(Map, memory, arguments);
        if answer.status() != Some(hypercall_abi::Status::Partial) {
            return equal("pages mapped", done + answer.value()?, pages);
        }
        if answer.values[0] == 0 {
            return Err(Failure::new("Map", "Partial with 0 pages", "progress"));
        }
        done += answer.values[0];
    }
    Ok(())
}
