//! What the CPU says: the time, and what it is.

use core::arch::x86_64::{__cpuid_count, _rdtsc};

/// The time-stamp counter now.
#[inline]
pub fn now() -> u64 {
    // SAFETY: RDTSC is allowed in ring 3.
    unsafe { _rdtsc() }
}

/// The TSC in `milliseconds` from now, on a machine with `tsc_hz` ticks a second.
pub fn deadline_in(milliseconds: u64, tsc_hz: u64) -> u64 {
    now().saturating_add((tsc_hz / 1000).saturating_mul(milliseconds))
}

/// Executes CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}
