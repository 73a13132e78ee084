//! What is in the CPU's registers right now, as far as user space can see them: the general registers. The kernel gives no
//! process the x87 and vector registers (the first use is a #NM), and the rest is the kernel's alone.

use core::arch::asm;

/// All registers but RSP and the one that addresses this.
const COUNT: usize = 14;

/// The registers as they were when [`Registers::take`] was called.
#[derive(Clone, Debug)]
pub(crate) struct Registers([u64; COUNT]);

impl Registers {
    pub(crate) const fn new() -> Self {
        Registers([0; COUNT])
    }

    /// Takes them, those that code between the kernel's return and here has not used yet.
    #[inline(always)]
    pub(crate) fn take(&mut self) {
        // SAFETY: stores into the array, and changes no register.
        unsafe {
            asm!(
                "mov [{to}], rcx",
                "mov [{to} + 8], rdx",
                "mov [{to} + 16], rbx",
                "mov [{to} + 24], rbp",
                "mov [{to} + 32], rsi",
                "mov [{to} + 40], rdi",
                "mov [{to} + 48], r8",
                "mov [{to} + 56], r9",
                "mov [{to} + 64], r10",
                "mov [{to} + 72], r11",
                "mov [{to} + 80], r12",
                "mov [{to} + 88], r13",
                "mov [{to} + 96], r14",
                "mov [{to} + 104], r15",
                to = in(reg) self.0.as_mut_ptr(),
                options(nostack, preserves_flags),
            );
        }
    }

    /// Every word.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.0.iter().copied()
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.0 = [0; COUNT];
    }
}
