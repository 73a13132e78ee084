//! The trace: what a CPU does, as records in memory that the holder of a capability gave (SPEC.md 4.10).
//!
//! That memory is only written, and where the next record goes is kept in [`Local`]. While a CPU records nothing, its short ways cost
//! what they cost without this file: SYSCALL is recorded by an entry point of its own, which LSTAR names only while the CPU records; the
//! way back to user code tests [`Attention`] anyway.

use crate::cap::BoundList;
use crate::cpu::{Attention, Local};
use crate::fast;
use crate::object::Header;
use crate::object::ec::Ec;
use core::arch::global_asm;
use core::cell::Cell;
use core::mem::offset_of;
use hypercall_abi::boot_info::MAX_CPUS;
use hypercall_abi::trace::{Kind, RECORD_BYTES, Record, SECOND_SHIFT};
use hypercall_abi::{ObjectType, PAGE_SIZE};
use kcore::addr::PhysAddr;
use khw::cpu::{fpu, tsc};
use khw::entry::{self, SYSCALL};
use khw::mem::phys_to_virt;
use khw::percpu::offset;

/// The memory that a CPU's records go to.
#[repr(C)]
#[derive(Debug)]
pub struct Ring {
    /// Not an object's: for [`crate::cap::Target`].
    pub header: Header,
    /// The memory capability. Under the tree lock.
    pub bound: BoundList,
    /// First and last address, behind the last record; 0 for none. Written under the tree lock, whose holder then waits until
    /// the CPU has read it.
    memory: Cell<(u64, u64)>,
}

// SAFETY: each field says when it is used.
unsafe impl Sync for Ring {}

static RINGS: [Ring; MAX_CPUS] = [const {
    Ring { header: Header::new(ObjectType::Trace, None), bound: BoundList::new(), memory: Cell::new((0, 0)) }
}; MAX_CPUS];

/// The ring of a CPU.
pub fn ring(cpu: u64) -> &'static Ring {
    &RINGS[cpu as usize]
}

impl Ring {
    /// Sets the memory: RAM from physical address `first` on, or nothing. A grace period, in which the CPU calls [`follow`], ends
    /// the use of what it was before.
    pub fn set_memory(&self, first: u64, frames: u64) {
        let first = if frames == 0 { 0 } else { phys_to_virt(PhysAddr(first)) as u64 };
        self.memory.set((first, first + frames * PAGE_SIZE));
    }
}

/// Where a CPU's next record goes. All are 0 while it records nothing.
#[repr(C)]
#[derive(Debug)]
pub struct Cursor {
    next: Cell<u64>,
    first: Cell<u64>,
    end: Cell<u64>,
}

impl Cursor {
    /// A CPU that records nothing.
    pub const fn new() -> Self {
        Cursor { next: Cell::new(0), first: Cell::new(0), end: Cell::new(0) }
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::new()
    }
}

/// Does what this CPU's ring asks for: starts, or stops, recording.
pub fn follow(local: &Local) {
    let (first, end) = RINGS[local.id].memory.get();
    if local.trace.first.get() == first {
        return;
    }
    local.trace.next.set(first);
    local.trace.first.set(first);
    local.trace.end.set(end);
    let entry = if first == 0 {
        local.attention.remove(Attention::TRACE);
        fast::entry()
    } else {
        local.attention.add(Attention::TRACE);
        traced_entry()
    };
    // SAFETY: both handle SYSCALL. vCPUs remember which one is the host's until they take the CPU over from another, so
    // that they must do that anew.
    unsafe { entry::set_syscall_entry(entry) };
    fpu::release();
}

/// Records an event of this CPU, if it records.
#[inline]
pub fn record(local: &Local, kind: Kind, detail: u32, ec: Option<&Ec>) {
    if local.trace.next.get() != 0 {
        write(local, kind, detail, ec);
    }
}

