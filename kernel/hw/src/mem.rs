//! Physical memory as the kernel sees it: the direct map and the kernel image.

use crate::flush_checker;
use core::sync::atomic::{AtomicU64, Ordering};
use kcore::addr::PhysAddr;
use kcore::paging::PtMemory;

/// Virtual address of physical address 0: all RAM is mapped from here, write-back, writable, not executable.
pub const PHYS_BASE: u64 = 0xffff_8000_0000_0000;

/// Virtual address of physical address 0 in the window that holds the kernel image (`link.ld` has the same value).
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// Where a physical address is in the direct map.
#[inline]
pub const fn phys_to_virt(addr: PhysAddr) -> *mut u8 {
    (PHYS_BASE + addr.0) as *mut u8
}

/// The physical address of something in the kernel image.
#[inline]
pub const fn kernel_virt_to_phys(addr: u64) -> PhysAddr {
    PhysAddr(addr - KERNEL_BASE)
}

/// The physical address of something in the direct map.
#[inline]
pub const fn direct_virt_to_phys(addr: u64) -> PhysAddr {
    PhysAddr(addr - PHYS_BASE)
}

/// Zeroes a frame.
///
/// # Safety
/// The frame is RAM in the direct map, and nothing else uses it.
#[inline]
pub unsafe fn zero_frame(frame: PhysAddr) {
    // SAFETY: the caller owns the frame. REP STOSQ writes 512 quadwords, its 4096 bytes, and touches nothing else.
    unsafe {
        core::arch::asm!("rep stosq", inout("rcx") 512 => _, inout("rdi") phys_to_virt(frame) => _, in("rax") 0,
            options(nostack, preserves_flags));
    }
}

/// Page tables in the direct map, with frames from `A`.
#[derive(Debug)]
pub struct Tables<A> {
    frames: A,
}

/// Where page tables get their frames.
pub trait FrameSource {
    /// A zeroed frame.
    fn take(&mut self) -> Option<PhysAddr>;
    /// Gives a frame back.
    fn give(&mut self, frame: PhysAddr);
}

/// No frames: tables that are only read.
impl FrameSource for () {
    fn take(&mut self) -> Option<PhysAddr> {
        None
    }

    fn give(&mut self, _: PhysAddr) {}
}

impl<A: FrameSource> Tables<A> {
    /// # Safety
    /// Every table reached from the roots that this value is used with came from a frame source of the same pool (or
    /// from boot), is in the direct map, and is modified by nobody else meanwhile; hardware may read it. To read tables, it is
    /// enough that they stay tables meanwhile.
    pub unsafe fn new(frames: A) -> Self {
        Tables { frames }
    }
}

impl<A: FrameSource> PtMemory for Tables<A> {
    #[inline]
    fn read(&self, table: PhysAddr, index: usize) -> u64 {
        // SAFETY: `new` promised that the table is in the direct map; the index stays in its page by the mask.
        unsafe { phys_to_virt(table).cast::<u64>().add(index & 511).read_volatile() }
    }

    #[inline]
    fn write(&mut self, table: PhysAddr, index: usize, entry: u64) {
        let old = if crate::CHECKERS { self.read(table, index) } else { 0 };
        // SAFETY: as in `read`; `new` promised that nobody else writes.
        unsafe { phys_to_virt(table).cast::<u64>().add(index & 511).write_volatile(entry) }
        flush_checker::table_write(old, entry);
    }

    fn clear(&mut self, table: PhysAddr, index: usize, bits: u64) -> u64 {
        // SAFETY: as in `read`; the entry is aligned. Other CPUs' table walks are the only ones to change it meanwhile.
        let entry = unsafe { AtomicU64::from_ptr(phys_to_virt(table).cast::<u64>().add(index & 511)) };
        let old = entry.fetch_and(!bits, Ordering::AcqRel);
        flush_checker::table_write(old, old & !bits);
        old
    }

    fn alloc_table(&mut self) -> Option<PhysAddr> {
        self.frames.take()
    }

    fn free_table(&mut self, table: PhysAddr) {
        flush_checker::free_table();
        self.frames.give(table);
    }
}
