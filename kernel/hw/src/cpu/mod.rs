//! The processor: registers, features, FPU, time.

pub mod control;
pub mod cpuid;
pub mod fpu;
pub mod mitigation;
pub mod msr;
pub mod nmi;
pub mod port;
pub mod tables;
pub mod tsc;
pub mod xsavec;

use core::arch::asm;

/// Waits for an interrupt with interrupts on, then turns them off again.
#[inline]
pub fn idle() {
    // SAFETY: the interrupt handlers run on the kernel stack, which has room, and return here. STI takes effect after
    // HLT, so an interrupt between the two ends the HLT.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}

/// Lets pending interrupts in, once.
#[inline]
pub fn interrupt_window() {
    // SAFETY: as in `idle`. The NOP gives the STI shadow an instruction to pass.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: with interrupts off nothing but an NMI or SMI comes back from HLT, and then it halts again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
