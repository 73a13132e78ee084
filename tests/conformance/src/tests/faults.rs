//! Exceptions of user code.

use super::{Group, Needs, group};
use crate::layout::PD;
use crate::prelude::*;
use crate::threads::{self, Fault};
use core::arch::global_asm;

pub(super) const GROUP: Group = group!(
    "faults",
    Needs::Nothing => [
        privileged_instructions_fault,
        instructions_that_do_not_exist_fault,
        user_code_has_no_fpu,
        a_division_by_zero_faults,
        breakpoints_and_single_steps_stop_the_thread,
        no_interrupt_vector_of_the_kernel_is_open,
        an_unmapped_address_is_reported,
        code_and_constants_are_not_written_and_data_is_not_executed,
        the_kernels_half_is_closed,
        addresses_that_are_not_canonical_fault,
        a_stack_overflow_is_a_page_fault,
        an_unaligned_access_with_alignment_checks_faults,
        a_faulted_thread_never_runs_again,
    ],
);

/// Defines code with a label in front of the instruction that matters.
macro_rules! snippets {
    ($($name:ident: $($line:literal),+;)*) => {
        $(
            global_asm!(
                ".pushsection .text.conformance_snippets, \"ax\"",
                concat!(".global conformance_", stringify!($name)),
                concat!("conformance_", stringify!($name), ":"),
                $($line,)+
                "ud2",
                ".popsection",
            );
        )*
        mod snippet {
            $(
                pub(super) fn $name() -> u64 {
                    unsafe extern "C" {
                        #[link_name = concat!("conformance_", stringify!($name))]
                        fn code();
                    }
                    code as *const () as u64
                }
            )*
        }
    };
}

snippets! {
    cli: "cli";
    sti: "sti";
    hlt: "hlt";
    input: "in al, dx";
    output: "out dx, al";
    string_input: "insb";
    string_output: "outsb";
    rdmsr: "rdmsr";
    wrmsr: "wrmsr";
    rdpmc: "rdpmc";
    read_cr0: "mov rax, cr0";
    read_cr3: "mov rax, cr3";
    write_cr0: "mov cr0, rax";
    write_cr3: "mov cr3, rax";
    write_cr4: "mov cr4, rax";
    read_cr8: "mov rax, cr8";
    read_dr7: "mov rax, dr7";
    write_dr7: "mov dr7, rax";
    clts: "clts";
    lmsw: "lmsw ax";
    lgdt: "lgdt [rsp - 64]";
    lidt: "lidt [rsp - 64]";
    lldt: "lldt ax";
    ltr: "ltr ax";
    invlpg: "invlpg [rax]";
    invd: "invd";
    wbinvd: "wbinvd";
    swapgs: "swapgs";
    sysret: "sysretq";
    sysexit: "sysexit";
    iret: "push 0", "push 0", "push 0", "push 8", "push 0", "iretq";
    xsetbv: "xor ecx, ecx", "xsetbv";
    rsm: "rsm";

    ud2: "ud2";
    rdfsbase: "rdfsbase rax";
    wrgsbase: "wrgsbase rax";
    vmcall: "vmcall";
    vmmcall: "vmmcall";
    vmlaunch: "vmlaunch";
    vmxoff: "vmxoff";
    vmrun: "vmrun rax";
    clgi: "clgi";
    stgi: "stgi";
    vmload: "vmload rax";
    invalid: ".byte 0x06";
    invalid_lock: ".byte 0xf0, 0x90";
    monitor: "monitor";
    too_long: ".fill 15, 1, 0x66", "nop";

    fninit: "fninit";
    fld: "fld1";
    fwait: "fwait";
    mmx: "pxor mm0, mm0";
    sse: "movaps xmm0, xmm1";
    sse2: "movd xmm0, eax";
    ldmxcsr: "ldmxcsr [rsp - 64]";
    fxsave: "and rsp, -64", "fxsave [rsp - 512]";
    avx: "vaddps ymm0, ymm0, ymm0";

    divide: "xor ecx, ecx", "div ecx";
    overflow: "mov edx, 2", "mov ecx, 1", "div ecx";
    int3: "int3";
    int1: ".byte 0xf1";
    step: "pushf", "or qword ptr [rsp], 0x100", "popf", "nop", "nop", "nop";
    load: "mov rax, [rdi]";
    store: "mov [rdi], rdi";
    jump: "jmp rdi";
    push: "push rax";
    call: "call rdi";
    recurse: "call conformance_recurse";
    unaligned: "pushf", "or qword ptr [rsp], 0x40000", "popf", "mov rax, [rsp - 63]";
}

