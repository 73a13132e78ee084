//! CPUID, reduced to what the kernel decides on.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// CPUID leaf and subleaf; zeros for leaves that the CPU does not have.
pub fn leaf(leaf: u32, subleaf: u32) -> CpuidResult {
    let max = __cpuid_count(leaf & 0xffff_0000, 0).eax;
    if leaf > max {
        return CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    }
    __cpuid_count(leaf, subleaf)
}

/// Features of this CPU that the kernel uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// 1 GiB pages.
    pub pages_1g: bool,
    /// No-execute.
    pub nx: bool,
    /// SYSCALL and long mode.
    pub long_mode: bool,
    /// x2APIC.
    pub x2apic: bool,
    /// TSC-deadline timer.
    pub tsc_deadline: bool,
    /// XSAVE.
    pub xsave: bool,
    /// SMEP.
    pub smep: bool,
    /// SMAP.
    pub smap: bool,
    /// UMIP.
    pub umip: bool,
    /// Global pages.
    pub pge: bool,
    /// Invariant TSC.
    pub invariant_tsc: bool,
    /// RDTSCP and TSC_AUX.
    pub rdtscp: bool,
    /// Physical-address bits.
    pub phys_bits: u8,
}

/// Reads the features of this CPU.
pub fn features() -> Features {
    let (basic, ext7) = (leaf(1, 0), leaf(7, 0));
    let (ext1, ext7p, ext8) = (leaf(0x8000_0001, 0), leaf(0x8000_0007, 0), leaf(0x8000_0008, 0));
    let bit = |register: u32, number: u32| register >> number & 1 != 0;
    Features {
        pages_1g: bit(ext1.edx, 26),
        nx: bit(ext1.edx, 20),
        long_mode: bit(ext1.edx, 29) && bit(ext1.edx, 11),
        x2apic: bit(basic.ecx, 21),
        tsc_deadline: bit(basic.ecx, 24),
        xsave: bit(basic.ecx, 26),
        smep: bit(ext7.ebx, 7),
        smap: bit(ext7.ebx, 20),
        umip: bit(ext7.ecx, 2),
        pge: bit(basic.edx, 13),
        invariant_tsc: bit(ext7p.edx, 8),
        rdtscp: bit(ext1.edx, 27),
        phys_bits: if ext8.eax as u8 == 0 { 36 } else { ext8.eax as u8 },
    }
}
