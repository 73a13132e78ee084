//! The root task: the first user code, with a capability to everything that is left.

use super::memory::{self, BootFrames};
use super::{System, clock};
use crate::cap::{self, Tree};
use crate::object::Header;
use crate::object::ec::Ec;
use crate::object::pd::Pd;
use crate::object::pool::Pool;
use crate::object::sc::Sc;
use crate::sched;
use core::ptr::addr_of_mut;
use hypercall_abi::boot_info::{self as abi, BootInfo, MemoryRegion, Module, RegionKind, root};
use hypercall_abi::{ABI_VERSION, ObjectType, Rights, Selector, Status};
use kcore::addr::PhysAddr;
use kcore::boot::elf::Executable;
use kcore::boot::iommu::IommuUnit;
use kcore::boot::regions::{self, Region};
use kcore::paging::{self, Attr, HostFormat, PageSize};
use kcore::sched::budget::Budget;
use khw::cpu::fpu;
use khw::entry::Frame;
use khw::irq::{lapic, vector};
use khw::mem::{Tables, phys_to_virt};
use khw::smp;

static ROOT_POOL: Pool = Pool::root();

/// Timeslice of the root task, in microseconds.
const SLICE_US: u64 = 10_000;
/// Its priority: above everything it starts.
const PRIORITY: u8 = 31;

const CODE: Attr = Attr { read: true, write: false, execute: true, uncached: false, user: true };
const CONSTANTS: Attr = Attr { execute: false, ..CODE };
const DATA: Attr = Attr { write: true, execute: false, ..CODE };

/// Gives the rest of the kernel's allotment to the root pool, and starts the root task.
pub fn start(system: &System, frames: BootFrames) {
    for frame in frames.rest() {
        // SAFETY: the frame is left over from boot.
        unsafe { ROOT_POOL.donate(frame) };
    }
    if build(system).is_err() {
        super::refuse(format_args!("kernel memory is too small for the root task (try kmem=16)"));
    }
}

fn build(system: &System) -> Result<(), Status> {
    let Ok(mut tree) = cap::lock_tree() else {
        return Err(Status::Busy);
    };
    let header = |kind| Header::new(kind, Some(&ROOT_POOL));
    let pd = Pd::create(header(ObjectType::Pd), &ROOT_POOL).ok_or(Status::NoMemory)?;
    let pd = ROOT_POOL.create_object(pd).ok_or(Status::NoMemory)?;
    let entry = load_image(system, pd);
    let mut frame = Frame::user(entry, abi::ROOT_STACK_TOP);
    frame.rdi = abi::BOOT_INFO_ADDR;
    let ec = Ec::new(header(ObjectType::Ec), pd, 0, false, frame);
    let ec = ROOT_POOL.create_object(ec).ok_or(Status::NoMemory)?;
    pd.ecs.push_back(ec);
    let slice = clock::ticks_from_us(SLICE_US);
    let sc = Sc::new(header(ObjectType::Sc), ec, PRIORITY, Budget::new(slice, slice));
    let sc = ROOT_POOL.create_object(sc).ok_or(Status::NoMemory)?;
    ec.own_sc.set(Some(sc));

    let tree = &mut *tree;
    let objects = [
        (root::PD, pd.header()),
        (root::POOL, ROOT_POOL.header()),
        (root::EC, ec.header()),
        (root::SC, sc.header()),
    ];
    for (selector, header) in objects {
        let slot = pd.empty_slot(tree, selector)?;
        cap::insert_object(tree, slot, header);
    }
    let use_it = Rights::USE | Rights::DERIVE;
    for (selector, kind, count) in [
        (root::LOG, ObjectType::Log, 0),
        (root::PORTS, ObjectType::Ports, 1 << 16),
        (root::IRQS, ObjectType::Irqs, vector::GSI_COUNT as u64),
        (root::DEVICES, ObjectType::Devices, 1 << 16),
        (root::TRACE, ObjectType::Trace, smp::cpu_count() as u64),
    ] {
        let slot = pd.empty_slot(tree, selector)?;
        cap::insert_range(tree, slot, kind, use_it, 0, count);
    }
    fill_boot_info(system, pd, tree)?;
    // The kernel never ends the root task: there would be nobody to notice.
    sched::start(sc);
    Ok(())
}

/// Maps the first module's segments, the stack and the message area.
fn load_image(system: &System, pd: &'static Pd) -> u64 {
    let Some(module) = system.loader.modules.first() else {
        super::refuse(format_args!("the boot loader passed no modules; the first must be the root task"))
    };
    let len = (module.end - module.start) as usize;
    // SAFETY: modules are RAM, which the direct map covers, and nobody writes them.
    let file = unsafe { core::slice::from_raw_parts(phys_to_virt(PhysAddr(module.start)), len) };
    let executable = match Executable::parse(file) {
        Ok(executable) => executable,
        Err(error) => super::refuse(format_args!("the first module is not a root task: {error}")),
    };
    for segment in executable.segments() {
        let first = segment.vaddr & !4095;
        let pages = (segment.vaddr + segment.mem_size).div_ceil(4096) - first / 4096;
        let frames = memory::take_user_pages(pages);
        let target = frames.offset(segment.vaddr - first);
        // SAFETY: the pages are fresh, and large enough: the parser checked the sizes.
        unsafe {
            core::ptr::copy_nonoverlapping(segment.data.as_ptr(), phys_to_virt(target), segment.data.len());
        }
        let attr = match (segment.write, segment.execute) {
            (true, false) => DATA,
            (false, true) => CODE,
            (false, false) => CONSTANTS,
            (true, true) => {
                super::refuse(format_args!("the root task has a segment that is writable and executable"))
            }
        };
        map(pd, first, frames, pages, attr);
    }
    let stack = memory::take_user_pages(abi::ROOT_STACK_PAGES);
    map(pd, abi::ROOT_STACK_TOP - abi::ROOT_STACK_PAGES * 4096, stack, abi::ROOT_STACK_PAGES, DATA);
    map(pd, abi::ROOT_UTCB_ADDR, memory::take_user_pages(1), 1, DATA);
    executable.entry()
}

