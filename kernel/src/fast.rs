//! The hypercalls that systems are made of, on a short way: portal call and reply, signal, capability look-up, vCPU run, creation.
//!
//! Each is the same as its handler in [`crate::hypercall`], for the common case: whatever is not common goes there, with all
//! registers as they were. Nothing is checked less here than there; `doc/implementation.md` lists the checks.
//!
//! Call and reply never touch the message: its eight words stay in the registers from the caller to the handler and back. What is
//! left to the code are RAX, RBX, RCX, RBP, R11, R14, R15 and RSP. RBX, RBP, R14 and R15 are the caller's and saved; RCX and
//! R11 hold its RIP and RFLAGS.

use crate::cpu::{self, Attention, Local};
use crate::hypercall::{self, Call, Failure, Outcome};
use crate::object::ec::{Ec, State};
use crate::object::pd::Pd;
use crate::object::portal::Portal;
use crate::object::sc::Sc;
use crate::object::signal::Signal;
use crate::object::vcpu::Next;
use crate::sched;
use core::arch::global_asm;
use core::mem::offset_of;
use hypercall_abi::regs::Head;
use hypercall_abi::{Hypercall, ObjectType, Rights, Selector};
use kcore::cap::Slot;
use khw::desc::RSP0_OFFSET;
use khw::entry::{Frame, SYSCALL};
use khw::mem::PHYS_BASE;
use khw::percpu::offset;

/// Where SYSCALL goes.
pub(crate) fn entry() -> u64 {
    unsafe extern "C" {
        fn nacre_fast_entry();
    }
    nacre_fast_entry as *const () as u64
}

const _: () = assert!(Hypercall::Call as u8 == 0 && Hypercall::Reply as u8 == 1);
const _: () = assert!(
    offset_of!(Call, head) == 0
        && offset_of!(Call, local) == 8
        && offset_of!(Call, ec) == 16
        && offset_of!(Call, args) == 24
);
const _: () = assert!(ObjectType::Ntfn as u8 == ObjectType::Sm as u8 + 1);

/// Status and results, in the order of the registers that the assembly loads.
#[repr(C)]
struct Results {
    status: u64,
    values: [u64; 3],
}

/// `Signal`, after the assembly found the capability and checked its type and right.
///
/// # Safety
/// `signal` is the object word of a slot that holds a semaphore or notification.
#[unsafe(no_mangle)]
unsafe extern "C" fn nacre_fast_signal(signal: *const Signal, badge: u64) {
    // SAFETY: by the contract; what a look-up found lives until the kernel entry ends.
    unsafe { &*signal }.signal(badge);
}

/// A hypercall that neither blocks, switches, nor ends anything: creation, mapping and questions. False, with nothing done, if it must start
/// again or has no such number: then the long way has it.
#[unsafe(no_mangle)]
extern "C" fn nacre_fast_plain(results: &mut Results, call: &Call) -> bool {
    let Some(number) = call.head.call() else {
        return false;
    };
    let (status, values) = match hypercall::handler(number)(call) {
        Ok(Outcome::Done(status, values)) => (status, values),
        Err(Failure::Status(status)) => (status, [0; 3]),
        _ => return false,
    };
    *results = Results { status: status as u64, values };
    true
}

/// `VcpuRun`: its results in RAX and RDX. Where the context has to wait or make way they are void: its frame gets them when the run
/// is complete.
#[unsafe(no_mangle)]
extern "C" fn nacre_fast_run(head: u64) -> Next {
    match cpu::local().ec.get() {
        Some(ec) => hypercall::vcpu::start(ec, Head(head).selector()),
        None => Next::RESCHEDULE,
    }
}

/// Goes on with whoever should run after such a hypercall, whose registers the assembly saved.
#[unsafe(no_mangle)]
extern "C" fn nacre_fast_resume() -> *mut Frame {
    sched::resume(cpu::local())
}

