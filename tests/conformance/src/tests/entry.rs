//! Odd ways into the kernel: flags, segment registers, other modes, the edges of user space.

use super::{Group, Needs, group};
use crate::layout::{BOARD, PD, SLEEP};
use crate::prelude::*;
use crate::threads::{self, HIGH};
use crate::world::board;
use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering;

pub(super) const GROUP: Group = group!(
    "kernel entry",
    Needs::Nothing => [
        a_hypercall_preserves_what_the_contract_says,
        segment_bases_are_zero,
        odd_flags_at_a_hypercall_do_no_harm,
        a_trap_flag_at_a_hypercall_stops_the_thread_after_it,
        every_selector_in_a_data_segment_register_does_no_harm,
        descriptors_in_user_memory_are_not_used,
        no_selector_leads_into_another_mode,
        sysenter_is_no_way_in,
        a_hypercall_at_the_end_of_user_space_returns_there,
        a_hypercall_with_any_stack_pointer_returns,
        rip_at_every_edge_of_user_space_is_survived,
        registers_survive_preemption,
        flags_survive_preemption,
    ],
);

fn a_hypercall_preserves_what_the_contract_says(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    // A call that changes nothing, one that succeeds, one that waits.
    for (head, argument) in [
        (PoolInfo as u64 | w.pool << 32, 0),
        (0xff, 5),
        (Signal as u64 | sm << 32, 0),
        (Wait as u64 | SLEEP << 32, w.deadline(2000)),
    ] {
        let mut values: [u64; 9] = core::array::from_fn(|index| 0x1111_1111_1111_1111 * (index as u64 + 1));
        let before = values;
        let (rsp_before, rsp_after): (u64, u64);
        // SAFETY: saves and restores what the compiler keeps for itself (RBX, RBP); the call touches no memory.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "mov rbx, [r11]",
                "mov r8, [r11 + 16]",
                "mov r9, [r11 + 24]",
                "mov r10, [r11 + 32]",
                "mov r12, [r11 + 40]",
                "mov r13, [r11 + 48]",
                "mov r14, [r11 + 56]",
                "mov r15, [r11 + 64]",
                "mov rbp, [r11 + 8]",
                "push r11",
                "mov rcx, rsp",
                "push rcx",
                "syscall",
                "pop rcx",
                "pop r11",
                "mov [r11], rbx",
                "mov [r11 + 8], rbp",
                "mov [r11 + 16], r8",
                "mov [r11 + 24], r9",
                "mov [r11 + 32], r10",
                "mov [r11 + 40], r12",
                "mov [r11 + 48], r13",
                "mov [r11 + 56], r14",
                "mov [r11 + 64], r15",
                "pop rbp",
                "pop rbx",
                "lea rax, [rsp - 24]",
                inout("rax") head => rsp_after,
                inout("rdi") argument => _,
                inout("rsi") 0_u64 => _,
                inout("rdx") 0_u64 => _,
                inout("r11") &raw mut values => _,
                out("rcx") rsp_before,
                out("r8") _,
                out("r9") _,
                out("r10") _,
                out("r12") _,
                out("r13") _,
                out("r14") _,
                out("r15") _,
            );
        }
        equal("RSP", rsp_after, rsp_before)?;
        for (index, (after, before)) in values.into_iter().zip(before).enumerate() {
            // R8, R9 and R10 may come back as zero.
            if !(2..5).contains(&index) || after != 0 {
                equal("RBX, RBP, R8-R10, R12-R15", after, before)?;
            }
        }
    }
    Ok(())
}

fn segment_bases_are_zero(_: &mut World) -> Check {
    board(5).store(0x5555, Ordering::Relaxed);
    let (fs, gs): (u64, u64);
    // SAFETY: reads a word of the board, if the bases are 0; else the thread faults.
    unsafe {
        asm!(
            "mov {fs}, fs:[{address}]",
            "mov {gs}, gs:[{address}]",
            address = in(reg) BOARD + 40,
            fs = out(reg) fs,
            gs = out(reg) gs,
            options(nostack),
        );
    }
    equal("words at FS and GS", (fs, gs), (0x5555, 0x5555))
}