fn map(pd: &'static Pd, va: u64, frames: PhysAddr, pages: u64, attr: Attr) {
    // SAFETY: the tables are those of a domain that nobody else knows yet.
    let mut tables = unsafe { Tables::new(pd.pool) };
    if paging::map::<HostFormat, _>(&mut tables, pd.root, va, frames, pages, attr, PageSize::M2).is_err() {
        super::refuse(format_args!(
            "the root task does not fit into its address space, or its segments overlap"
        ));
    }
}

/// Fills the boot-info page and makes the memory capabilities it lists.
fn fill_boot_info(system: &System, pd: &'static Pd, tree: &mut Tree) -> Result<(), Status> {
    let frame = memory::take_user_pages(1);
    map(pd, abi::BOOT_INFO_ADDR, frame, 1, CONSTANTS);
    let info: *mut BootInfo = phys_to_virt(frame).cast();
    let mut list = RegionList { pd, tree, info, count: 0 };
    // SAFETY: the page is zeroed and ours; every field of `BootInfo` may be zero. No reference to it is made elsewhere.
    unsafe {
        for (index, module) in system.loader.modules.iter().enumerate() {
            let region = Region { base: module.start & !4095, end: module.end.next_multiple_of(4096) };
            addr_of_mut!((*info).modules[index]).write(Module {
                name: module.name,
                size: module.end - module.start,
                region: list.count,
                reserved: 0,
            });
            list.add(region, RegionKind::Module, Rights::READ | Rights::WRITE | Rights::EXECUTE)?;
        }
        for &region in memory::free_regions().regions() {
            list.add(region, RegionKind::Free, Rights::READ | Rights::WRITE | Rights::EXECUTE)?;
        }
        for &region in device_regions(system).regions() {
            list.add(region, RegionKind::Device, Rights::READ | Rights::WRITE)?;
        }
        let region_count = list.count;
        let info = &mut *info;
        info.magic = abi::MAGIC;
        info.version = ABI_VERSION;
        info.cpu_count = smp::cpu_count() as u16;
        info.tsc_hz = clock::tsc_hz();
        info.machine = super::machine_bits(system).bits();
        info.guest_xcr0 = fpu::guest_xcr0();
        info.rsdp = system.loader.rsdp.map_or(0, |addr| addr.0);
        info.entry_tsc = system.entry_tsc;
        info.region_count = region_count;
        info.module_count = system.loader.modules.len() as u32;
        info.command_line = system.loader.command_line;
        info.boot_wait = clock::waited();
    }
    Ok(())
}

struct RegionList<'a> {
    pd: &'static Pd,
    tree: &'a mut Tree,
    info: *mut BootInfo,
    count: u32,
}

impl RegionList<'_> {
    /// Lists a region and makes its capability; regions beyond the page's room are left out.
    fn add(&mut self, region: Region, kind: RegionKind, rights: Rights) -> Result<(), Status> {
        let (index, pages) = (self.count as usize, region.pages());
        if index == abi::MAX_REGIONS || pages == 0 {
            return Ok(());
        }
        let selector = Selector(root::MEMORY.0 + self.count);
        let slot = self.pd.empty_slot(self.tree, selector)?;
        cap::insert_range(
            self.tree,
            slot,
            ObjectType::Memory,
            rights | Rights::DERIVE,
            region.base >> 12,
            pages,
        );
        let entry = MemoryRegion { base: region.base, pages, kind: kind as u32, selector: selector.0 };
        // SAFETY: the page is the caller's, the index in range.
        unsafe { addr_of_mut!((*self.info).regions[index]).write(entry) };
        self.count += 1;
        Ok(())
    }
}

/// Physical addresses that are neither RAM nor the kernel's.
fn device_regions(system: &System) -> regions::RegionSet<32> {
    let page = |base: u64| Region { base: base & !4095, end: (base & !4095) + 4096 };
    let ioapics = system.acpi.iter().flat_map(|acpi| acpi.ioapics.iter());
    let kept = [page(lapic::MMIO_BASE.0)]
        .into_iter()
        .chain(ioapics.map(|ioapic| page(ioapic.address as u64)))
        .chain(system.iommus().iter().map(IommuUnit::registers));
    let mut excluded = [Region::default(); 1 + 8 + 8];
    excluded.iter_mut().zip(kept).for_each(|(slot, region)| *slot = region);
    regions::devices::<32>(&system.loader.memory, 1 << system.features.phys_bits.min(46), &excluded)
}
