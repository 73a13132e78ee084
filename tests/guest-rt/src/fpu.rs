//! x87, SSE and AVX state. The runtime itself is compiled without them.

use crate::cpu;
use core::arch::asm;

/// XCR0: x87, which must be set.
pub const XCR0_X87: u64 = 1 << 0;
/// XCR0: SSE.
pub const XCR0_SSE: u64 = 1 << 1;
/// XCR0: the upper halves of the YMM registers.
pub const XCR0_AVX: u64 = 1 << 2;

/// Bytes of the 16 YMM registers.
pub type Ymm = [[u64; 4]; 16];

/// An XSAVE area with room for the legacy region, the header and AVX in standard format.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct Area(pub [u8; 1024]);

impl Area {
    /// All zeroes.
    pub const ZERO: Self = Area([0; 1024]);

    /// x87 control and status words, tags, opcode.
    pub fn x87_control(&self) -> &[u8] {
        &self.0[..8]
    }

    /// MXCSR and its mask.
    pub fn mxcsr(&self) -> &[u8] {
        &self.0[24..32]
    }

    /// The eight x87 registers.
    pub fn x87_registers(&self) -> &[u8] {
        &self.0[32..160]
    }

    /// The sixteen XMM registers.
    pub fn xmm(&self) -> &[u8] {
        &self.0[160..416]
    }

    /// The upper half of YMM0, in both formats.
    pub fn upper_ymm0(&self) -> &[u8] {
        &self.0[576..592]
    }
}

/// Sets CR4.OSXSAVE and all of x87, SSE and AVX that CPUID offers in XCR0; returns XCR0, or nothing without XSAVE.
pub fn enable_xsave() -> Option<u64> {
    if cpu::cpuid(1, 0).ecx >> 26 & 1 == 0 {
        return None;
    }
    // SAFETY: the runtime uses none of the state that this makes available.
    unsafe { asm!("mov {t}, cr4", "or {t}, 0x40000", "mov cr4, {t}", t = out(reg) _, options(nostack)) };
    let offered = u64::from(cpu::cpuid(0xd, 0).eax) & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
    xsetbv(0, offered);
    Some(offered)
}

/// Reads an extended control register; CR4.OSXSAVE must be set, else #UD.
pub fn xgetbv(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: XGETBV has no effect; an exception is taken by the runtime.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an extended control register; an invalid value raises #GP.
pub fn xsetbv(index: u32, value: u64) {
    // SAFETY: the runtime uses no extended state; an exception is taken by the runtime.
    unsafe {
        asm!(
            "xsetbv",
            in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack, preserves_flags),
        );
    }
}

/// Initialises the x87 unit, sets a control word and MXCSR that no reset leaves, and fills the x87 stack with
/// constants: 1, pi, log2 e, log2 10, log10 2, ln 2, -1, 0.
pub fn load_x87() {
    let (control, mxcsr) = (0x0f7f_u16, 0x7f80_u32);
    // SAFETY: the runtime uses neither unit.
    unsafe {
        asm!(
            "fninit", "fldcw [{c}]", "ldmxcsr [{m}]",
            "fldz", "fld1", "fchs", "fldln2", "fldlg2", "fldl2t", "fldl2e", "fldpi", "fld1",
            c = in(reg) &raw const control, m = in(reg) &raw const mxcsr, options(nostack, readonly),
        );
    }
}

/// Sixteen loads from, or stores to, `[rdi]` onwards, 32 bytes apart.
macro_rules! sixteen {
    (load $instruction:literal, $register:literal) => {
        sixteen!(@load $instruction, $register, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (store $instruction:literal, $register:literal) => {
        sixteen!(@store $instruction, $register, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@load $instruction:literal, $register:literal, $($n:literal)*) => {
        concat!($($instruction, " ", $register, $n, ", [rdi + 32*", $n, "]\n"),*)
    };
    (@store $instruction:literal, $register:literal, $($n:literal)*) => {
        concat!($($instruction, " [rdi + 32*", $n, "], ", $register, $n, "\n"),*)
    };
}

/// Loads XMM0 to XMM15 with the low halves of `values`.
pub fn load_xmm(values: &Ymm) {
    // SAFETY: reads 16 times 16 bytes of `values`; the runtime uses no XMM register.
    unsafe {
        asm!(sixteen!(load "movdqu", "xmm"), in("rdi") values, options(nostack, readonly, preserves_flags))
    };
}

/// Loads YMM0 to YMM15; AVX must be enabled in XCR0.
pub fn load_ymm(values: &Ymm) {
    // SAFETY: reads 16 times 32 bytes of `values`; the runtime uses no YMM register.
    unsafe {
        asm!(sixteen!(load "vmovdqu", "ymm"), in("rdi") values, options(nostack, readonly, preserves_flags))
    };
}

/// Stores XMM0 to XMM15 in the low halves of a result whose upper halves are 0.
pub fn store_xmm() -> Ymm {
    let mut values = [[0; 4]; 16];
    // SAFETY: writes 16 times 16 bytes, 32 apart, to `values`.
    unsafe {
        asm!(sixteen!(store "movdqu", "xmm"), in("rdi") &raw mut values, options(nostack, preserves_flags))
    };
    values
}

/// Stores YMM0 to YMM15; AVX must be enabled in XCR0.
pub fn store_ymm() -> Ymm {
    let mut values = [[0; 4]; 16];
    // SAFETY: writes 16 times 32 bytes to `values`.
    unsafe {
        asm!(sixteen!(store "vmovdqu", "ymm"), in("rdi") &raw mut values, options(nostack, preserves_flags))
    };
    values
}

/// Stores x87 and SSE state by FXSAVE.
pub fn fxsave(area: &mut Area) {
    // SAFETY: the area is large enough and aligned.
    unsafe { asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags)) };
}

/// How the processor saves and restores extended state in the compacted format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compaction {
    /// XSAVEC and XRSTOR.
    User,
    /// XSAVES and XRSTORS.
    Supervisor,
}

impl Compaction {
    /// Whether CPUID offers it.
    pub fn is_offered(self) -> bool {
        let bit = match self {
            Compaction::User => 1,
            Compaction::Supervisor => 3,
        };
        cpu::cpuid(0xd, 1).eax >> bit & 1 != 0
    }

    /// Saves what XCR0 has.
    pub fn save(self, area: &mut Area) {
        let mask = xgetbv(0) as u32;
        // SAFETY: the area is large enough for what `enable_xsave` enables, and aligned.
        unsafe {
            match self {
                Compaction::User => {
                    asm!("xsavec64 [{}]", in(reg) area, in("eax") mask, in("edx") 0, options(nostack, preserves_flags))
                }
                Compaction::Supervisor => {
                    asm!("xsaves64 [{}]", in(reg) area, in("eax") mask, in("edx") 0, options(nostack, preserves_flags))
                }
            }
        }
    }

    /// Restores it.
    pub fn restore(self, area: &Area) {
        let mask = xgetbv(0) as u32;
        // SAFETY: as in `save`, which filled the area; the runtime uses none of the registers.
        unsafe {
            match self {
                Compaction::User => {
                    asm!("xrstor64 [{}]", in(reg) area, in("eax") mask, in("edx") 0, options(nostack, preserves_flags))
                }
                Compaction::Supervisor => {
                    asm!("xrstors64 [{}]", in(reg) area, in("eax") mask, in("edx") 0, options(nostack, preserves_flags))
                }
            }
        }
    }
}
