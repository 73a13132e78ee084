//! What is in the CPU's registers right now, as far as user space can see them.

use core::arch::asm;

/// Words of general registers.
const GENERAL: usize = 14;

/// The registers as they were when [`Registers::take`] was called.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    /// As FXSAVE writes it: x87 and XMM registers.
    fxsave: [u64; 64],
    /// All but RSP and the one that addresses this.
    general: [u64; GENERAL],
    /// Upper halves of the YMM registers, if the host has AVX.
    ymm_high: [u64; 32],
}

impl Registers {
    pub(crate) const fn new() -> Self {
        Registers {
            fxsave: [0; 64],
            general: [0; GENERAL],
            ymm_high: [0; 32],
        }
    }

    /// Takes them, those that code between the kernel's return and here has not used yet.
    #[inline(always)]
    pub(crate) fn take(&mut self) {
        // SAFETY: stores into `self`, which is large enough and aligned for FXSAVE, and changes no register; the YMM registers
        // are there if the kernel enabled them.
        unsafe {
            asm!(
                "mov [{to} + 512], rcx",
                "mov [{to} + 520], rdx",
                "mov [{to} + 528], rbx",
                "mov [{to} + 536], rbp",
                "mov [{to} + 544], rsi",
                "mov [{to} + 552], rdi",
                "mov [{to} + 560], r8",
                "mov [{to} + 568], r9",
                "mov [{to} + 576], r10",
                "mov [{to} + 584], r11",
                "mov [{to} + 592], r12",
                "mov [{to} + 600], r13",
                "mov [{to} + 608], r14",
                "mov [{to} + 616], r15",
                "fxsave64 [{to}]",
                to = in(reg) &raw mut *self,
                options(nostack, preserves_flags),
            );
            if has_avx() {
                asm!(
                    "vextractf128 [{to}], ymm0, 1",
                    "vextractf128 [{to} + 16], ymm1, 1",
                    "vextractf128 [{to} + 32], ymm2, 1",
                    "vextractf128 [{to} + 48], ymm3, 1",
                    "vextractf128 [{to} + 64], ymm4, 1",
                    "vextractf128 [{to} + 80], ymm5, 1",
                    "vextractf128 [{to} + 96], ymm6, 1",
                    "vextractf128 [{to} + 112], ymm7, 1",
                    "vextractf128 [{to} + 128], ymm8, 1",
                    "vextractf128 [{to} + 144], ymm9, 1",
                    "vextractf128 [{to} + 160], ymm10, 1",
                    "vextractf128 [{to} + 176], ymm11, 1",
                    "vextractf128 [{to} + 192], ymm12, 1",
                    "vextractf128 [{to} + 208], ymm13, 1",
                    "vextractf128 [{to} + 224], ymm14, 1",
                    "vextractf128 [{to} + 240], ymm15, 1",
                    to = in(reg) self.ymm_high.as_mut_ptr(),
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    /// Every word.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        let all = self.fxsave.iter().chain(&self.general).chain(&self.ymm_high);
        all.copied()
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }
}

/// Whether the YMM registers can be used now.
fn has_avx() -> bool {
    const OSXSAVE_AVX: u32 = 1 << 27 | 1 << 28;
    const SSE_AVX: u32 = 0b110;
    let [_, _, features, _] = usys::cpu::cpuid(1, 0);
    if features & OSXSAVE_AVX != OSXSAVE_AVX {
        return false;
    }
    let enabled: u32;
    // SAFETY: CR4.OSXSAVE is set, so XGETBV reads XCR0.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    enabled & SSE_AVX == SSE_AVX
}
