//! Portal handlers: from the kernel's way of starting one (SPEC.md 4.2) to a function, and back.
//!
//! A portal that is created with `entry` as its instruction pointer and the address of a [`Body`] as its id answers
//! each call with what that function leaves in the words.

use hypercall_abi::regs::MESSAGE_WORDS;

/// Answers a call: the words of the message become those of the reply.
pub type Body = extern "C" fn(&mut [u64; MESSAGE_WORDS]);

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .text.usys_portal, \"ax\"",
    ".global usys_portal_entry",
    "usys_portal_entry:",
    // The eight words become an array on the stack; RSP stays aligned as it was.
    "push r13",
    "push r12",
    "push r10",
    "push r9",
    "push r8",
    "push rdx",
    "push rsi",
    "push rdi",
    "mov rdi, rsp",
    "call rax",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop r8",
    "pop r9",
    "pop r10",
    "pop r12",
    "pop r13",
    "mov eax, {reply}",
    "syscall",
    "ud2",
    ".popsection",
    reply = const hypercall_abi::Hypercall::Reply as u32,
);

/// The instruction pointer for portals. The handler's stack pointer must be a multiple of 16.
#[cfg(target_os = "none")]
pub fn entry() -> u64 {
    unsafe extern "C" {
        fn usys_portal_entry();
    }
    usys_portal_entry as *const () as u64
}
