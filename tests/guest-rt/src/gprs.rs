//! General registers across exits.

use core::arch::naked_asm;

/// Loads all general registers but RSP with `pattern`, makes `exits` exits (each an OUT to port 80H of what is then in
/// AL), and returns 0 if they all still hold it, else 1 more than the index (RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 …) of one that does not.
///
/// The loop's count is on the stack, so that no register is left out.
#[unsafe(naked)]
pub extern "C" fn hold(pattern: u64, exits: u64) -> u64 {
    naked_asm!(
        "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
        "push rdi", "push rsi",
        "mov rax, rdi", "mov rcx, rdi", "mov rdx, rdi", "mov rbx, rdi", "mov rbp, rdi", "mov rsi, rdi",
        "mov r8, rdi", "mov r9, rdi", "mov r10, rdi", "mov r11, rdi",
        "mov r12, rdi", "mov r13, rdi", "mov r14, rdi", "mov r15, rdi",
        "2:",
        "out 0x80, al",
        "dec qword ptr [rsp]",
        "jnz 2b",
        // Each register is compared with the pattern on the stack; the first that differs jumps out with its number pushed.
        "push 1", "cmp rax, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 2", "cmp rcx, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 3", "cmp rdx, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 4", "cmp rbx, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 5", "cmp rbp, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 6", "cmp rsi, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 7", "cmp rdi, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 8", "cmp r8, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 9", "cmp r9, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 10", "cmp r10, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 11", "cmp r11, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 12", "cmp r12, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 13", "cmp r13, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 14", "cmp r14, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 15", "cmp r15, [rsp + 16]", "jne 3f",
        "mov dword ptr [rsp], 0",
        "3:",
        "pop rax",
        "pop rsi", "pop rdi",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
        "ret",
    )
}