global_asm!(
    // RDI: flags to set. Sleeps by a hypercall with them, and counts in the board's word 0.
    ".pushsection .text.conformance_flags, \"ax\"",
    ".global conformance_flags",
    "conformance_flags:",
    "mov r14, rdi",
    "mov r15, {board}",
    "mov r12d, 20",
    "2:",
    "rdtsc",
    "shl rdx, 32",
    "lea rdi, [rax + rdx]",
    "add rdi, 10000",
    "mov rax, {wait}",
    "pushfq",
    "or [rsp], r14",
    "popfq",
    "syscall",
    // Looks at what came back before it makes the flags usual again.
    "pushfq",
    "pop rcx",
    "and rcx, r14",
    "mov [r15 + 8], rcx",
    "push 2",
    "popfq",
    "lock inc qword ptr [r15]",
    "dec r12d",
    "jnz 2b",
    "ud2",
    ".popsection",
    board = const BOARD,
    wait = const Wait as u64 | SLEEP << 32,
);

unsafe extern "C" {
    fn conformance_flags();
    fn conformance_modes();
    fn conformance_end();
}

const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
const IOPL: u64 = 3 << 12;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

fn odd_flags_at_a_hypercall_do_no_harm(w: &mut World) -> Check {
    let ip = conformance_flags as *const () as u64;
    for flags in [DF, AC, NT, RF, ID, IOPL, DF | AC | NT | ID, 0x8d5 | DF | NT] {
        board(0).store(0, Ordering::Relaxed);
        let fault = w.fault_at(0, ip, flags)?;
        equal("vector of its end", fault.vector, 6)?;
        equal("hypercalls made", board(0).load(Ordering::Relaxed), 20)?;
        // What the kernel does with memory afterwards goes the right way.
        let pd = w.pd()?;
        call(Derive, w.pool, [pd, 500, 0xffff]).done()?;
        call(Revoke, pd, [1]).done()?;
    }
    equal("IOPL stays 0", board(1).load(Ordering::Relaxed) & IOPL, 0)
}

fn a_trap_flag_at_a_hypercall_stops_the_thread_after_it(w: &mut World) -> Check {
    let ip = conformance_flags as *const () as u64;
    for flags in [TF, TF | DF | NT | AC] {
        let fault = w.fault_at(0, ip, flags)?;
        equal("vector", fault.vector, 1)?;
        holds("RIP behind the hypercall", fault.rip > ip && fault.rip < ip + 80)?;
    }
    w.sleep(1000);
    Ok(())
}

/// Loads the selector into DS, ES, FS and GS and makes hypercalls.
extern "C" fn load_segments(selector: u64) -> ! {
    // SAFETY: flat segments, or a fault that ends this thread.
    unsafe {
        asm!(
            "mov ds, {0:e}",
            "mov es, {0:e}",
            "mov fs, {0:e}",
            "mov gs, {0:e}",
            in(reg) selector,
            options(nostack),
        );
    }
    for _ in 0..3 {
        call(Wait, SLEEP, [usys::cpu::now() + 10_000]);
    }
    board(0).fetch_add(1, Ordering::Release);
    // SAFETY: UD2 ends the thread.
    unsafe { asm!("ud2", options(noreturn)) }
}

fn every_selector_in_a_data_segment_register_does_no_harm(w: &mut World) -> Check {
    let ip = load_segments as *const () as u64;
    let mut loaded = 0;
    for index in (0..40).chain([100, 4000, 8191]) {
        for low in 0..8 {
            let fault = w.scoped(8, |w| {
                let stack = w.stacks.take() - 8;
                w.fault_with(0, ip, stack, index << 3 | low)
            })?;
            if !matches!(fault.vector, 6 | 11 | 13) {
                return Err(Failure::new("fault", (index << 3 | low, fault), "#UD at the end, or a refusal"));
            }
            loaded += u64::from(fault.vector == 6);
            segment_bases_are_zero(w)?;
        }
    }
    equal("selectors that work", board(0).load(Ordering::Acquire), loaded)?;
    // Null with four privilege levels, and the user data segment, at least.
    holds("five selectors work", loaded >= 5)
}

