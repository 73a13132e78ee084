//! CPUID, MSRs, control registers, time stamps, interrupt flag.

use core::arch::asm;
pub use core::arch::x86_64::CpuidResult;

/// Runs CPUID, which exits.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// The 12 bytes of the hypervisor's signature (leaf 4000_0000H), or nothing without a hypervisor.
pub fn hypervisor_signature() -> Option<[u8; 12]> {
    (cpuid(1, 0).ecx >> 31 != 0).then(|| {
        let leaf = cpuid(0x4000_0000, 0);
        let mut bytes = [0; 12];
        for (chunk, word) in bytes.chunks_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    })
}

/// Whether the board is Nacre's: it shows KVM's signature, which no emulator the guests run in directly does.
pub fn is_nacre() -> bool {
    hypervisor_signature() == Some(*b"KVMKVMKVM\0\0\0")
}

/// Reads a model-specific register; an unknown one raises #GP, see [`crate::trap::catch`].
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDMSR changes no memory; a #GP is taken by the runtime.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must not change how code that follows runs, other than the caller is ready for.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for the value; a #GP is taken by the runtime.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags),
        );
    }
}

/// Reads the time stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC is available in ring 0 of every x86-64.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Switches interrupts on, from the next instruction but one.
pub fn sti() {
    // SAFETY: handlers of every vector are in place since `desc::init`.
    unsafe { asm!("sti", options(nostack)) };
}

/// Switches interrupts off.
pub fn cli() {
    // SAFETY: less can happen afterwards than before.
    unsafe { asm!("cli", options(nostack)) };
}

/// Halts until the next interrupt, with interrupts on from the same moment on; off afterwards.
pub fn sti_hlt_cli() {
    // SAFETY: as for `sti` and `cli`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Halts with interrupts off, for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs afterwards, but for an NMI.
        unsafe { asm!("cli", "hlt", options(nostack)) };
    }
}

/// Reads CR8, the task priority in units of 16.
pub fn cr8() -> u64 {
    let value: u64;
    // SAFETY: reading CR8 has no effect.
    unsafe { asm!("mov {}, cr8", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR8, 0 to 15.
pub fn set_cr8(value: u64) {
    // SAFETY: it only lets interrupts in, for which the runtime has handlers.
    unsafe { asm!("mov cr8, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Writes CR2.
pub fn set_cr2(value: u64) {
    // SAFETY: CR2 means nothing until the next page fault overwrites it.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Reads CR4.
pub fn cr4() -> u64 {
    let value: u64;
    // SAFETY: reading CR4 has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes CR4.
///
/// # Safety
/// PAE has to stay set; a reserved bit raises #GP.
pub unsafe fn set_cr4(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// STI followed at once by CLI: no interrupt may arrive in between.
pub fn sti_cli() {
    // SAFETY: as for `sti` and `cli`.
    unsafe { asm!("sti", "cli", options(nostack)) };
}

/// STI, NOP, CLI: a pending interrupt arrives before the CLI, whose address is returned.
pub fn sti_nop_cli() -> u64 {
    let cli: u64;
    // SAFETY: as for `sti` and `cli`.
    unsafe { asm!("lea {}, [rip + 2f]", "sti", "nop", "2:", "cli", out(reg) cli, options(nostack)) };
    cli
}
