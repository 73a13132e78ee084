//! The world switch.

use core::arch::naked_asm;
use hypercall_abi::vcpu::gpr::{RBP, RBX, RCX, RDI, RDX, RSI};

/// Enters the guest and comes back at the next #VMEXIT.
///
/// `gprs` are the guest's 16 general-purpose registers in the hardware's numbering; all but RAX and RSP, which are in
/// the VMCB, are loaded and stored. `vmcb` and `host` are physical addresses.
///
/// The order matters:
/// 1. CLGI first: from here on nothing can interrupt while registers and segments are the guest's.
/// 2. STI, without effect while GIF is clear: with V_INTR_MASKING the IF at VMRUN says whether physical interrupts end
///    the guest (APM 15.21.1).
/// 3. VMRUN sets GIF; #VMEXIT clears it again. A physical interrupt or NMI that caused the exit is still pending.
/// 4. VMLOAD of the host before STGI, since an NMI handler needs the kernel's GS and TR.
/// 5. CLI before STGI: the interrupt waits until the kernel opens a window. NMIs and machine checks that are pending
///    are taken at STGI, through the kernel's IDT on their own stacks.
/// 6. Registers that the calling convention does not restore are cleared, so that no guest value is left for
///    speculation in the kernel.
///
/// # Safety
/// `gprs` is mapped and writable. `vmcb` is a VMCB that was checked, with intercepts that return control;
/// `host` is an area that VMSAVE filled on this CPU. Interrupts are off.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(gprs: *mut u64, vmcb: u64, host: u64) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rdx",
        "clgi",
        "sti",
        "mov rax, rsi",
        "vmload rax",
        "mov rcx, [rdi + {rcx}]",
        "mov rdx, [rdi + {rdx}]",
        "mov rbx, [rdi + {rbx}]",
        "mov rbp, [rdi + {rbp}]",
        "mov rsi, [rdi + {rsi}]",
        "mov r8, [rdi + 8 * 8]",
        "mov r9, [rdi + 8 * 9]",
        "mov r10, [rdi + 8 * 10]",
        "mov r11, [rdi + 8 * 11]",
        "mov r12, [rdi + 8 * 12]",
        "mov r13, [rdi + 8 * 13]",
        "mov r14, [rdi + 8 * 14]",
        "mov r15, [rdi + 8 * 15]",
        "mov rdi, [rdi + {rdi}]",
        "vmrun rax",
        "vmsave rax",
        "pop rax",
        "vmload rax",
        "pop rax",
        "mov [rax + {rcx}], rcx",
        "mov [rax + {rdx}], rdx",
        "mov [rax + {rbx}], rbx",
        "mov [rax + {rbp}], rbp",
        "mov [rax + {rsi}], rsi",
        "mov [rax + {rdi}], rdi",
        "mov [rax + 8 * 8], r8",
        "mov [rax + 8 * 9], r9",
        "mov [rax + 8 * 10], r10",
        "mov [rax + 8 * 11], r11",
        "mov [rax + 8 * 12], r12",
        "mov [rax + 8 * 13], r13",
        "mov [rax + 8 * 14], r14",
        "mov [rax + 8 * 15], r15",
        "xor ecx, ecx",
        "xor edx, edx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "cli",
        "stgi",
        "ret",
        rcx = const 8 * RCX,
        rdx = const 8 * RDX,
        rbx = const 8 * RBX,
        rbp = const 8 * RBP,
        rsi = const 8 * RSI,
        rdi = const 8 * RDI,
    )
}