fn descriptors_in_user_memory_are_not_used(w: &mut World) -> Check {
    // After reset, the local descriptor table is at address 0 and 64 KiB long.
    let child = w.child(64, 1)?;
    let memory = w.ram(15)?;
    let view = w.view(memory, 15)?;
    for index in 0..15 * PAGE / 8 {
        // A flat data segment for ring 3.
        // SAFETY: the pages are mapped there for this.
        unsafe { ((view + index * 8) as *mut u64).write_volatile(0x00cf_f300_0000_ffff) };
    }
    call(Map, memory, [child.pd, PAGE, 0, 15, 3]).gives([15, 0, 0])?;
    for selector in [PAGE | 7, 0x8007, 0xfff7] {
        let (ec, _) = w.child_thread(&child, (0, HIGH, 0), load_segments as *const () as u64, selector)?;
        w.until("the fault", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
        equal("vector", threads::fault_of(ec)?.map(|fault| fault.vector), Some(13))?;
        call(Revoke, ec, [1]).done()?;
    }
    Ok(())
}

global_asm!(
    // Far-returns to the selector in RDI. The code there is the same in every mode.
    ".pushsection .text.conformance_modes, \"ax\"",
    ".global conformance_modes",
    "conformance_modes:",
    "push rdi",
    "lea rax, [rip + 2f]",
    "push rax",
    "mov eax, 0xff",
    "retfq",
    "2:",
    "syscall",
    "int 0x80",
    "sysenter",
    "ud2",
    ".global conformance_end",
    "conformance_end:",
    ".popsection",
);

fn no_selector_leads_into_another_mode(w: &mut World) -> Check {
    let (begin, end) = (conformance_modes as *const () as u64, conformance_end as *const () as u64);
    for index in (0..40).chain([100, 4000, 8191]) {
        for low in [0, 3, 4, 7] {
            let fault = w.scoped(8, |w| w.fault_at(0, begin, index << 3 | low))?;
            // At the RETF, or in the code behind it: at INT 80H.
            // QEMU 7.2 reads the stack of a far RET as the kernel would, which SMAP forbids.
            if !matches!(fault.vector, 6 | 11 | 13 | 14) {
                return Err(Failure::new("fault", (index << 3 | low, fault), "#GP, #NP or #UD"));
            }
            holds("RIP in the code", fault.rip >= begin && fault.rip < end)?;
        }
    }
    Ok(())
}

fn sysenter_is_no_way_in(w: &mut World) -> Check {
    let (page, code) = (w.ram(1)?, w.sel());
    call(Derive, page, [0, code, 0xffff]).done()?;
    let (view, at) = (w.view(page, 1)?, w.addresses(1));
    call(Map, code, [PD, at, 0, 1, 5]).gives([1, 0, 0])?;
    // SAFETY: the page is mapped there for this. SYSENTER, UD2.
    unsafe { (view as *mut u64).write_volatile(0x0b0f_340f) };
    let fault = w.fault_at(0, at, 0)?;
    holds("#GP or #UD", matches!(fault.vector, 6 | 13))?;
    equal("RIP", fault.rip, at)
}

fn a_hypercall_at_the_end_of_user_space_returns_there(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    let page = w.ram(1)?;
    let view = w.view(page, 1)?;
    call(Map, page, [child.pd, USER_END - PAGE, 0, 1, 5]).gives([1, 0, 0])?;
    // SAFETY: the page is mapped there for this. SYSCALL as the last two bytes.
    unsafe { ((view + PAGE - 2) as *mut u16).write_unaligned(0x050f) };
    let (ec, _) = w.child_thread(&child, (0, HIGH, 0), USER_END - 2, 0)?;
    w.until("the fault", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
    let fault = threads::fault_of(ec)?.map(|fault| (fault.vector, fault.rip, fault.address));
    equal("fault", fault, Some((14, USER_END, USER_END)))
}

global_asm!(
    // Makes a hypercall with RSP = RDI, then faults at UD2.
    ".pushsection .text.conformance_stackless, \"ax\"",
    ".global conformance_stackless",
    "conformance_stackless:",
    "mov rsp, rdi",
    "mov r15, rdi",
    "mov eax, {yield_}",
    "syscall",
    "cmp rsp, r15",
    "jne 2f",
    "mov eax, 0xff",
    "syscall",
    "ud2",
    "2: int3",
    ".popsection",
    yield_ = const Yield as u64,
);

unsafe extern "C" {
    fn conformance_stackless();
}

fn a_hypercall_with_any_stack_pointer_returns(w: &mut World) -> Check {
    let ip = conformance_stackless as *const () as u64;
    for rsp in [
        0,
        1,
        8,
        USER_END,
        1 << 47,
        0xffff_8000_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_ffff_fff8,
        u64::MAX,
        0x5555_5555_5555_5555,
    ] {
        let fault = w.fault_at(0, ip, rsp)?;
        equal("vector of its end", fault.vector, 6)?;
    }
    Ok(())
}

fn rip_at_every_edge_of_user_space_is_survived(w: &mut World) -> Check {
    for ip in [0, 1, 4095, USER_END - 1, USER_END - 2] {
        let fault = w.fault_at(0, ip, 0)?;
        equal("fault", (fault.vector, fault.rip), (14, ip))?;
    }
    Ok(())
}

/// Checks in a loop that twelve registers and the flags keep their values: counts in word 0, tells of a difference in word 1.
extern "C" fn keep_registers(seed: u64) -> ! {
    loop {
        let difference: u64;
        // SAFETY: uses registers only; RBX and RBP are restored.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "mov rax, r12",
                "lea rbx, [rax + 1]",
                "lea rbp, [rax + 2]",
                "lea rcx, [rax + 3]",
                "lea rdx, [rax + 4]",
                "lea rsi, [rax + 5]",
                "lea rdi, [rax + 6]",
                "lea r8, [rax + 7]",
                "lea r9, [rax + 8]",
                "lea r10, [rax + 9]",
                "lea r11, [rax + 10]",
                "mov r13d, 2000",
                "2:",
                "dec r13d",
                "jnz 2b",
                "xor r13, r13",
                "sub rbx, rax",
                "sub rbp, rax",
                "sub rcx, rax",
                "sub rdx, rax",
                "sub rsi, rax",
                "sub rdi, rax",
                "sub r8, rax",
                "sub r9, rax",
                "sub r10, rax",
                "sub r11, rax",
                "sub rax, r12",
                "add rax, rbx",
                "add rax, rbp",
                "add rax, rcx",
                "add rax, rdx",
                "add rax, rsi",
                "add rax, rdi",
                "add rax, r8",
                "add rax, r9",
                "add rax, r10",
                "add rax, r11",
                "sub rax, 55",
                "pop rbp",
                "pop rbx",
                in("r12") seed,
                out("rax") difference,
                out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r13") _,
            );
        }
        board(1).fetch_or(difference, Ordering::Relaxed);
        board(0).fetch_add(1, Ordering::Relaxed);
    }
}

