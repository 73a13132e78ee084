//! The time-stamp counter.

use super::msr;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// RDTSC.
#[inline]
pub fn read() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC is always available and only writes these registers.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) }
    (high as u64) << 32 | low as u64
}

/// Whether there are RDTSCP and TSC_AUX.
static HAS_AUX: AtomicBool = AtomicBool::new(false);

/// Prepares this CPU.
pub fn init_cpu(has_rdtscp: bool) {
    HAS_AUX.store(has_rdtscp, Ordering::Relaxed);
    set_aux(0);
}

/// Sets TSC_AUX, which user code reads with RDTSCP; nothing on a CPU without. Outside of domains that run a guest it is 0.
pub fn set_aux(value: u32) {
    if HAS_AUX.load(Ordering::Relaxed) {
        // SAFETY: the MSR exists together with RDTSCP, and takes 32 bits.
        unsafe { msr::write(msr::TSC_AUX, value as u64) };
    }
}
