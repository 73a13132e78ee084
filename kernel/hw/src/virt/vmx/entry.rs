//! The world switch.
//!
//! The guest's general-purpose registers are in the vCPU page; RIP, RSP and RFLAGS are in the VMCS. The stack is the
//! kernel's own on both sides of the switch, and the only addresses that are jumped to are the return address on it
//! and [`landing`], which the VMCS holds from its initialization on: no value of a VMM or a guest is ever one of them,
//! neither on exits nor on entries that fail.

use core::arch::naked_asm;
use kcore::virt::vmx::fields::HOST_RSP;

/// What [`enter`] returns after a VM exit; that includes entries that failed on guest state.
pub(super) const EXITED: u32 = 0;
/// VMfailValid: the VM-instruction error field says why.
pub(super) const FAIL_VALID: u32 = 1;
/// VMfailInvalid: there is no current VMCS.
pub(super) const FAIL_INVALID: u32 = 2;

/// Enters the guest of the current VMCS, by VMRESUME if it was launched, and returns after the exit.
///
/// 1. Pushes what the ABI preserves, and the address of the registers.
/// 2. Tells the VMCS the stack pointer if it is not the one of last time (`host_rsp`).
/// 3. Loads the guest's registers and enters. If that fails, execution goes on behind the instruction: the stack is
///    as it was, so the rest is the same as after an exit.
///
/// # Safety
/// The current VMCS is complete and its launch state is `launched`. `gprs` points to 16 registers in the order of
/// [`hypercall_abi::vcpu::VcpuPage::gpr`], valid throughout; they are written concurrently by others at most.
/// `host_rsp` is what the VMCS holds. Interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(gprs: *mut u64, launched: bool, host_rsp: *mut u64) -> u32 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "cmp [rdx], rsp",
        "je 2f",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "jbe 4f",
        "mov [rdx], rsp",
        "2:",
        // ZF chooses the instruction below; MOV leaves it alone.
        "test sil, sil",
        "mov rax, [rdi + 8 * 0]",
        "mov rcx, [rdi + 8 * 1]",
        "mov rdx, [rdi + 8 * 2]",
        "mov rbx, [rdi + 8 * 3]",
        "mov rbp, [rdi + 8 * 5]",
        "mov rsi, [rdi + 8 * 6]",
        "mov r8, [rdi + 8 * 8]",
        "mov r9, [rdi + 8 * 9]",
        "mov r10, [rdi + 8 * 10]",
        "mov r11, [rdi + 8 * 11]",
        "mov r12, [rdi + 8 * 12]",
        "mov r13, [rdi + 8 * 13]",
        "mov r14, [rdi + 8 * 14]",
        "mov r15, [rdi + 8 * 15]",
        "mov rdi, [rdi + 8 * 7]",
        "jnz 3f",
        "vmlaunch",
        "jmp 4f",
        "3:",
        "vmresume",
        "4:",
        // CF is VMfailInvalid, ZF is VMfailValid.
        "mov eax, {fail_valid}",
        "mov ecx, {fail_invalid}",
        "cmovc eax, ecx",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const HOST_RSP.encoding(),
        fail_valid = const FAIL_VALID,
        fail_invalid = const FAIL_INVALID,
    )
}

/// Where every VM exit arrives, on the stack that [`enter`] left: the host RIP of every VMCS.
///
/// # Safety
/// Reached by VM exits only.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn landing() {
    naked_asm!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi + 8 * 0], rax",
        "mov [rdi + 8 * 1], rcx",
        "mov [rdi + 8 * 2], rdx",
        "mov [rdi + 8 * 3], rbx",
        "mov [rdi + 8 * 5], rbp",
        "mov [rdi + 8 * 6], rsi",
        "pop qword ptr [rdi + 8 * 7]",
        "mov [rdi + 8 * 8], r8",
        "mov [rdi + 8 * 9], r9",
        "mov [rdi + 8 * 10], r10",
        "mov [rdi + 8 * 11], r11",
        "mov [rdi + 8 * 12], r12",
        "mov [rdi + 8 * 13], r13",
        "mov [rdi + 8 * 14], r14",
        "mov [rdi + 8 * 15], r15",
        // What the ABI does not restore must not carry the guest's values into speculation on the kernel's behalf.
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "mov eax, {exited}",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        exited = const EXITED,
    )
}

/// [`landing`] for CPUs on which the first RET after an exit may go where the guest's last CALL came from ("post-barrier return stack
/// buffer predictions", Intel): a CALL of our own comes first, and speculation waits for it.
///
/// # Safety
/// Reached by VM exits only.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn guarded_landing() {
    naked_asm!(
        "call 2f",
        "int3",
        "2:",
        "add rsp, 8",
        "lfence",
        "jmp {landing}",
        landing = sym landing,
    )
}