fn registers_survive_preemption(w: &mut World) -> Check {
    for seed in [0x1000, 0x7777_7777_0000, 0xffff_0000_0000_0000] {
        let ec = w.ec(0, keep_registers as *const () as u64, seed)?;
        let sc = w.sel();
        call(CreateSc, sc, [w.pool, ec, threads::LOW, 100, 100]).done()?;
    }
    for _ in 0..100 {
        w.sleep(300);
    }
    holds("they ran", board(0).load(Ordering::Relaxed) > 10)?;
    equal("differences", board(1).load(Ordering::Relaxed), 0)
}

extern "C" fn keep_flags(_: u64) -> ! {
    loop {
        let flags: u64;
        // SAFETY: DF and AC are cleared again.
        unsafe {
            asm!(
                "push {wanted}",
                "popfq",
                "mov ecx, 2000",
                // LOOP leaves the flags alone.
                "2: loop 2b",
                "pushfq",
                "pop {flags}",
                "push 2",
                "popfq",
                wanted = const 0x4_4cd7,
                out("rcx") _,
                flags = out(reg) flags,
            );
        }
        board(1).fetch_or(flags ^ 0x4_4ed7, Ordering::Relaxed);
        board(0).fetch_add(1, Ordering::Relaxed);
    }
}

fn flags_survive_preemption(w: &mut World) -> Check {
    w.thread(0, threads::LOW, keep_flags, 0)?;
    for _ in 0..100 {
        w.sleep(300);
    }
    holds("it ran", board(0).load(Ordering::Relaxed) > 10)?;
    equal("differences", board(1).load(Ordering::Relaxed), 0)
}
