//! Physical memory: what the kernel keeps, its final page tables, and what is left for the root task.

use super::System;
use super::start::TRAMPOLINE;
use kcore::addr::PhysAddr;
use kcore::boot::PhysRead;
use kcore::boot::iommu::IommuUnit;
use kcore::boot::regions::{self, LOW_MEMORY, Region, RegionSet};
use kcore::paging::{self, Attr, HostFormat, PageSize, PtMemory};
use khw::irq::lapic;
use khw::mem::{FrameSource, KERNEL_BASE, PHYS_BASE, Tables, kernel_virt_to_phys, phys_to_virt, zero_frame};
use khw::smp;
use khw::sync::Lock;

const MIB: u64 = 1 << 20;
/// Kernel memory without `kmem=`: this share of RAM, at least [`MIN_KERNEL_BYTES`].
const KERNEL_SHARE: u64 = 512;
const MIN_KERNEL_BYTES: u64 = 4 * MIB;
/// What the boot page tables reach.
const BOOT_REACH: u64 = 4 << 30;

/// RAM, for [`is_ram`].
static RAM: Lock<Option<RegionSet<64>>> = Lock::new(None);
/// Free RAM that is the root task's.
static FREE: Lock<Option<RegionSet<64>>> = Lock::new(None);

/// Reads physical memory through the boot page tables.
#[derive(Debug)]
pub struct BootMemory;

impl PhysRead for BootMemory {
    fn bytes(&self, addr: PhysAddr, len: usize) -> Option<&[u8]> {
        let end = addr.0.checked_add(len as u64)?;
        // SAFETY: the boot page tables map the first 4 GiB; the loader's and the firmware's tables are not written
        // while boot reads them. Reading a device by a wrong pointer in a table has no effect on memory.
        (end <= BOOT_REACH).then(|| unsafe { core::slice::from_raw_parts(phys_to_virt(addr), len) })
    }
}

/// Frames of the kernel's allotment that nobody has yet.
#[derive(Debug)]
pub struct BootFrames {
    next: u64,
    end: u64,
}

impl BootFrames {
    /// A zeroed frame; stops the machine if there is none.
    pub fn take_frame(&mut self) -> PhysAddr {
        match self.take() {
            Some(frame) => frame,
            None => super::refuse(format_args!("kernel memory ran out during boot (try kmem=16)")),
        }
    }

    /// Zeroed memory, page-aligned, for ever.
    pub fn take_bytes(&mut self, bytes: usize) -> *mut u8 {
        let first = self.take_frame();
        for _ in 1..bytes.div_ceil(4096) {
            self.take_frame();
        }
        phys_to_virt(first)
    }

    /// The frames that are left.
    pub fn rest(self) -> impl Iterator<Item = PhysAddr> {
        (self.next..self.end).step_by(4096).map(PhysAddr)
    }
}

impl FrameSource for BootFrames {
    fn take(&mut self) -> Option<PhysAddr> {
        if self.next == self.end {
            return None;
        }
        let frame = PhysAddr(self.next);
        self.next += 4096;
        // SAFETY: the frame is RAM of the allotment, handed out once.
        unsafe { zero_frame(frame) };
        Some(frame)
    }

    fn give(&mut self, _frame: PhysAddr) {}
}

/// Page tables during boot take their frames from here.
struct Borrowed<'a>(&'a mut BootFrames);

impl FrameSource for Borrowed<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        self.0.take()
    }

    fn give(&mut self, _frame: PhysAddr) {}
}

unsafe extern "C" {
    static nacre_image_start: u8;
    static nacre_text_start: u8;
    static nacre_rodata_start: u8;
    static nacre_data_start: u8;
    static nacre_virt_end: u8;
}

fn address(symbol: *const u8) -> u64 {
    symbol as u64
}

/// Takes the kernel's allotment out of RAM and builds the final page tables.
pub fn take_over(system: &System) -> BootFrames {
    let image = Region {
        base: address(&raw const nacre_image_start),
        end: kernel_virt_to_phys(address(&raw const nacre_virt_end)).0,
    };
    let mut reserved = [Region::default(); 2 + 32];
    reserved[0] = LOW_MEMORY;
    reserved[1] = image;
    for (slot, module) in reserved[2..].iter_mut().zip(system.loader.modules.iter()) {
        *slot = Region { base: module.start, end: module.end };
    }
    let mut ram = regions::free_ram::<64>(&system.loader.memory, &[]);
    // GRUB puts modules below 1 MiB when it was started by UEFI: that memory is the root task's all the same.
    for module in system.loader.modules.iter() {
        ram.insert(Region { base: module.start & !4095, end: module.end.next_multiple_of(4096) });
    }
    let mut free = regions::free_ram::<64>(&system.loader.memory, &reserved);
    let ram_bytes: u64 = ram.regions().iter().map(|region| region.len()).sum();
    let bytes = match system.options.kmem_mib {
        Some(mib) => mib as u64 * MIB,
        None => (ram_bytes / KERNEL_SHARE).next_multiple_of(MIB).max(MIN_KERNEL_BYTES),
    };
    let Some(allotment) = free.carve(bytes, MIB).filter(|region| region.end <= BOOT_REACH) else {
        super::refuse(format_args!("no {} MiB of free RAM for the kernel below 4 GiB", bytes / MIB))
    };
    log::info!("memory: {} MiB of RAM, {} MiB for the kernel", ram_bytes / MIB, bytes / MIB);
    let mut frames = BootFrames { next: allotment.base, end: allotment.end };
    let root = build_tables(&mut frames, &ram, system);
    // SAFETY: the table maps the kernel image, the direct map and the interrupt controllers, and is kept.
    unsafe { smp::set_kernel_root(root) };
    *RAM.lock() = Some(ram);
    *FREE.lock() = Some(free);
    frames
}

