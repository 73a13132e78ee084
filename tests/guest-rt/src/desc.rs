//! Segments, task state and interrupt descriptors.

use core::arch::asm;
use core::cell::UnsafeCell;

/// Kernel code, 64 bits.
pub const KERNEL_CODE: u16 = 0x08;
/// Kernel data.
pub const KERNEL_DATA: u16 = 0x10;
/// User code, 32 bits.
pub const USER_CODE32: u16 = 0x18 | 3;
/// User data.
pub const USER_DATA: u16 = 0x20 | 3;
/// User code, 64 bits.
pub const USER_CODE: u16 = 0x28 | 3;
/// Kernel code, 32 bits, flat.
pub const KERNEL_CODE32: u16 = 0x38;
/// Kernel code, 16 bits, base 0, 64 KiB.
pub const KERNEL_CODE16: u16 = 0x40;
/// Kernel data, base 0, 64 KiB.
pub const KERNEL_DATA16: u16 = 0x48;
const TSS: u16 = 0x50;

const STACK_BYTES: usize = 16 * 1024;

/// Vectors that arrive while RSP may be of no use: NMI, #DF and #MC run on stacks of their own.
const IST_VECTORS: [(u8, u8); 3] = [(2, 1), (8, 2), (18, 3)];

#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    attributes: u8,
    offset_mid: u16,
    offset_high: u32,
    reserved: u32,
}

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

#[repr(C, align(16))]
struct Tables {
    tss: UnsafeCell<TaskState>,
    idt: UnsafeCell<[Gate; 256]>,
    /// For NMI, #DF, #MC and entries from user mode.
    stacks: [Stack; 4],
}

// SAFETY: written once by `init` on the only CPU; later only the processor reads and writes them.
unsafe impl Sync for Tables {}

const NO_GATE: Gate =
    Gate { offset_low: 0, selector: 0, ist: 0, attributes: 0, offset_mid: 0, offset_high: 0, reserved: 0 };

static TABLES: Tables = Tables {
    tss: UnsafeCell::new(TaskState {
        reserved0: 0,
        rsp: [0; 3],
        reserved1: 0,
        ist: [0; 7],
        reserved2: 0,
        reserved3: 0,
        io_map_base: 0,
    }),
    idt: UnsafeCell::new([NO_GATE; 256]),
    stacks: [const { Stack(UnsafeCell::new([0; STACK_BYTES])) }; 4],
};

/// Operand of LGDT, LIDT, SGDT and SIDT in 64-bit mode.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TablePointer {
    /// Bytes of the table, less one.
    pub limit: u16,
    /// Linear address of the table.
    pub base: u64,
}

unsafe extern "C" {
    static mut trt_gdt: [u64; 12];
    static trt_stubs: [[u8; 16]; 256];
}

/// Fills and loads the TSS and the IDT. The GDT was loaded by boot.S.
pub(crate) fn init() {
    let tss_address = TABLES.tss.get() as u64;
    // SAFETY: called once, before anything else looks at the tables.
    unsafe {
        let tss = &mut *TABLES.tss.get();
        tss.io_map_base = size_of::<TaskState>() as u16;
        for (index, stack) in TABLES.stacks.iter().enumerate() {
            let top = stack.0.get() as u64 + STACK_BYTES as u64;
            if index < 3 {
                tss.ist[index] = top;
            } else {
                tss.rsp[0] = top;
            }
        }
        let limit = size_of::<TaskState>() as u64 - 1;
        // Available 64-bit TSS, DPL 0 (SDM 3A 8.2.3).
        trt_gdt[10] = limit | (tss_address & 0xff_ffff) << 16 | 0x89 << 40 | (tss_address >> 24 & 0xff) << 56;
        trt_gdt[11] = tss_address >> 32;
        asm!("ltr {:x}", in(reg) TSS, options(nostack, preserves_flags));

        for vector in 0..=255_u8 {
            // Breakpoints may come from user mode.
            let dpl = if vector == 3 { 3 } else { 0 };
            let ist = IST_VECTORS.iter().find(|(v, _)| *v == vector).map_or(0, |(_, ist)| *ist);
            (*TABLES.idt.get())[usize::from(vector)] = gate(stub(vector), ist, dpl);
        }
    }
    load_idt();
}

fn stub(vector: u8) -> u64 {
    &raw const trt_stubs as u64 + 16 * u64::from(vector)
}

/// A 64-bit interrupt gate (SDM 3A 6.14.1).
fn gate(offset: u64, ist: u8, dpl: u8) -> Gate {
    Gate {
        offset_low: offset as u16,
        selector: KERNEL_CODE,
        ist,
        attributes: 0x8e | dpl << 5,
        offset_mid: (offset >> 16) as u16,
        offset_high: (offset >> 32) as u32,
        reserved: 0,
    }
}

/// (Re)loads the runtime's IDT.
pub fn load_idt() {
    let pointer = TablePointer { limit: 256 * 16 - 1, base: TABLES.idt.get() as u64 };
    // SAFETY: the table was filled by `init` and lives for ever.
    unsafe { lidt(&pointer) };
}

/// Loads an IDT.
///
/// # Safety
/// The next interrupt or exception goes through it.
pub unsafe fn lidt(pointer: &TablePointer) {
    // SAFETY: the caller vouches for the table.
    unsafe { asm!("lidt [{}]", in(reg) pointer, options(nostack, preserves_flags)) };
}
