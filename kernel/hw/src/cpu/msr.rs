//! Model-specific registers.

use core::arch::asm;

/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_XSS.
pub const XSS: u32 = 0xda0;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_EFER.
pub const EFER: u32 = 0xc000_0080;
/// IA32_STAR.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_CSTAR.
pub const CSTAR: u32 = 0xc000_0083;
/// IA32_FMASK.
pub const SFMASK: u32 = 0xc000_0084;
/// IA32_GS_BASE.
pub const GS_BASE: u32 = 0xc000_0101;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;
/// IA32_PAT.
pub const PAT: u32 = 0x277;
/// IA32_SYSENTER_CS.
pub const SYSENTER_CS: u32 = 0x174;

/// RDMSR.
///
/// # Safety
/// The MSR exists on this CPU: an unknown one is a #GP in the kernel.
#[inline]
pub unsafe fn read(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller promises that the MSR exists; reading has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    (high as u64) << 32 | low as u64
}

/// WRMSR.
///
/// # Safety
/// The MSR exists, takes this value, and the value does not break what the kernel relies on.
#[inline]
pub unsafe fn write(index: u32, value: u64) {
    // SAFETY: the caller promises that the write is valid. It is a barrier for memory accesses, so no `nomem`.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// WRMSR of a value in memory, whose halves are loaded one by one: that is one instruction less, on the way of every VM exit.
///
/// # Safety
/// As [`write()`].
#[inline]
pub unsafe fn write_from(index: u32, value: &u64) {
    let halves = (&raw const *value).cast::<u32>();
    // SAFETY: both halves are the referenced word's; for WRMSR as in `write`. The reads are volatile, or they would become one.
    unsafe {
        let (low, high) = (halves.read_volatile(), halves.add(1).read_volatile());
        asm!("wrmsr", in("ecx") index, in("eax") low, in("edx") high, options(nostack, preserves_flags));
    }
}
