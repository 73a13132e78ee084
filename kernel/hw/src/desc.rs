//! Descriptor tables: one GDT and TSS for each CPU, one IDT for all.

use crate::entry;
use crate::mem::phys_to_virt;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::size_of;
use kcore::addr::PhysAddr;

/// Kernel code segment; the data segment is the next one, as SYSCALL wants it.
pub const KERNEL_CODE: u16 = 0x08;
/// Kernel data segment.
pub const KERNEL_DATA: u16 = 0x10;
/// User data segment, then user code, as SYSRET wants them.
pub const USER_DATA: u16 = 0x20 | 3;
/// User code segment.
pub const USER_CODE: u16 = 0x28 | 3;
/// Task-state segment.
pub const TSS: u16 = 0x30;

/// Bytes of an I/O permission bitmap for all ports.
pub const IO_BITMAP_BYTES: usize = 8192;
const STACK_BYTES: usize = 16384;
const IST_BYTES: usize = 8192;
/// I/O map base beyond the TSS limit: every port faults.
const NO_IO_BITMAP: u16 = 0xffff;

/// SDM 3A 8.7 "64-bit task state segment", with its I/O bitmap and the byte of ones that must follow.
#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
    io_bitmap: [u8; IO_BITMAP_BYTES],
    io_end: u8,
}

const TSS_LIMIT: u64 = (core::mem::offset_of!(Tss, io_end)) as u64;
const _: () = assert!(core::mem::offset_of!(Tss, io_bitmap) == 104);

/// Stacks and tables of one CPU; lives for ever.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct CpuTables {
    stack: Stack<STACK_BYTES>,
    nmi_stack: Stack<IST_BYTES>,
    fault_stack: Stack<IST_BYTES>,
    machine_check_stack: Stack<IST_BYTES>,
    tss: TssCell,
    gdt: [u64; 8],
}

#[repr(C, align(16))]
#[derive(Debug)]
struct Stack<const N: usize>([u8; N]);

#[repr(C, align(16))]
struct TssCell(UnsafeCell<Tss>);

impl core::fmt::Debug for TssCell {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Tss")
    }
}

/// Offset of TSS.RSP0 in [`CpuTables`], for assembly.
pub const RSP0_OFFSET: usize = core::mem::offset_of!(CpuTables, tss) + core::mem::offset_of!(Tss, rsp);

/// Bytes of [`CpuTables`].
pub const CPU_TABLES_BYTES: usize = size_of::<CpuTables>();

/// IST index of NMIs.
const IST_NMI: u8 = 1;
/// IST index of double faults.
const IST_FAULT: u8 = 2;
/// IST index of machine checks.
const IST_MACHINE_CHECK: u8 = 3;

