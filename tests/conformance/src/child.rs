//! Child processes: protection domains that run this program's own code, with a pool of their own.

use crate::call::{Sel, call};
use crate::check::{Check, Failure, Seen, equal};
use crate::layout::{
    BOARD, BOARD_PAGES, CHILD_STACKS, FIXED, IMAGE, IMAGE_COPY, IMAGE_PAGES, PD, SLEEP, STACK_PAGES,
};
use crate::prelude::{CreateEc, CreatePd, CreatePool, CreateSc, Derive, MapFlags, PAGE, Rights, World};
use crate::world::{RW, map_all};
use alloc::vec::Vec;
use elf::ElfBytes;
use elf::abi::{PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use hypercall_abi::regs::pack_ec_place;
use usys::abi::Selector;
use usys::abi::boot_info::BootInfo;
use usys::cap::Cap;
use usys::lock::Mutex;
use usys::memory::Mapping;

/// A segment of this program.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// First page in [`IMAGE`].
    page: u64,
    pages: u64,
    address: u64,
    flags: MapFlags,
}

static SEGMENTS: Mutex<Vec<Segment>> = Mutex::new(Vec::new());

/// Copies this program, as it was before it ran, from the boot module to [`IMAGE`].
pub fn prepare(info: &'static BootInfo) -> Check {
    let bytes = module(info)?;
    map_all(IMAGE, PD, IMAGE_COPY, 0, IMAGE_PAGES, RW)?;
    let file = ElfBytes::<LittleEndian>::minimal_parse(&bytes)
        .map_err(|_| Failure("the first module is no ELF file".into()))?;
    let headers = file.segments().ok_or_else(|| Failure("it has no segments".into()))?;
    let mut next = 0;
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
        let address = header.p_vaddr & !(PAGE - 1);
        let pages = (header.p_vaddr + header.p_memsz).div_ceil(PAGE) - address / PAGE;
        let data = file.segment_data(&header).map_err(|_| Failure("a segment is cut".into()))?;
        if next + pages > IMAGE_PAGES {
            return Err(Failure("the program is too large for its children".into()));
        }
        let flags = [(PF_W, MapFlags::WRITE), (PF_X, MapFlags::EXECUTE)]
            .iter()
            .filter(|(bit, _)| header.p_flags & bit != 0)
            .fold(MapFlags::READ, |flags, &(_, flag)| flags | flag);
        let to = (IMAGE_COPY + next * PAGE) as *mut u8;
        // SAFETY: the pages at `IMAGE_COPY` are mapped for this alone, and there are enough of them.
        unsafe {
            to.write_bytes(0, (pages * PAGE) as usize);
            to.add((header.p_vaddr - address) as usize).copy_from_nonoverlapping(data.as_ptr(), data.len());
        }
        SEGMENTS.lock().push(Segment { page: next, pages, address, flags });
        next += pages;
    }
    Ok(())
}

/// The bytes of the first boot module.
fn module(info: &'static BootInfo) -> Seen<Vec<u8>> {
    let module = info.modules[0];
    let region = info.regions[module.region as usize];
    let memory = Cap::new(Selector(region.selector));
    let mapping =
        Mapping::new(memory, 0, region.pages, false).map_err(|error| Failure(alloc::format!("{error}")))?;
    let mut bytes = alloc::vec![0; module.size as usize];
    mapping
        .window()
        .read(0, &mut bytes)
        .map_err(|_| Failure("the module is larger than its region".into()))?;
    Ok(bytes)
}

/// A child process.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// Its pool.
    pub pool: Sel,
    /// Its protection domain.
    pub pd: Sel,
    stacks: u64,
}

/// Selectors in a child.
pub mod own {
    /// Its protection domain.
    pub const PD: u64 = 1;
    /// Its pool.
    pub const POOL: u64 = 2;
    /// First selector that a test may use as it likes.
    pub const FREE: u64 = 16;
}

impl World {
    /// A child with a pool of `frames` frames and stacks for `threads` threads.
    #[track_caller]
    pub fn child(&mut self, frames: u64, threads: u64) -> Seen<Child> {
        let (pool, pd) = (self.sel(), self.sel());
        call(CreatePool, pool, [self.pool, frames, 0]).done()?;
        call(CreatePd, pd, [pool]).done()?;
        let segments = SEGMENTS.lock().clone();
        for segment in segments {
            self.load(pd, segment)?;
        }
        let boards = self.part(FIXED, 0, BOARD_PAGES)?;
        map_all(boards, pd, BOARD, 0, BOARD_PAGES, RW)?;
        let stacks = self.ram(threads * STACK_PAGES)?;
        map_all(stacks, pd, CHILD_STACKS, 0, threads * STACK_PAGES, RW)?;
        let child = Child { pool, pd, stacks: threads };
        child.grant(SLEEP, SLEEP, Rights::ALL)?;
        Ok(child)
    }

    /// Maps a segment: the one copy of what is read, a copy of its own of what is written.
    fn load(&mut self, pd: Sel, segment: Segment) -> Check {
        let Segment { page, pages, address, flags } = segment;
        if !flags.contains(MapFlags::WRITE) {
            let memory = self.part(IMAGE, page, pages)?;
            return map_all(memory, pd, address, 0, pages, flags);
        }
        let memory = self.ram(pages)?;
        let view = self.view(memory, pages)?;
        // SAFETY: both places are mapped, and the second is nobody else's yet.
        unsafe {
            (view as *mut u8)
                .copy_from_nonoverlapping((IMAGE_COPY + page * PAGE) as *const u8, (pages * PAGE) as usize);
        }
        map_all(memory, pd, address, 0, pages, flags)
    }

    /// Starts a thread of a child, with the stack of this number: its EC and SC.
    #[track_caller]
    pub fn child_thread(
        &mut self,
        child: &Child,
        (cpu, priority, stack): (u16, u64, u64),
        ip: u64,
        argument: u64,
    ) -> Seen<(Sel, Sel)> {
        equal("stack of a child's thread", stack < child.stacks, true)?;
        let (ec, sc) = (self.sel(), self.sel());
        let sp = CHILD_STACKS + (stack + 1) * STACK_PAGES * PAGE - 8;
        let place = pack_ec_place(cpu, false);
        call(CreateEc, ec, [child.pool, child.pd, place, ip, sp, argument]).done()?;
        call(CreateSc, sc, [child.pool, ec, priority, 10_000, 10_000]).done()?;
        Ok((ec, sc))
    }
}

impl Child {
    /// Gives the child a capability.
    #[track_caller]
    pub fn grant(&self, source: Sel, to: Sel, rights: Rights) -> Check {
        call(Derive, source, [self.pd, to, rights.bits().into()]).done()
    }
}