/// Runs `ip`; the vector must be one of these.
#[track_caller]
fn faults_with(w: &mut World, ip: u64, argument: u64, vectors: &[u64]) -> Seen<Fault> {
    let fault = w.scoped(8, |w| w.fault_at(0, ip, argument))?;
    if vectors.contains(&fault.vector) { Ok(fault) } else { Err(Failure::new("fault", fault, vectors)) }
}

/// Runs code whose first instruction faults: exactly there.
#[track_caller]
fn faults_at_once(w: &mut World, name: &str, ip: u64, vectors: &[u64]) -> Check {
    let fault =
        faults_with(w, ip, 0, vectors).map_err(|Failure(why)| Failure(alloc::format!("{name}: {why}")))?;
    equal(name, (fault.rip, fault.address), (ip, 0))
}

const UD: u64 = 6;
const NM: u64 = 7;
const SS: u64 = 12;
const GP: u64 = 13;
const PF: u64 = 14;

fn privileged_instructions_fault(w: &mut World) -> Check {
    for (name, ip) in [
        ("CLI", snippet::cli()),
        ("STI", snippet::sti()),
        ("HLT", snippet::hlt()),
        ("IN", snippet::input()),
        ("OUT", snippet::output()),
        ("INS", snippet::string_input()),
        ("OUTS", snippet::string_output()),
        ("RDMSR", snippet::rdmsr()),
        ("WRMSR", snippet::wrmsr()),
        ("RDPMC", snippet::rdpmc()),
        ("MOV from CR0", snippet::read_cr0()),
        ("MOV from CR3", snippet::read_cr3()),
        ("MOV to CR0", snippet::write_cr0()),
        ("MOV to CR3", snippet::write_cr3()),
        ("MOV to CR4", snippet::write_cr4()),
        ("MOV from CR8", snippet::read_cr8()),
        ("MOV from DR7", snippet::read_dr7()),
        ("MOV to DR7", snippet::write_dr7()),
        ("CLTS", snippet::clts()),
        ("LMSW", snippet::lmsw()),
        ("LGDT", snippet::lgdt()),
        ("LIDT", snippet::lidt()),
        ("LLDT", snippet::lldt()),
        ("LTR", snippet::ltr()),
        ("INVLPG", snippet::invlpg()),
        ("INVD", snippet::invd()),
        ("WBINVD", snippet::wbinvd()),
        ("SWAPGS", snippet::swapgs()),
        ("SYSRET", snippet::sysret()),
    ] {
        faults_at_once(w, name, ip, &[GP])?;
    }
    faults_at_once(w, "SYSEXIT", snippet::sysexit(), &[GP, UD])?;
    faults_at_once(w, "RSM", snippet::rsm(), &[UD])?;
    // QEMU 7.2 reads the stack of IRET as the kernel would, which SMAP forbids.
    faults_with(w, snippet::iret(), 0, &[GP, PF])?;
    // #UD where the CPU has no XSAVE.
    faults_with(w, snippet::xsetbv(), 0, &[GP, UD]).map(drop)
}

