//! Whether XSAVEC works.
//!
//! Bochs 2.7 gives the legacy SSE region a place among the compacted components, so XSAVEC and XSAVES store everything
//! behind it 160 bytes too low, where XRSTOR does not look: guests lose their AVX registers at every switch of threads.
//! CPUID does not tell such a machine from others, so this tries it.

use super::{cpuid, fpu};
use core::arch::asm;

const AVX: u64 = 1 << 2;
/// Where the first component of the extended region is, compacted or not (SDM 1 13.4.2, 13.4.3).
const EXTENDED_REGION: usize = 576;
/// Bytes of the upper halves of 16 YMM registers.
const YMM_BYTES: usize = 256;
const MXCSR: usize = 24;
const MXCSR_RESET: u32 = 0x1f80;
const XSTATE_BV: usize = 512;

#[repr(C, align(64))]
struct Area([u8; EXTENDED_REGION + YMM_BYTES]);

impl Area {
    /// An area in the standard format: `component` for AVX, or its initial state.
    fn new(component: Option<[u8; YMM_BYTES]>) -> Self {
        let mut area = Area([0; EXTENDED_REGION + YMM_BYTES]);
        area.0[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_RESET.to_le_bytes());
        if let Some(component) = component {
            area.0[XSTATE_BV] = AVX as u8;
            area.0[EXTENDED_REGION..].copy_from_slice(&component);
        }
        area
    }
}

/// Whether guests may be offered XSAVEC and what builds on it: the CPU has it, and it stores where XRSTOR looks.
///
/// Only while no guest's state is in the registers; afterwards they are in their initial state.
pub fn works() -> bool {
    if cpuid::leaf(0xd, 1).eax >> 1 & 1 == 0 || fpu::guest_xcr0() == 0 {
        return false;
    }
    if fpu::guest_xcr0() & AVX == 0 {
        // There is nothing to compact.
        return true;
    }
    let component = core::array::from_fn(|index| index as u8 | 1);
    let (filled, initial, mut saved) = (Area::new(Some(component)), Area::new(None), Area::new(None));
    // SAFETY: XCR0 has AVX, and the areas are aligned and large enough for it. Their headers are valid. CR0.TS is as before in
    // the end; the kernel has nothing in these registers.
    unsafe {
        asm!(
            "mov {cr0}, cr0",
            "clts",
            "xrstor64 [{filled}]",
            "xsavec64 [{saved}]",
            "xrstor64 [{initial}]",
            "mov cr0, {cr0}",
            cr0 = out(reg) _,
            filled = in(reg) &raw const filled,
            initial = in(reg) &raw const initial,
            saved = in(reg) &raw mut saved,
            in("eax") AVX as u32,
            in("edx") 0,
            options(nostack),
        );
    }
    saved.0[EXTENDED_REGION..] == component
}
