//! Non-maskable interrupts.

use core::arch::asm;

/// Lets NMIs in again after a VM exit that took one: nothing but an IRET ends their blocking (SDM 3A 6.7.1, 3C 27.5.5),
/// and the kernel may leave for user code by SYSRET. Interrupts stay as they are.
pub fn unblock() {
    // SAFETY: the frame returns to the next instruction, with the stack, segments and flags of now. It is written below
    // RSP, hence no `nostack`; the kernel is built without a red zone.
    unsafe {
        asm!(
            "mov {scratch}, rsp",
            "push {ss}",
            "push {scratch}",
            "pushfq",
            "mov {scratch:e}, cs",
            "push {scratch}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "iretq",
            "2:",
            scratch = out(reg) _,
            ss = const crate::desc::KERNEL_DATA,
        );
    }
}