fn instructions_that_do_not_exist_fault(w: &mut World) -> Check {
    for (name, ip) in [
        ("UD2", snippet::ud2()),
        ("RDFSBASE", snippet::rdfsbase()),
        ("WRGSBASE", snippet::wrgsbase()),
        ("PUSH ES", snippet::invalid()),
        ("LOCK NOP", snippet::invalid_lock()),
    ] {
        faults_at_once(w, name, ip, &[UD])?;
    }
    for (name, ip) in [
        ("VMCALL", snippet::vmcall()),
        ("VMMCALL", snippet::vmmcall()),
        ("VMLAUNCH", snippet::vmlaunch()),
        ("VMXOFF", snippet::vmxoff()),
        ("VMRUN", snippet::vmrun()),
        ("CLGI", snippet::clgi()),
        ("STGI", snippet::stgi()),
        ("VMLOAD", snippet::vmload()),
        ("MONITOR", snippet::monitor()),
        ("16 bytes", snippet::too_long()),
    ] {
        faults_at_once(w, name, ip, &[UD, GP])?;
    }
    Ok(())
}

fn user_code_has_no_fpu(w: &mut World) -> Check {
    for (name, ip) in [
        ("FNINIT", snippet::fninit()),
        ("FLD1", snippet::fld()),
        ("FWAIT", snippet::fwait()),
        ("PXOR mm", snippet::mmx()),
        ("MOVAPS", snippet::sse()),
        ("MOVD", snippet::sse2()),
        ("LDMXCSR", snippet::ldmxcsr()),
    ] {
        faults_at_once(w, name, ip, &[NM])?;
    }
    faults_with(w, snippet::fxsave(), 0, &[NM])?;
    // #UD where the CPU has no AVX, or XCR0 has it off.
    faults_at_once(w, "VADDPS", snippet::avx(), &[NM, UD])
}

fn a_division_by_zero_faults(w: &mut World) -> Check {
    faults_with(w, snippet::divide(), 0, &[0])?;
    faults_with(w, snippet::overflow(), 0, &[0]).map(drop)
}

fn breakpoints_and_single_steps_stop_the_thread(w: &mut World) -> Check {
    let ip = snippet::int3();
    let fault = faults_with(w, ip, 0, &[3])?;
    equal("RIP behind INT3", fault.rip, ip + 1)?;
    // QEMU 7.2 executes INT1 as a no-operation.
    let ip = snippet::int1();
    let fault = faults_with(w, ip, 0, &[1, UD])?;
    holds("RIP behind INT1", fault.rip > ip || fault.vector == UD)?;
    let fault = faults_with(w, snippet::step(), 0, &[1])?;
    let ip = snippet::step();
    holds("RIP in the steps", fault.rip > ip && fault.rip < ip + 20)
}

fn no_interrupt_vector_of_the_kernel_is_open(w: &mut World) -> Check {
    let page = w.ram(1)?;
    let code = w.derive(page, Rights::ALL)?;
    let view = w.view(page, 1)?;
    let at = w.addresses(1);
    call(Map, code, [PD, at, 0, 1, 5]).gives([1, 0, 0])?;
    for vector in 0..=255_u64 {
        // INT n, UD2.
        let bytes = 0x0b0f_00cd | vector << 8;
        // SAFETY: the page is mapped there for this.
        unsafe { (view as *mut u64).write_volatile(bytes) };
        let fault = faults_with(w, at, 0, &[GP, 3, 4])?;
        if fault.vector == GP {
            equal("RIP", fault.rip, at)?;
        } else {
            equal("vector and RIP", (fault.vector, fault.rip), (vector, at + 2))?;
        }
    }
    Ok(())
}

fn an_unmapped_address_is_reported(w: &mut World) -> Check {
    for address in [0, 8, 4095, 4096, 0x7f_0000_0000, USER_END - 8, USER_END, USER_END + 8] {
        for ip in [snippet::load(), snippet::store()] {
            let fault = faults_with(w, ip, address, &[PF])?;
            equal("RIP and address", (fault.rip, fault.address), (ip, address))?;
        }
        let fault = faults_with(w, snippet::jump(), address, &[PF])?;
        equal("RIP and address", (fault.rip, fault.address), (address, address))?;
    }
    Ok(())
}