/// Records that `ec`'s user code goes on.
#[inline]
pub fn returns(local: &Local, ec: &Ec) {
    if local.trace.next.get() != 0 {
        let frame = ec.frame();
        let is_call = frame.vector == SYSCALL;
        let detail = frame.rax as u8 as u32 | (frame.rdi as u16 as u32) << (SECOND_SHIFT - 8);
        write(local, Kind::Return, if is_call { detail } else { 0 }, Some(ec));
    }
}

#[cold]
fn write(local: &Local, kind: Kind, detail: u32, ec: Option<&Ec>) {
    let cursor = &local.trace;
    let record =
        Record { tsc: tsc::read(), event: kind as u32 | detail << 8, ec: ec.map_or(0, |ec| ec.number) };
    let next = cursor.next.get();
    // SAFETY: the cursor is in memory that was given for this, and stays so until after a grace period in which this CPU
    // follows. User code may read and write it at the same time: nothing is read back.
    unsafe { (next as *mut Record).write_volatile(record) };
    let next = next + RECORD_BYTES as u64;
    cursor.next.set(if next == cursor.end.get() { cursor.first.get() } else { next });
}

/// Where SYSCALL goes while the CPU records.
fn traced_entry() -> u64 {
    unsafe extern "C" {
        fn nacre_traced_entry();
    }
    nacre_traced_entry as *const () as u64
}

const _: () = assert!(size_of::<Record>() == RECORD_BYTES && PAGE_SIZE.is_multiple_of(RECORD_BYTES as u64));

global_asm!(
    // Writes a record with the event in ESI; RDI: this CPU's data. Uses RAX and RDX. Nothing, if the CPU records nothing: a vCPU may
    // have left the entry below behind.
    ".macro RECORD",
    "mov r8, [rdi + {next}]",
    "test r8, r8",
    "jz 9f",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "mov rdx, [rdi + {l_ec}]",
    "mov edx, [rdx + {ec_number}]",
    "mov [r8 + {r_tsc}], rax",
    "mov [r8 + {r_event}], esi",
    "mov [r8 + {r_ec}], edx",
    "add r8, {record}",
    "cmp r8, [rdi + {end}]",
    "cmove r8, [rdi + {first}]",
    "mov [rdi + {next}], r8",
    "9:",
    ".endm",
    // In place of `nacre_fast_entry`, to which it goes on with all registers as they were.
    ".balign 64",
    "nacre_traced_entry:",
    "swapgs",
    "mov gs:[{scratch}], rsp",
    "mov rsp, gs:[{stack_top}]",
    "push rax",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "movzx esi, al",
    "shr rax, 32",
    "shl eax, {second}",
    "shl esi, 8",
    "lea esi, [rsi + rax + {hypercall}]",
    "mov rdi, gs:[{local}]",
    "RECORD",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rax",
    "mov rsp, gs:[{scratch}]",
    "jmp nacre_fast_swapped",
    // From the end of a short way, with this CPU's data in RCX, status and results in place, to back there.
    ".global nacre_traced_return",
    "nacre_traced_return:",
    "push rax",
    "push rdx",
    "push rsi",
    "push rdi",
    "movzx esi, al",
    "shl edi, {second}",
    "shl esi, 8",
    "lea esi, [rsi + rdi + {returns}]",
    "mov rdi, rcx",
    "RECORD",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rax",
    "jmp nacre_fast_return",
    second = const SECOND_SHIFT,
    hypercall = const Kind::Hypercall as u8,
    returns = const Kind::Return as u8,
    scratch = const offset::SCRATCH,
    stack_top = const offset::STACK_TOP,
    local = const offset::LOCAL,
    next = const offset_of!(Local, trace) + offset_of!(Cursor, next),
    first = const offset_of!(Local, trace) + offset_of!(Cursor, first),
    end = const offset_of!(Local, trace) + offset_of!(Cursor, end),
    l_ec = const offset_of!(Local, ec),
    ec_number = const offset_of!(Ec, number),
    r_tsc = const offset_of!(Record, tsc),
    r_event = const offset_of!(Record, event),
    r_ec = const offset_of!(Record, ec),
    record = const RECORD_BYTES,
);
