//! Making a process, and taking everything of it back.

use crate::error::StartError;
use crate::loader::{HEADER_BYTES, Program, Segment};
use crate::memory::{Allocation, FreeMemory};
use crate::system::{BootModule, System};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use usys::abi::cap::MapFlags;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Ec, Memory, Narrow, Ntfn, Pd, Pool, Sc};
use usys::memory::Mapping;
use usys::object::{Fault, Schedule, ThreadStart};
use usys::process::{self, InfoHeader, Sharing, selector as well_known};
use usys::{layout, selector};

/// What a process is made from.
#[derive(Debug)]
pub struct Blueprint<'a> {
    /// Its name.
    pub name: &'a str,
    /// Name of the boot module with its executable.
    pub program: &'a str,
    /// CPU of its first thread.
    pub cpu: u16,
    /// When that may run. No thread of the process gets a higher priority.
    pub schedule: Schedule,
    /// Frames of kernel memory for what it makes itself.
    pub extra_frames: u64,
    /// Pages of heap.
    pub heap_pages: u64,
    /// Its configuration, postcard.
    pub config: &'a [u8],
    /// The notification that it waits on.
    pub events: Cap<Ntfn>,
    /// Bit of the root task's notification that it can raise.
    pub parent_badge: u64,
    /// Bit of the root task's notification that its crash raises.
    pub fault_badge: u64,
    /// Memory that it shares with others.
    pub windows: &'a [Shared<'a>],
}

/// Frames of kernel memory for any process: its objects, its capability tables, and the page tables of its image, stack and
/// information pages.
const BASE_FRAMES: u64 = 36;

/// Page tables for `pages` pages in a row, if the kernel finds no superpage there.
pub const fn page_tables(pages: u64) -> u64 {
    const ENTRIES: u64 = 512;
    // Two more where the range straddles tables, and one for each higher level.
    pages.div_ceil(ENTRIES) + 4
}

impl Blueprint<'_> {
    /// Frames of kernel memory for all that the process is and makes.
    fn pool_frames(&self) -> u64 {
        // Between two regions a page stays free.
        let shared = self.windows.iter().map(|shared| shared.bytes.div_ceil(PAGE_SIZE) + 1).sum();
        BASE_FRAMES + page_tables(self.heap_pages) + page_tables(shared) + self.extra_frames
    }
}

/// Memory that a process shares with others.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// Its name.
    pub name: &'a str,
    /// The memory, from its first page.
    pub memory: Cap<Memory>,
    /// Bytes.
    pub bytes: u64,
    /// Whether the process may write.
    pub is_writable: bool,
    /// Who else has it.
    pub sharing: Sharing,
    /// It is a device's.
    pub is_device: bool,
}

impl<'a> Shared<'a> {
    /// All of an allocation, writable.
    pub fn writable(name: &'a str, allocation: &Allocation) -> Self {
        let bytes = allocation.pages() * PAGE_SIZE;
        let memory = allocation.memory();
        Shared { name, memory, bytes, is_writable: true, sharing: Sharing::Shared, is_device: false }
    }

    /// A boot module, to be read.
    pub fn module(name: &'a str, module: BootModule) -> Self {
        let BootModule { memory, bytes } = module;
        Shared { name, memory, bytes, is_writable: false, sharing: Sharing::Shared, is_device: false }
    }

    /// Registers of a device.
    pub fn device(name: &'a str, memory: Cap<Memory>, bytes: u64) -> Self {
        Shared { name, memory, bytes, is_writable: true, sharing: Sharing::Shared, is_device: true }
    }

    /// A boot module that is a disk. The manifest, which was checked, gives one that is written to one VM alone.
    pub fn disk(name: &'a str, module: BootModule, is_writable: bool) -> Self {
        let BootModule { memory, bytes } = module;
        let sharing = if is_writable { Sharing::Private } else { Sharing::Constant };
        Shared { name, memory, bytes, is_writable, sharing, is_device: false }
    }
}

/// A process, and all that it was given.
#[derive(Debug)]
pub struct Process {
    pool: Cap<Pool>,
    pd: Cap<Pd>,
    ec: Cap<Ec>,
    sc: Selector,
    schedule: Schedule,
    /// Selectors of everything derived for it out of what outlives it.
    derived: Vec<Selector>,
    /// Its own memory.
    memory: Vec<Allocation>,
}