impl CpuTables {
    /// Fills in zeroed memory and loads GDT, TSS, segment registers and IDT on this CPU.
    ///
    /// # Safety
    /// `this` is zeroed, exclusive and stays for ever. Interrupts are off. [`build_idt`] ran.
    pub unsafe fn load(this: *mut CpuTables) {
        // SAFETY: the caller's memory is exclusive.
        let tables = unsafe { &mut *this };
        let top = |base: *const u8, bytes: usize| base as u64 + bytes as u64;
        let tss = tables.tss.0.get_mut();
        tss.ist[IST_NMI as usize - 1] = top((&raw const tables.nmi_stack).cast(), IST_BYTES);
        tss.ist[IST_FAULT as usize - 1] = top((&raw const tables.fault_stack).cast(), IST_BYTES);
        tss.ist[IST_MACHINE_CHECK as usize - 1] =
            top((&raw const tables.machine_check_stack).cast(), IST_BYTES);
        tss.io_map_base = NO_IO_BITMAP;
        tss.io_bitmap = [0xff; IO_BITMAP_BYTES];
        tss.io_end = 0xff;
        let tss_base = (&raw const tables.tss) as u64;
        tables.gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            tss_descriptor(tss_base),
            tss_base >> 32,
        ];
        let gdt =
            TablePointer { limit: (size_of::<[u64; 8]>() - 1) as u16, base: (&raw const tables.gdt) as u64 };
        let idt = TablePointer { limit: (size_of::<[Gate; 256]>() - 1) as u16, base: idt_base() };
        // LDTR has base 0 and limit FFFFH after reset: user code would find descriptors there, in memory of its own.
        // SAFETY: both tables are complete and permanent; the selectors are those of the GDT just written. FS and GS
        // get null selectors, which zeroes their bases: the caller installs the per-CPU block afterwards.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "push {code}",
                "lea {tmp}, [rip + 2f]",
                "push {tmp}",
                "retfq",
                "2:",
                "mov ss, {data:e}",
                "mov ds, {null:e}",
                "mov es, {null:e}",
                "mov fs, {null:e}",
                "mov gs, {null:e}",
                "lidt [{idt}]",
                "lldt {null:x}",
                "ltr {tss:x}",
                gdt = in(reg) &gdt,
                idt = in(reg) &idt,
                code = const KERNEL_CODE,
                data = in(reg) KERNEL_DATA as u32,
                null = in(reg) 0u32,
                tss = in(reg) TSS,
                tmp = out(reg) _,
            );
        }
    }

    /// Top of the kernel stack.
    pub fn stack_top(this: *const CpuTables) -> u64 {
        this as u64 + STACK_BYTES as u64
    }

    /// Base of the GDT.
    pub fn gdt_base(this: *const CpuTables) -> u64 {
        this as u64 + core::mem::offset_of!(CpuTables, gdt) as u64
    }

    /// Base of the TSS.
    pub fn tss_base(this: *const CpuTables) -> u64 {
        this as u64 + core::mem::offset_of!(CpuTables, tss) as u64
    }

    /// Where the CPU pushes on an interrupt from user mode (`TSS.RSP0`).
    ///
    /// # Safety
    /// `this` is the table of the current CPU; `end` is 16-byte aligned and has room for a [`entry::Frame`] below.
    #[inline]
    pub unsafe fn set_frame_end(this: *mut CpuTables, end: u64) {
        // SAFETY: only this CPU touches its TSS, and the CPU itself reads it only at an interrupt.
        unsafe { (*(*this).tss.0.get()).rsp[0] = end }
    }

    /// Copies an I/O bitmap of two frames for the code that runs next in user mode, and opens it.
    ///
    /// # Safety
    /// As [`Self::set_frame_end`]; both frames are in the direct map.
    pub unsafe fn use_io_bitmap(this: *mut CpuTables, frames: [PhysAddr; 2]) {
        // SAFETY: as in `set_frame_end`; the bitmap has room for both frames. No 8 KiB copy on the kernel stack.
        unsafe {
            let tss = (*this).tss.0.get();
            for (half, frame) in frames.into_iter().enumerate() {
                let target = (&raw mut (*tss).io_bitmap).cast::<u8>().add(half * IO_BITMAP_BYTES / 2);
                core::ptr::copy_nonoverlapping(phys_to_virt(frame), target, IO_BITMAP_BYTES / 2);
            }
        }
        // SAFETY: as in `set_frame_end`.
        unsafe { Self::open_io_bitmap(this, true) }
    }

    /// Makes the bitmap that was copied last usable or not, without copying it again.
    ///
    /// # Safety
    /// As [`Self::set_frame_end`].
    pub unsafe fn open_io_bitmap(this: *mut CpuTables, is_open: bool) {
        let base = if is_open { core::mem::offset_of!(Tss, io_bitmap) as u16 } else { NO_IO_BITMAP };
        // SAFETY: as in `set_frame_end`.
        unsafe { (*(*this).tss.0.get()).io_map_base = base }
    }

    /// Reloads TR: a VM exit leaves it with a limit of 67H (SDM 3C 28.5.2), which hides the I/O bitmap.
    ///
    /// # Safety
    /// As [`Self::set_frame_end`].
    pub unsafe fn reload_tr(this: *mut CpuTables) {
        // SAFETY: LTR wants an available TSS: writing the descriptor afresh clears its busy bit.
        unsafe {
            (*this).gdt[TSS as usize / 8] = tss_descriptor(Self::tss_base(this));
            asm!("ltr {:x}", in(reg) TSS, options(nostack, preserves_flags));
        }
    }
}

/// Low half of the descriptor of an available 64-bit TSS.
const fn tss_descriptor(base: u64) -> u64 {
    (TSS_LIMIT & 0xffff)
        | (base & 0xff_ffff) << 16
        | 0x89 << 40
        | (TSS_LIMIT >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[Gate; 256]>);
// SAFETY: written once by `build_idt` before any other CPU runs.
unsafe impl Sync for Idt {}
static IDT: Idt = Idt(UnsafeCell::new([Gate { low: 0, high: 0 }; 256]));

/// Base of the IDT.
pub fn idt_base() -> u64 {
    IDT.0.get() as u64
}

/// Fills the IDT: interrupt gates for all vectors, own stacks for NMI, double fault and machine check. #DB has the stack of the
/// double fault: it may come at the first instruction after SYSCALL, where RSP is still the user's.
///
/// # Safety
/// Once, on the boot CPU, before [`CpuTables::load`].
pub unsafe fn build_idt() {
    for vector in 0..256usize {
        let ist = match vector {
            2 => IST_NMI,
            1 | 8 => IST_FAULT,
            18 => IST_MACHINE_CHECK,
            _ => 0,
        };
        let handler = entry::stub(vector);
        // Breakpoint and overflow may be raised by user code.
        let dpl: u64 = if vector == 3 || vector == 4 { 3 } else { 0 };
        let low = (handler & 0xffff)
            | (KERNEL_CODE as u64) << 16
            | (ist as u64) << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        // SAFETY: no other CPU runs and this one has no IDT yet.
        unsafe { (*IDT.0.get())[vector] = Gate { low, high: handler >> 32 } };
    }
}
