//! What the CPU says: the time, and what it is.

use core::arch::asm;
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

/// Whether there is [`random`].
pub fn has_random() -> bool {
    const RDRAND: u32 = 1 << 30;
    let [_, _, features, _] = cpuid(1, 0);
    features & RDRAND != 0
}

/// A random number by RDRAND, which [`has_random`] says is there; `None` if the generator gave none in as many attempts as
/// Intel recommends (SDM 1 7.3.17.1).
pub fn random() -> Option<u64> {
    const ATTEMPTS: usize = 10;
    (0..ATTEMPTS).find_map(|_| {
        let (value, is_good): (u64, u8);
        // SAFETY: RDRAND changes its register and flags. Where it does not exist, #UD ends the process.
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) is_good, options(nomem, nostack))
        };
        (is_good != 0).then_some(value)
    })
}