impl Process {
    /// Makes a process, gives it what `equip` says, and starts it. If any of that fails nothing of it is left.
    pub fn launch(
        system: &mut System,
        plan: &Blueprint<'_>,
        equip: impl FnOnce(&mut Process) -> Result<(), StartError>,
    ) -> Result<Self, StartError> {
        let mut process = Self::create(system, plan)?;
        let started = equip(&mut process).and_then(|()| process.start());
        if let Err(error) = started {
            process.destroy(&mut system.memory);
            return Err(error);
        }
        Ok(process)
    }

    /// Makes a process that does not run yet.
    pub fn create(system: &mut System, plan: &Blueprint<'_>) -> Result<Self, StartError> {
        let pool =
            process::pool().create_pool(selector::allocate()?, plan.pool_frames(), plan.schedule.priority)?;
        let mut process = Process {
            pool,
            pd: Cap::new(Selector::NULL),
            ec: Cap::new(Selector::NULL),
            sc: Selector::NULL,
            schedule: plan.schedule,
            derived: Vec::new(),
            memory: Vec::new(),
        };
        match process.build(system, plan) {
            Ok(()) => Ok(process),
            Err(error) => {
                process.destroy(&mut system.memory);
                Err(error)
            }
        }
    }

    fn build(&mut self, system: &mut System, plan: &Blueprint<'_>) -> Result<(), StartError> {
        self.pd = self.pool.create_pd(selector::allocate()?)?;
        let entry = self.load(system, plan.program)?;
        let read_write = MapFlags::READ | MapFlags::WRITE;
        self.add_memory(&mut system.memory, layout::STACK, layout::STACK_PAGES, read_write)?;
        self.add_memory(&mut system.memory, layout::HEAP, plan.heap_pages, read_write)?;
        let header = self.share(system, plan)?;
        self.write_info(&mut system.memory, header, plan.config)?;

        let start = ThreadStart { cpu: plan.cpu, ip: entry, sp: layout::STACK_TOP, argument: layout::INFO };
        self.ec = self.pool.create_ec(selector::allocate()?, self.pd, start)?;
        if let Some(recorder) = &mut system.recorder {
            recorder.name(self.ec, plan.name);
        }
        self.add_utcb(&mut system.memory)?;
        self.add_first_capabilities(plan)
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<(), StartError> {
        self.sc = self.pool.create_sc(selector::allocate()?, self.ec, self.schedule)?.selector();
        Ok(())
    }

    /// The scheduling context of its first thread, once it was started.
    pub fn sc(&self) -> Cap<Sc> {
        Cap::new(self.sc)
    }

    /// Its protection domain.
    pub fn pd(&self) -> Cap<Pd> {
        self.pd
    }

    /// Why it stopped, if it did.
    pub fn fault(&self) -> Option<Fault> {
        self.ec.fault().ok().flatten()
    }

    /// Ends it, and frees everything that was its own.
    pub fn destroy(self, memory: &mut FreeMemory) {
        // First the pool: with it the threads end, so that nothing is used any more of what is freed then.
        if let Err(error) = self.pool.delete() {
            log::error!("a process cannot be ended: {error}");
        }
        for derived in self.derived {
            // Those that the pool or another revocation took are gone already.
            let _ = Cap::<Memory>::new(derived).delete();
            selector::release(derived);
        }
        for own in [self.pool.selector(), self.pd.selector(), self.ec.selector(), self.sc] {
            if own != Selector::NULL {
                selector::release(own);
            }
        }
        for allocation in self.memory {
            memory.free(allocation);
        }
    }

    /// Derives a capability, in this process, that ends with that one.
    pub fn derive<T>(&mut self, source: Cap<T>, keep: Narrow) -> Result<Cap<T>, StartError> {
        let to = selector::allocate()?;
        self.derived.push(to);
        Ok(source.derive(to, keep)?)
    }

    fn load(&mut self, system: &mut System, name: &str) -> Result<u64, StartError> {
        let module = system.module(name)?;
        let image = Mapping::new(module.memory, 0, module.pages(), false)?;
        let mut start = vec![0; HEADER_BYTES.min(module.bytes as usize)];
        image.window().read(0, &mut start)?;
        let program = Program::parse(&start, module.bytes)
            .map_err(|what| StartError::Program { name: name.to_string(), what })?;
        for segment in &program.segments {
            if segment.is_shareable {
                let first = segment.file_offset / PAGE_SIZE;
                self.map(module.memory, first, segment.address, segment.pages, segment.flags)?;
            } else {
                self.load_segment(&mut system.memory, &image, segment)?;
            }
        }
        Ok(program.entry)
    }

    fn load_segment(
        &mut self,
        memory: &mut FreeMemory,
        image: &Mapping,
        segment: &Segment,
    ) -> Result<(), StartError> {
        let allocation = memory.allocate(segment.pages, 1)?;
        let source = allocation.memory();
        self.memory.push(allocation);
        {
            let mapping = Mapping::new(source, 0, segment.pages, true)?;
            mapping.window().copy_from(
                segment.skip as usize,
                &image.window(),
                segment.file_offset as usize,
                segment.file_bytes as usize,
            )?;
        }
        self.map(source, 0, segment.address, segment.pages, segment.flags)
    }

    /// Maps pages of memory, from `first` on, into the process, through a capability with no more rights than that.
    fn map(
        &mut self,
        source: Cap<Memory>,
        first: u64,
        address: u64,
        pages: u64,
        flags: MapFlags,
    ) -> Result<(), StartError> {
        // The bits of the rights and of the flags are the same three; the memory type is no right.
        let rights = Rights::from_bits_truncate(flags.bits() as u16);
        let memory = self.derive(source, Narrow::rights(rights).range(first, pages))?;
        Ok(memory.map(self.pd, address, 0, pages, flags)?)
    }

    fn add_memory(
        &mut self,
        memory: &mut FreeMemory,
        address: u64,
        pages: u64,
        flags: MapFlags,
    ) -> Result<Cap<Memory>, StartError> {
        let allocation = memory.allocate(pages, 1)?;
        let source = allocation.memory();
        self.memory.push(allocation);
        self.map(source, 0, address, pages, flags)?;
        Ok(source)
    }

    /// Maps the shared memory and says where it is.
    fn share(&mut self, system: &System, plan: &Blueprint<'_>) -> Result<InfoHeader, StartError> {
        let mut header = InfoHeader::new(plan.name);
        header.tsc_hz = system.info.tsc_hz;
        header.machine = system.info.machine;
        header.guest_xcr0 = system.info.guest_xcr0;
        header.entry_tsc = system.info.entry_tsc;
        header.wall_clock = system.wall_clock.seconds;
        header.wall_clock_tsc = system.wall_clock.tsc;
        header.heap_bytes = plan.heap_pages * PAGE_SIZE;
        header.cpu = plan.cpu.into();
        let mut address = layout::WINDOWS;
        for shared in plan.windows {
            let pages = shared.bytes.div_ceil(PAGE_SIZE);
            let mut flags = MapFlags::READ;
            flags.set(MapFlags::WRITE, shared.is_writable);
            flags.set(MapFlags::UNCACHED, shared.is_device);
            self.map(shared.memory, 0, address, pages, flags)?;
            if !header.add_window(shared.name, address, shared.bytes, shared.sharing) {
                return Err(StartError::TooMuchConfiguration);
            }
            // An unmapped page between two regions.
            address += (pages + 1) * PAGE_SIZE;
        }
        Ok(header)
    }

    fn write_info(
        &mut self,
        memory: &mut FreeMemory,
        mut header: InfoHeader,
        config: &[u8],
    ) -> Result<(), StartError> {
        let allocation = memory.allocate(layout::INFO_PAGES, 1)?;
        let source = allocation.memory();
        self.memory.push(allocation);
        {
            let mapping = Mapping::new(source, 0, layout::INFO_PAGES, true)?;
            header.write(config, mapping.window())?;
        }
        self.map(source, 0, layout::INFO, layout::INFO_PAGES, MapFlags::READ)
    }

    fn add_utcb(&mut self, memory: &mut FreeMemory) -> Result<(), StartError> {
        let allocation = memory.allocate(1, 1)?;
        let source = allocation.memory();
        self.memory.push(allocation);
        self.map(source, 0, layout::UTCB, 1, MapFlags::READ | MapFlags::WRITE)?;
        // What the kernel writes is a capability of its own.
        let bound = self.derive(source, Narrow::rights(Rights::READ | Rights::WRITE).range(0, 1))?;
        Ok(self.ec.bind_utcb(bound)?)
    }

    fn add_first_capabilities(&mut self, plan: &Blueprint<'_>) -> Result<(), StartError> {
        let pd = self.pd;
        pd.delegate(pd, well_known::PD, Narrow::ALL)?;
        self.pool.delegate(pd, well_known::POOL, Narrow::rights(Rights::POOL_CREATE))?;
        let wait = Rights::WAIT | Rights::SIGNAL | Rights::DERIVE;
        plan.events.delegate(pd, well_known::EVENTS, Narrow::rights(wait))?;
        let signal = Narrow::rights(Rights::SIGNAL);
        process::events().delegate(pd, well_known::PARENT, signal.badge(plan.parent_badge))?;
        let fault = self.derive(process::events(), signal.badge(plan.fault_badge))?;
        Ok(self.ec.bind_fault_notification(fault)?)
    }
}
