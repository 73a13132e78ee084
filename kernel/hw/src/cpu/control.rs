//! Control registers.

use super::cpuid::Features;
use super::msr;
use core::arch::asm;

/// Loads CR3.
///
/// # Safety
/// `root` is a valid top-level table that maps the kernel as every other one does.
#[inline]
pub unsafe fn write_cr3(root: u64) {
    // SAFETY: the caller promises a table with the kernel's mappings, so execution goes on.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) }
}

/// Reads CR3.
#[inline]
pub fn read_cr3() -> u64 {
    let value;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Reads CR2.
#[inline]
pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Whether RFLAGS.AC is set, which lifts SMAP.
pub fn lifts_smap() -> bool {
    let flags: u64;
    // SAFETY: pushes and pops a word.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) }
    flags & 1 << 18 != 0
}

/// Sets up CR0, CR4 and EFER for the kernel, with every protection the CPU has.
///
/// # Safety
/// Once per CPU during boot, with the kernel's final page tables (W^X, user pages never touched by the kernel except
/// through the direct map).
pub unsafe fn enable_protections(features: &Features) {
    const CR0_MP: u64 = 1 << 1;
    const CR0_EM: u64 = 1 << 2;
    const CR0_TS: u64 = 1 << 3;
    const CR0_NE: u64 = 1 << 5;
    const CR0_WP: u64 = 1 << 16;
    const CR0_AM: u64 = 1 << 18;
    const CR0_CACHE: u64 = 3 << 29;
    const CR4_PAE: u64 = 1 << 5;
    const CR4_MCE: u64 = 1 << 6;
    const CR4_DE: u64 = 1 << 3;
    const CR4_PGE: u64 = 1 << 7;
    const CR4_OSFXSR: u64 = 1 << 9;
    const CR4_OSXMMEXCPT: u64 = 1 << 10;
    const CR4_UMIP: u64 = 1 << 11;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const CR4_SMEP: u64 = 1 << 20;
    const CR4_SMAP: u64 = 1 << 21;
    // Whatever else the firmware or the loader left on (FSGSBASE above all) goes off.
    let mut cr4 = CR4_PAE | CR4_MCE | CR4_DE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (present, bit) in [
        (features.pge, CR4_PGE),
        (features.umip, CR4_UMIP),
        (features.xsave, CR4_OSXSAVE),
        (features.smep, CR4_SMEP),
        (features.smap, CR4_SMAP),
    ] {
        cr4 |= if present { bit } else { 0 };
    }
    // SAFETY: each CR4 bit is set only where CPUID announces it; CR0 keeps PE and PG. NXE and SCE are there since the
    // boot code checked long mode and NX.
    unsafe {
        let mut cr0: u64;
        asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
        // TS stays set outside of guests: user code has no FPU (`fpu`).
        cr0 = (cr0 | CR0_MP | CR0_TS | CR0_NE | CR0_WP | CR0_AM) & !(CR0_EM | CR0_CACHE);
        asm!("mov cr0, {}", in(reg) cr0, options(nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        msr::write(msr::EFER, msr::read(msr::EFER) | 1 | 1 << 11);
        // The page-table formats rely on the power-on memory types (SDM 3A table 12-12).
        msr::write(msr::PAT, 0x0007_0406_0007_0406);
    }
}

/// RBP of the caller: where its chain of stack frames begins.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}