fn build_tables(frames: &mut BootFrames, ram: &RegionSet<64>, system: &System) -> PhysAddr {
    let root = frames.take_frame();
    // SAFETY: nobody else uses these tables yet; their frames are in the direct map of the boot tables.
    let mut tables = unsafe { Tables::new(Borrowed(frames)) };
    let data = Attr { read: true, write: true, execute: false, uncached: false, user: false };
    let largest = if system.features.pages_1g { PageSize::G1 } else { PageSize::M2 };
    for region in ram.regions() {
        map(&mut tables, root, PHYS_BASE + region.base, *region, data, largest);
    }
    // The other CPUs' first page is in low memory, which counts as nobody's RAM.
    let trampoline = Region { base: TRAMPOLINE, end: TRAMPOLINE + 4096 };
    map(&mut tables, root, PHYS_BASE + TRAMPOLINE, trampoline, data, PageSize::K4);
    let code = Attr { write: false, execute: true, ..data };
    let constants = Attr { write: false, ..data };
    let starts = [
        (address(&raw const nacre_text_start), address(&raw const nacre_rodata_start), code),
        (address(&raw const nacre_rodata_start), address(&raw const nacre_data_start), constants),
        (address(&raw const nacre_data_start), address(&raw const nacre_virt_end), data),
    ];
    for (start, end, attr) in starts {
        let region = Region { base: start - KERNEL_BASE, end: end - KERNEL_BASE };
        map(&mut tables, root, start, region, attr, PageSize::K4);
    }
    let device = Attr { uncached: true, ..data };
    let ioapics = system.acpi.iter().flat_map(|acpi| acpi.ioapics.iter().map(|ioapic| ioapic.address as u64));
    for base in [lapic::MMIO_BASE.0].into_iter().chain(ioapics) {
        let page = Region { base: base & !4095, end: (base & !4095) + 4096 };
        map(&mut tables, root, PHYS_BASE + page.base, page, device, PageSize::K4);
    }
    for registers in system.iommus().iter().map(IommuUnit::registers) {
        map(&mut tables, root, PHYS_BASE + registers.base, registers, device, PageSize::K4);
    }
    root
}

fn map<M: PtMemory>(tables: &mut M, root: PhysAddr, va: u64, region: Region, attr: Attr, largest: PageSize) {
    let mapped =
        paging::map::<HostFormat, M>(tables, root, va, PhysAddr(region.base), region.pages(), attr, largest);
    if mapped.is_err() {
        super::refuse(format_args!("kernel memory is too small for its page tables (try kmem=16)"));
    }
}

/// Copies the kernel's half of the address space into a new top-level table.
pub fn map_kernel(root: PhysAddr) {
    let kernel: *const u64 = phys_to_virt(smp::kernel_root()).cast();
    let new: *mut u64 = phys_to_virt(root).cast();
    // SAFETY: both are frames in the direct map; the new one is the caller's. The kernel half never changes.
    unsafe { core::ptr::copy_nonoverlapping(kernel.add(256), new.add(256), 256) };
}

/// Whether a page frame is RAM, and so in the direct map.
pub fn is_ram(frame: u64) -> bool {
    let Some(base) = frame.checked_mul(4096) else {
        return false;
    };
    let ram = RAM.lock();
    ram.as_ref()
        .is_some_and(|ram| ram.regions().iter().any(|region| region.base <= base && base < region.end))
}

/// Takes zeroed pages for the root task's image out of free RAM.
pub fn take_user_pages(pages: u64) -> PhysAddr {
    let region = FREE.lock().as_mut().and_then(|free| free.carve(pages * 4096, MIB));
    let Some(region) = region else {
        super::refuse(format_args!("too little RAM for the root task"));
    };
    for frame in (region.base..region.end).step_by(4096) {
        // SAFETY: the frame is RAM, and was free until now.
        unsafe { zero_frame(PhysAddr(frame)) };
    }
    PhysAddr(region.base)
}

/// The RAM that is still free.
pub fn free_regions() -> RegionSet<64> {
    FREE.lock().unwrap_or_default()
}
