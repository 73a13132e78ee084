//! The time-stamp counter.

use core::arch::asm;

/// RDTSC.
#[inline]
pub fn read() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC is always available and only writes these registers.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) }
    (high as u64) << 32 | low as u64
}
