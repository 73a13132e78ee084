//! What the host has, as far as a guest can notice.

use hypercall_abi::boot_info::Machine;

/// What the kernel told the root task about the host ([`hypercall_abi::boot_info::BootInfo`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// What the machine has.
    pub machine: Machine,
    /// XCR0 bits that guests may set.
    pub guest_xcr0: u64,
    /// TSC ticks in a second.
    pub tsc_hz: u64,
}

/// Results of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidRegs {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl CpuidRegs {
    /// All four registers.
    pub const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        CpuidRegs { eax, ebx, ecx, edx }
    }
}

/// The host's CPUID instruction.
pub trait HostCpuid {
    /// Executes CPUID with `leaf` in EAX and `subleaf` in ECX.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidRegs;
}

impl<F: Fn(u32, u32) -> CpuidRegs> HostCpuid for F {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidRegs {
        self(leaf, subleaf)
    }
}