global_asm!(
    // RDX: the slot that the head in RAX names, with the direct map's base in R8; to 80 without a table for it. Two indices into the
    // object space of the caller's domain. Uses RDI and RSI.
    ".macro FIND_SLOT",
    "mov rdi, rax",
    "shr rdi, 32",
    "cmp edi, {selector_end}",
    "jae 80f",
    "mov rdx, gs:[{frame_end}]",
    "mov rdx, [rdx - {end} - {ec_frame} + {ec_pd}]",
    "mov rdx, [rdx + {pd_directory}]",
    "movabs r8, {phys_base}",
    "mov esi, edi",
    "shr esi, 6",
    "add rdx, r8",
    "mov rdx, [rdx + 8 * rsi]",
    "test rdx, rdx",
    "jz 80f",
    "and edi, 63",
    "shl edi, 6",
    "add rdx, rdi",
    "add rdx, r8",
    ".endm",
    ".balign 64",
    "nacre_fast_entry:",
    "swapgs",
    ".global nacre_fast_swapped",
    "nacre_fast_swapped:",
    "cmp eax, 1", // Call and Reply, with no reserved bit of the head set
    "jbe 10f",
    "cmp eax, {signal}",
    "je 50f",
    "cmp eax, {vcpu_run}",
    "je 70f",
    "cmp eax, {cap_info}",
    "je 45f",
    "cmp eax, {first_plain}",
    "jb 44f",
    "cmp eax, {last_plain}",
    "jbe 75f",
    "44:",
    "cmp eax, {map}",
    "je 75f",
    "jmp nacre_syscall_entry",
    // --- Call and Reply -------------------------------------------------------------------------------------------
    "10:",
    "mov gs:[{scratch}], rsp",
    "mov rsp, gs:[{frame_end}]",
    // What the caller keeps, into its frame; then every register but the message is free.
    "mov [rsp - {end} + {f_rip}], rcx",
    "mov [rsp - {end} + {f_rflags}], r11",
    "mov [rsp - {end} + {f_rbx}], rbx",
    "mov [rsp - {end} + {f_rbp}], rbp",
    "mov [rsp - {end} + {f_r14}], r14",
    "mov [rsp - {end} + {f_r15}], r15",
    "mov rcx, gs:[{scratch}]",
    "mov [rsp - {end} + {f_rsp}], rcx",
    "mov qword ptr [rsp - {end} + {f_vector}], {syscall}",
    "lea rbx, [rsp - {end} - {ec_frame}]", // RBX: the calling context
    "test eax, eax",
    "jnz 30f",
    // Call. The selector's slot: two indices into the object space of the caller's domain.
    "mov rbp, rax",
    "shr rbp, 32",
    "cmp ebp, {selector_end}",
    "jae 90f",
    "mov r14, [rbx + {ec_pd}]",
    "mov r14, [r14 + {pd_directory}]",
    "mov r15d, ebp",
    "shr r15d, 6",
    "movabs rcx, {phys_base}",
    "add r14, rcx",
    "mov r14, [r14 + 8 * r15]",
    "test r14, r14",
    "jz 90f",
    "and ebp, 63",
    "shl ebp, 6",
    "add r14, rbp",
    "add r14, rcx",
    // A portal that the caller may call, whose handler is idle, on this CPU.
    "cmp byte ptr [r14 + {slot_kind}], {portal}",
    "jne 90f",
    "test byte ptr [r14 + {slot_rights}], {pt_call}",
    "jz 90f",
    "mov r14, [r14 + {slot_object}]", // R14: the portal
    "mov r15, [r14 + {pt_handler}]",  // R15: the handler
    "cmp byte ptr [r15 + {ec_state}], {idle}",
    "jne 90f",
    "movzx ecx, word ptr [r15 + {ec_cpu}]",
    "cmp cx, [rbx + {ec_cpu}]",
    "jne 90f",
    "mov rcx, gs:[{local}]", // RCX: this CPU's data
    // Another domain: its page table, unless the FPU or I/O ports must change hands too, or there is something to clean.
    "mov r11, [r15 + {ec_pd}]",
    "cmp r11, [rbx + {ec_pd}]",
    "je 20f",
    "cmp qword ptr gs:[{fpu_owner}], 0",
    "jne 90f",
    "cmp qword ptr [r11 + {pd_io}], 0",
    "jne 90f",
    "cmp byte ptr [rcx + {l_crossing}], 0",
    "jne 90f",
    "mov r11, [r11 + {pd_root}]",
    "mov cr3, r11",
    // Act: the caller waits, the handler runs on its scheduling context.
    "20:",
    "mov byte ptr [rbx + {ec_state}], {blocked}",
    "mov byte ptr [r15 + {ec_state}], {active}",
    "mov [rbx + {ec_callee}], r15",
    "mov [r15 + {ec_caller}], rbx",
    "mov r11, [rbx + {ec_sc}]",
    "mov qword ptr [rbx + {ec_sc}], 0",
    "mov [r15 + {ec_sc}], r11",
    "mov [r15 + {ec_chain_sc}], r11",
    "mov [r11 + {sc_running}], r15",
    "mov [rcx + {l_ec}], r15",
    "mov [rcx + {l_active}], r15",
    "lea r11, [r15 + {ec_frame} + {end}]",
    "mov gs:[{frame_end}], r11",
    "mov rcx, [rcx + {l_tables}]",
    "mov [rcx + {rsp0}], r11",
    "mov rax, [r14 + {pt_id}]",
    "mov rcx, [r14 + {pt_ip}]",
    "mov rsp, [r15 + {ec_handler_sp}]",
    "mov r11d, 0x202",
    "xor ebx, ebx",
    "xor ebp, ebp",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "swapgs",
    "sysretq",
    // Reply. A handler in a call, whose caller entered by SYSCALL, on the caller's scheduling context: nobody helps it.
    "30:",
    "mov r15, [rbx + {ec_caller}]", // R15: the caller
    "test r15, r15",
    "jz 90f",
    "cmp byte ptr [rbx + {ec_is_handler}], 0",
    "je 90f",
    "mov rcx, gs:[{local}]",
    "mov r11, [rbx + {ec_sc}]",
    "cmp r11, [rcx + {l_sc}]",
    "jne 90f",
    "mov r11, [r15 + {ec_pd}]",
    "cmp r11, [rbx + {ec_pd}]",
    "je 40f",
    "cmp qword ptr gs:[{fpu_owner}], 0",
    "jne 90f",
    "cmp qword ptr [r11 + {pd_io}], 0",
    "jne 90f",
    "cmp byte ptr [rcx + {l_crossing}], 0",
    "jne 90f",
    "mov r11, [r11 + {pd_root}]",
    "mov cr3, r11",
    "40:",
    "mov byte ptr [rbx + {ec_state}], {idle}",
    "mov byte ptr [r15 + {ec_state}], {active}",
    "mov qword ptr [rbx + {ec_caller}], 0",
    "mov qword ptr [r15 + {ec_callee}], 0",
    "mov r11, [rbx + {ec_sc}]",
    "mov qword ptr [rbx + {ec_sc}], 0",
    "mov [r15 + {ec_sc}], r11",
    "mov [r11 + {sc_running}], r15",
    "mov [rcx + {l_ec}], r15",
    "mov [rcx + {l_active}], r15",
    "lea rsp, [r15 + {ec_frame} + {end}]",
    "mov gs:[{frame_end}], rsp",
    "mov rcx, [rcx + {l_tables}]",
    "mov [rcx + {rsp0}], rsp",
    "xor eax, eax", // Success
    "mov rcx, [rsp - {end} + {f_rip}]",
    "mov r11, [rsp - {end} + {f_rflags}]",
    "mov rbx, [rsp - {end} + {f_rbx}]",
    "mov rbp, [rsp - {end} + {f_rbp}]",
    "mov r14, [rsp - {end} + {f_r14}]",
    "mov r15, [rsp - {end} + {f_r15}]",
    "mov rsp, [rsp - {end} + {f_rsp}]",
    "swapgs",
    "sysretq",
    // --- CapInfo: no stack, no frame; registers that carry no result are cleared ------------------------------------------
    "45:",
    "FIND_SLOT",
    "movzx edi, byte ptr [rdx + {slot_kind}]",
    "test edi, edi",
    "jz 80f",
    "movzx eax, word ptr [rdx + {slot_rights}]",
    "shl eax, 16",
    "xor esi, esi",
    "cmp edi, {first_range}",
    "jb 46f",
    "cmp edi, {log}",
    "je 46f",
    "mov rsi, [rdx + {slot_object}]", // of an object it would be a kernel address
    "46:",
    "mov rdx, [rdx + {slot_count}]",
    "or edi, eax",
    "xor eax, eax", // Success
    "xor r8d, r8d",
    "swapgs",
    "sysretq",
    // --- Signal: a Rust function on the kernel stack; no frame unless the context changes --------------------------------------
    "50:",
    "FIND_SLOT",
    "movzx esi, byte ptr [rdx + {slot_kind}]",
    "sub esi, {sm}",
    "cmp esi, 1", // a semaphore or a notification
    "ja 80f",
    "test byte ptr [rdx + {slot_rights}], {right_signal}",
    "jz 80f",
    "mov rdi, [rdx + {slot_object}]",
    "mov rsi, [rdx + {slot_count}]",
    "mov gs:[{scratch}], rsp",
    "mov rsp, gs:[{stack_top}]",
    "push gs:[{scratch}]",
    "push rcx",
    "push r11",
    "sub rsp, 8", // the alignment of a call
    "call nacre_fast_signal",
    "xor eax, eax", // Success
    "xor edi, edi",
    "xor esi, esi",
    "xor edx, edx",
    // Status and results are in place.
    "58:",
    "mov rcx, gs:[{local}]",
    "cmp byte ptr [rcx + {l_attention}], 0",
    "jne 60f",
    ".global nacre_fast_return",
    "nacre_fast_return:",
    "mov r11, [rsp + 8]",
    "mov rcx, [rsp + 16]",
    "mov rsp, [rsp + 24]",
    // What the kernel left in them is nobody's business.
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "swapgs",
    "sysretq",
    // CapInfo or Signal in an uncommon case: nothing was changed, and no argument but the head counts.
    "80:",
    "xor edi, edi",
    "xor esi, esi",
    "xor edx, edx",
    "xor r8d, r8d",
    "jmp nacre_syscall_entry",
    // --- VcpuRun -----------------------------------------------------------------------------------------------------------
    "70:",
    "mov gs:[{scratch}], rsp",
    "mov rsp, gs:[{stack_top}]",
    "push gs:[{scratch}]",
    "push rcx",
    "push r11",
    "sub rsp, 8",
    "mov rdi, rax",
    "call nacre_fast_run",
    "mov edi, edx",
    "xor esi, esi",
    "xor edx, edx",
    "jmp 58b",
    // --- Creation, mapping and questions: a Rust function with the arguments on the stack -----------------------------------------
    "75:",
    "mov gs:[{scratch}], rsp",
    "mov rsp, gs:[{stack_top}]",
    "push gs:[{scratch}]",
    "push rcx",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rdx",
    "push rsi",
    "push rdi",
    "mov rdx, gs:[{local}]",
    "push [rdx + {l_ec}]",
    "push rdx",
    "push rax",
    "mov rsi, rsp", // a `Call`
    "sub rsp, 32",
    "mov rdi, rsp",
    "call nacre_fast_plain",
    "test al, al",
    "jz 76f",
    "pop rax",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "add rsp, 64",
    "jmp 58b",
    "76:",
    "add rsp, 32",
    "pop rax",
    "add rsp, 16",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop r8",
    "pop r9",
    "pop r10",
    "pop r11",
    "pop rcx",
    "pop rsp",
    "jmp nacre_syscall_entry",
    // Somebody else should run: save what the caller keeps, and schedule.
    "60:",
    "test byte ptr [rcx + {l_attention}], {switch}",
    "jz nacre_traced_return",
    "mov r11, [rsp + 8]",
    "mov rcx, [rsp + 16]",
    "mov r8, [rsp + 24]",
    "mov r9, gs:[{frame_end}]",
    "mov [r9 - {end} + {f_rip}], rcx",
    "mov [r9 - {end} + {f_rflags}], r11",
    "mov [r9 - {end} + {f_rsp}], r8",
    "mov [r9 - {end} + {f_rbx}], rbx",
    "mov [r9 - {end} + {f_rbp}], rbp",
    "mov [r9 - {end} + {f_r12}], r12",
    "mov [r9 - {end} + {f_r13}], r13",
    "mov [r9 - {end} + {f_r14}], r14",
    "mov [r9 - {end} + {f_r15}], r15",
    "mov [r9 - {end} + {f_rax}], rax",
    "mov [r9 - {end} + {f_rdi}], rdi",
    "mov [r9 - {end} + {f_rsi}], rsi",
    "mov [r9 - {end} + {f_rdx}], rdx",
    "mov qword ptr [r9 - {end} + {f_r8}], 0",
    "mov qword ptr [r9 - {end} + {f_r9}], 0",
    "mov qword ptr [r9 - {end} + {f_r10}], 0",
    "mov qword ptr [r9 - {end} + {f_vector}], {syscall}",
    "mov rsp, gs:[{stack_top}]",
    "xor ebp, ebp",
    "call nacre_fast_resume",
    "mov rdi, rax",
    "jmp nacre_leave",
    // --- Not the common case: everything back as it was, and the long way -----------------------------------------------
    "90:",
    "mov rcx, [rsp - {end} + {f_rip}]",
    "mov r11, [rsp - {end} + {f_rflags}]",
    "mov rbx, [rsp - {end} + {f_rbx}]",
    "mov rbp, [rsp - {end} + {f_rbp}]",
    "mov r14, [rsp - {end} + {f_r14}]",
    "mov r15, [rsp - {end} + {f_r15}]",
    "mov rsp, [rsp - {end} + {f_rsp}]",
    "jmp nacre_syscall_entry",
    signal = const Hypercall::Signal as u8,
    vcpu_run = const Hypercall::VcpuRun as u8,
    cap_info = const Hypercall::CapInfo as u8,
    map = const Hypercall::Map as u8,
    first_plain = const Hypercall::CreatePool as u8,
    last_plain = const Hypercall::PoolInfo as u8,
    scratch = const offset::SCRATCH,
    frame_end = const offset::FRAME_END,
    stack_top = const offset::STACK_TOP,
    local = const offset::LOCAL,
    fpu_owner = const offset::FPU_OWNER,
    end = const size_of::<Frame>(),
    syscall = const SYSCALL,
    f_rip = const offset_of!(Frame, rip),
    f_rflags = const offset_of!(Frame, rflags),
    f_rsp = const offset_of!(Frame, rsp),
    f_rax = const offset_of!(Frame, rax),
    f_rbx = const offset_of!(Frame, rbx),
    f_rdx = const offset_of!(Frame, rdx),
    f_rsi = const offset_of!(Frame, rsi),
    f_rdi = const offset_of!(Frame, rdi),
    f_rbp = const offset_of!(Frame, rbp),
    f_r8 = const offset_of!(Frame, r8),
    f_r9 = const offset_of!(Frame, r9),
    f_r10 = const offset_of!(Frame, r10),
    f_r12 = const offset_of!(Frame, r12),
    f_r13 = const offset_of!(Frame, r13),
    f_r14 = const offset_of!(Frame, r14),
    f_r15 = const offset_of!(Frame, r15),
    f_vector = const offset_of!(Frame, vector),
    ec_frame = const Ec::FRAME_OFFSET,
    ec_pd = const offset_of!(Ec, pd),
    ec_cpu = const offset_of!(Ec, cpu),
    ec_is_handler = const offset_of!(Ec, is_handler),
    ec_state = const offset_of!(Ec, state),
    ec_sc = const offset_of!(Ec, sc),
    ec_caller = const offset_of!(Ec, caller),
    ec_callee = const offset_of!(Ec, callee),
    ec_chain_sc = const offset_of!(Ec, chain_sc),
    ec_handler_sp = const offset_of!(Ec, handler_sp),
    idle = const State::Idle as u8,
    active = const State::Active as u8,
    blocked = const State::Blocked as u8,
    pd_directory = const offset_of!(Pd, directory),
    pd_root = const offset_of!(Pd, root),
    pd_io = const offset_of!(Pd, io_bitmap),
    pt_handler = const offset_of!(Portal, handler),
    pt_ip = const offset_of!(Portal, ip),
    pt_id = const offset_of!(Portal, id),
    sc_running = const offset_of!(Sc, running),
    slot_kind = const offset_of!(Slot, kind),
    slot_rights = const offset_of!(Slot, rights),
    slot_object = const offset_of!(Slot, object),
    slot_count = const offset_of!(Slot, count),
    sm = const ObjectType::Sm as u8,
    right_signal = const Rights::SIGNAL.bits(),
    first_range = const ObjectType::Memory as u8,
    log = const ObjectType::Log as u8,
    portal = const ObjectType::Pt as u8,
    pt_call = const Rights::PT_CALL.bits(),
    selector_end = const Selector::END,
    phys_base = const PHYS_BASE,
    l_ec = const offset_of!(Local, ec),
    l_sc = const offset_of!(Local, sc),
    l_active = const offset_of!(Local, active),
    l_tables = const offset_of!(Local, tables),
    l_attention = const offset_of!(Local, attention),
    switch = const Attention::SWITCH,
    l_crossing = const offset_of!(Local, crossing),
    rsp0 = const RSP0_OFFSET,
);