fn code_and_constants_are_not_written_and_data_is_not_executed(w: &mut World) -> Check {
    let code = snippet::load();
    let fault = faults_with(w, snippet::store(), code, &[PF])?;
    equal("address", fault.address, code)?;
    let constant = GROUP.name.as_ptr() as u64;
    let fault = faults_with(w, snippet::store(), constant & !7, &[PF])?;
    equal("address", fault.address, constant & !7)?;
    for data in [constant, crate::layout::BOARD, threads::stack_top(3) - 64] {
        let fault = faults_with(w, snippet::jump(), data, &[PF])?;
        equal("address", (fault.rip, fault.address), (data, data))?;
    }
    Ok(())
}

fn the_kernels_half_is_closed(w: &mut World) -> Check {
    // One address in each entry of the top-level table, wherever the kernel has itself and its map of all memory.
    for entry in 256..512_u64 {
        let address = 0xffff_0000_0000_0000 | entry << 39 | 0x20_0000;
        let fault = faults_with(w, snippet::load(), address, &[PF])?;
        equal("RIP and address", (fault.rip, fault.address), (snippet::load(), address))?;
    }
    for address in [
        0xffff_8000_0000_0000,
        0xffff_8000_0000_1000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_8010_0000,
        0xffff_ffff_ffff_f000,
        0xffff_ffff_ffff_fff8,
    ] {
        for ip in [snippet::load(), snippet::store(), snippet::jump(), snippet::call()] {
            let fault = faults_with(w, ip, address, &[PF])?;
            equal("address", fault.address, address)?;
        }
    }
    Ok(())
}

fn addresses_that_are_not_canonical_fault(w: &mut World) -> Check {
    for address in [1 << 47, 0x8000_0000_0000_0000, 0xffff_7fff_ffff_fff8, 0x1234_5678_9abc_def0] {
        for ip in [snippet::load(), snippet::store(), snippet::jump(), snippet::call()] {
            faults_with(w, ip, address, &[GP, SS])?;
        }
    }
    // CreateEc takes no such stack pointer; the thread makes its own.
    Ok(())
}

fn a_stack_overflow_is_a_page_fault(w: &mut World) -> Check {
    let page = w.ram(1)?;
    let hole = w.addresses(1);
    let at = w.addresses(1);
    call(Map, page, [PD, at, 0, 1, 3]).gives([1, 0, 0])?;
    let fault = w.fault_with(0, snippet::push(), at, 0)?;
    equal("fault", (fault.vector, fault.address), (PF, at - 8))?;
    let fault = w.fault_with(0, snippet::recurse(), at + PAGE, 0)?;
    equal("fault", (fault.vector, fault.address), (PF, at - 8))?;
    equal("the hole", at - hole, PAGE)?;
    // A stack pointer that was never good.
    let fault = w.fault_with(0, snippet::push(), 8, 0)?;
    equal("fault", (fault.vector, fault.address), (PF, 0))
}

fn an_unaligned_access_with_alignment_checks_faults(w: &mut World) -> Check {
    // QEMU has no alignment checks: there it runs into the UD2.
    faults_with(w, snippet::unaligned(), 0, &[17, UD]).map(drop)
}

fn a_faulted_thread_never_runs_again(w: &mut World) -> Check {
    let ec = w.ec(0, snippet::ud2(), 0)?;
    let sc = w.sc(ec, threads::HIGH)?;
    w.until("the fault", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
    call(Revoke, sc, [1]).done()?;
    let again = w.sel();
    call(CreateSc, again, [w.pool, ec, 1, 1000, 1000]).fails(Occupied)?;
    equal("vector", threads::fault_of(ec)?.map(|fault| fault.vector), Some(UD))
}
