//! MSRs of the CPU itself: what the guest may read and write, and what is kept for it.
//!
//! The local APIC's MSRs, the clock's and the TSC are devices' and answered by `exits`. An MSR that is in neither
//! place does not exist: reading or writing it is a #GP, as on a CPU that does not have it.

use hypercall_abi::vcpu::{FS, GS, Groups, VcpuPage};

use crate::cpuid::GuestCpu;
use crate::vcpu::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, Vcpu};

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// IA32_TSC_ADJUST.
pub const TSC_ADJUST: u32 = 0x3b;

const PLATFORM_ID: u32 = 0x17;
const EBL_CR_POWERON: u32 = 0x2a;
const UCODE_WRITE: u32 = 0x79;
const UCODE_REVISION: u32 = 0x8b;
const PLATFORM_INFO: u32 = 0xce;
const MTRR_CAP: u32 = 0xfe;
const MISC_FEATURE_ENABLES: u32 = 0x140;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const PERF_STATUS: u32 = 0x198;
const MISC_ENABLE: u32 = 0x1a0;
const DEBUGCTL: u32 = 0x1d9;
const MTRR_PHYS_FIRST: u32 = 0x200;
const MTRR_PHYS_LAST: u32 = 0x20f;
const PAT: u32 = 0x277;
const MTRR_DEF_TYPE: u32 = 0x2ff;
const XSS: u32 = 0xda0;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
const AMD_HWCR: u32 = 0xc001_0015;
const AMD_DE_CFG: u32 = 0xc001_1029;
const AMD_VM_CR: u32 = 0xc001_0114;

/// MSRs of AMD CPUs that Linux touches without asking first; they read as zero and ignore writes: SYS_CFG, IORR and
/// TOP_MEM, NB_CFG, PATCH_LOADER, interrupt pending message, MMIO configuration base, P-state limit to status, SMM
/// address and mask, VM_HSAVE_PA, DC_CFG, TW_CFG, BU_CFG2, EX_CFG.
const AMD_ZERO: &[u32] = &[
    0xc001_0010,
    0xc001_0016,
    0xc001_0017,
    0xc001_0018,
    0xc001_0019,
    0xc001_001a,
    0xc001_001d,
    0xc001_001f,
    0xc001_0020,
    0xc001_0055,
    0xc001_0058,
    0xc001_0061,
    0xc001_0062,
    0xc001_0063,
    0xc001_0112,
    0xc001_0113,
    0xc001_0117,
    0xc001_1022,
    0xc001_1023,
    0xc001_102a,
    0xc001_102c,
];

/// Fixed-range MTRRs, in the order of [`Msrs::mtrr_fixed`].
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAP_VALUE: u64 = 0x508;
/// MTRRs enabled, write-back everywhere: Linux takes disabled MTRRs for broken firmware and leaves PAT alone.
const MTRR_DEF_TYPE_RESET: u64 = 0x806;
const MTRR_DEF_TYPE_WRITABLE: u64 = 0xcff;
/// Fast strings; no branch trace store, no event-based sampling.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
const MISC_ENABLE_READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12 | 1 << 18;
/// No newer microcode is needed: Linux compares revisions to lists of bad ones.
const UCODE_REVISION_INTEL: u64 = 0xffff_ffff << 32;
const UCODE_REVISION_AMD: u64 = 0xffff_ffff;
/// The TSC counts at the rate of P0.
const HWCR_TSC_FREQUENCY: u64 = 1 << 24;
/// LFENCE is serializing.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// SVM is disabled, and that is locked.
const VM_CR_DISABLED: u64 = 1 << 4 | 1 << 3;
const DEBUGCTL_BTF: u64 = 1 << 1;

/// The MSRs that are kept here; those of the vCPU page are kept there.
#[derive(Clone, Debug)]
pub struct Msrs {
    misc_enable: u64,
    mtrr_def_type: u64,
    mtrr_fixed: [u64; MTRR_FIXED.len()],
    mtrr_variable: [u64; 16],
    hwcr: u64,
    /// IA32_TSC_ADJUST: how far the guest has moved its TSC.
    pub(crate) tsc_adjust: u64,
}

impl Default for Msrs {
    fn default() -> Self {
        Msrs {
            misc_enable: MISC_ENABLE_RESET,
            mtrr_def_type: MTRR_DEF_TYPE_RESET,
            mtrr_fixed: [0; MTRR_FIXED.len()],
            mtrr_variable: [0; 16],
            hwcr: 0,
            tsc_adjust: 0,
        }
    }
}

impl Msrs {
    /// RDMSR; `None` is a #GP.
    pub fn read(&self, index: u32, vcpu: &mut impl Vcpu, cpu: &GuestCpu) -> Option<u64> {
        if let Some((groups, get, _)) = page_msr(index, cpu) {
            return Some(*get(vcpu.state(groups)));
        }
        match index {
            MISC_ENABLE if cpu.is_intel() => Some(self.misc_enable),
            PLATFORM_ID | EBL_CR_POWERON | PLATFORM_INFO | MISC_FEATURE_ENABLES | PERF_STATUS
                if cpu.is_intel() =>
            {
                Some(0)
            }
            UCODE_REVISION if cpu.is_intel() => Some(UCODE_REVISION_INTEL),
            UCODE_REVISION => Some(UCODE_REVISION_AMD),
            // No bank reports machine checks.
            MCG_CAP | MCG_STATUS => Some(0),
            MTRR_CAP => Some(MTRR_CAP_VALUE),
            MTRR_DEF_TYPE => Some(self.mtrr_def_type),
            MTRR_PHYS_FIRST..=MTRR_PHYS_LAST => {
                self.mtrr_variable.get((index - MTRR_PHYS_FIRST) as usize).copied()
            }
            PAT => Some(vcpu.state(Groups::PAT).pat),
            DEBUGCTL => Some(vcpu.state(Groups::PAT).debugctl),
            EFER => Some(vcpu.state(Groups::CONTROL).efer),
            XSS if cpu.features().has("xsaves") => Some(0),
            AMD_HWCR if !cpu.is_intel() => Some(self.hwcr | HWCR_TSC_FREQUENCY),
            AMD_DE_CFG if !cpu.is_intel() => Some(DE_CFG_LFENCE),
            AMD_VM_CR if !cpu.is_intel() => Some(VM_CR_DISABLED),
            _ if !cpu.is_intel() && AMD_ZERO.contains(&index) => Some(0),
            _ => fixed_range(index).map(|range| self.mtrr_fixed[range]),
        }
    }

    /// WRMSR; `None` is a #GP.
    pub fn write(&mut self, index: u32, value: u64, vcpu: &mut impl Vcpu, cpu: &GuestCpu) -> Option<()> {
        if let Some((groups, _, content)) = page_msr(index, cpu) {
            let value = content.accept(value, cpu)?;
            let page = vcpu.state(groups);
            *page_msr_mut(index, page)? = value;
            page.dirty |= groups.bits();
            return Some(());
        }
        match index {
            MISC_ENABLE if cpu.is_intel() => {
                let kept = self.misc_enable & MISC_ENABLE_READ_ONLY;
                self.misc_enable = value & !MISC_ENABLE_READ_ONLY | kept;
            }
            // Microcode updates, and clearing the revision before reading it, come to nothing.
            UCODE_WRITE | UCODE_REVISION => {}
            MISC_FEATURE_ENABLES if cpu.is_intel() && value == 0 => {}
            MCG_STATUS if value == 0 => {}
            MTRR_DEF_TYPE if value & !MTRR_DEF_TYPE_WRITABLE == 0 && is_memory_type(value as u8) => {
                self.mtrr_def_type = value;
            }
            MTRR_PHYS_FIRST..=MTRR_PHYS_LAST => {
                let range = self.mtrr_variable.get_mut((index - MTRR_PHYS_FIRST) as usize)?;
                // Even MSRs hold base and type, odd ones the mask.
                if index & 1 == 0 && !is_memory_type(value as u8) {
                    return None;
                }
                *range = value;
            }
            PAT if value.to_le_bytes().into_iter().all(is_pat_type) => {
                let page = vcpu.state(Groups::PAT);
                page.pat = value;
                page.dirty |= Groups::PAT.bits();
            }
            DEBUGCTL if value & !DEBUGCTL_BTF == 0 => {
                let page = vcpu.state(Groups::PAT);
                page.debugctl = value;
                page.dirty |= Groups::PAT.bits();
            }
            EFER => write_efer(value, vcpu, cpu)?,
            XSS if cpu.features().has("xsaves") && value == 0 => {}
            AMD_HWCR if !cpu.is_intel() => self.hwcr = value & !HWCR_TSC_FREQUENCY,
            AMD_DE_CFG | AMD_VM_CR if !cpu.is_intel() => {}
            _ if !cpu.is_intel() && AMD_ZERO.contains(&index) => {}
            _ => {
                let range = fixed_range(index)?;
                if !value.to_le_bytes().into_iter().all(is_memory_type) {
                    return None;
                }
                self.mtrr_fixed[range] = value;
            }
        }
        Some(())
    }
}

type Getter = fn(&VcpuPage) -> &u64;

/// What an MSR of the vCPU page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A linear address.
    Address,
    /// 32 bits; the rest is reserved on Intel's CPUs and ignored on AMD's.
    Low32,
    /// Anything.
    Any,
}

impl Content {
    /// What becomes of a value that the guest writes; `None` is a #GP.
    fn accept(self, value: u64, cpu: &GuestCpu) -> Option<u64> {
        match self {
            Content::Address => is_canonical(value).then_some(value),
            Content::Low32 if cpu.is_intel() => (value >> 32 == 0).then_some(value),
            Content::Low32 => Some(value & 0xffff_ffff),
            Content::Any => Some(value),
        }
    }
}

/// An MSR that is a plain field of the vCPU page: its group, the field, and what it holds.
fn page_msr(index: u32, cpu: &GuestCpu) -> Option<(Groups, Getter, Content)> {
    use Content::{Address, Any, Low32};
    Some(match index {
        SYSENTER_CS => (Groups::SYSENTER, |page| &page.sysenter_cs, Low32),
        SYSENTER_ESP => (Groups::SYSENTER, |page| &page.sysenter_esp, Address),
        SYSENTER_EIP => (Groups::SYSENTER, |page| &page.sysenter_eip, Address),
        STAR => (Groups::SYSCALL, |page| &page.star, Any),
        LSTAR => (Groups::SYSCALL, |page| &page.lstar, Address),
        CSTAR => (Groups::SYSCALL, |page| &page.cstar, Address),
        SFMASK => (Groups::SYSCALL, |page| &page.sfmask, Low32),
        KERNEL_GS_BASE => (Groups::SYSCALL, |page| &page.kernel_gs_base, Address),
        TSC_AUX if cpu.has_tsc_aux() => (Groups::SYSCALL, |page| &page.tsc_aux, Low32),
        FS_BASE => (Groups::DATA_SEGMENTS, |page| &page.segments[FS].base, Address),
        GS_BASE => (Groups::DATA_SEGMENTS, |page| &page.segments[GS].base, Address),
        _ => return None,
    })
}

fn page_msr_mut(index: u32, page: &mut VcpuPage) -> Option<&mut u64> {
    Some(match index {
        SYSENTER_CS => &mut page.sysenter_cs,
        SYSENTER_ESP => &mut page.sysenter_esp,
        SYSENTER_EIP => &mut page.sysenter_eip,
        STAR => &mut page.star,
        LSTAR => &mut page.lstar,
        CSTAR => &mut page.cstar,
        SFMASK => &mut page.sfmask,
        KERNEL_GS_BASE => &mut page.kernel_gs_base,
        TSC_AUX => &mut page.tsc_aux,
        FS_BASE => &mut page.segments[FS].base,
        GS_BASE => &mut page.segments[GS].base,
        _ => return None,
    })
}

/// Writes EFER (SDM 4 table 2-2; APM 2 3.1.7). LMA follows CR0.PG and is not the guest's to write.
fn write_efer(value: u64, vcpu: &mut impl Vcpu, cpu: &GuestCpu) -> Option<()> {
    let mut allowed = EFER_SCE | EFER_LME | EFER_LMA;
    if cpu.features().has("nx") {
        allowed |= EFER_NXE;
    }
    let page = vcpu.state(Groups::CONTROL);
    let toggles_long_mode = (value ^ page.efer) & EFER_LME != 0;
    if value & !allowed != 0 || toggles_long_mode && page.cr0 & CR0_PG != 0 {
        return None;
    }
    page.efer = value & !EFER_LMA | page.efer & EFER_LMA;
    page.dirty |= Groups::CONTROL.bits();
    Some(())
}

fn fixed_range(index: u32) -> Option<usize> {
    MTRR_FIXED.iter().position(|msr| *msr == index)
}

/// UC, WC, WT, WP, WB (SDM 3A table 12-8).
fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// As [`is_memory_type`], and UC- (SDM 3A table 12-10).
fn is_pat_type(value: u8) -> bool {
    is_memory_type(value) || value == 7
}

/// The upper 17 bits of a 48-bit linear address are the same.
pub(crate) fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{CpuidRegs, HostFacts};
    use crate::vcpu::FakeVcpu;
    use hypercall_abi::boot_info::Machine;

    fn cpu(vendor: &[u8; 4]) -> GuestCpu {
        let vendor = u32::from_le_bytes(*vendor);
        let host = move |leaf, _| match leaf {
            0 => CpuidRegs::new(0xd, vendor, 0, 0),
            0x8000_0000 => CpuidRegs::new(0x8000_0008, 0, 0, 0),
            _ => CpuidRegs::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
        };
        let facts = HostFacts { machine: Machine::all(), guest_xcr0: 7, tsc_hz: 1_000_000_000 };
        GuestCpu::new(&host, &facts, &[]).unwrap()
    }

    #[test]
    fn an_msr_that_no_cpu_has_is_a_fault() {
        let (mut msrs, mut vcpu, cpu) = (Msrs::default(), FakeVcpu::new(), cpu(b"Genu"));
        for index in [0, 0x48, 0x480, 0x4b56_4d02, 0xc001_0010] {
            assert_eq!(msrs.read(index, &mut vcpu, &cpu), None, "{index:#x}");
            assert_eq!(msrs.write(index, 0, &mut vcpu, &cpu), None, "{index:#x}");
        }
    }

    #[test]
    fn vendors_have_their_own_msrs() {
        let (msrs, mut vcpu) = (Msrs::default(), FakeVcpu::new());
        assert!(msrs.read(MISC_ENABLE, &mut vcpu, &cpu(b"Genu")).is_some());
        assert!(msrs.read(MISC_ENABLE, &mut vcpu, &cpu(b"Auth")).is_none());
        assert_eq!(msrs.read(AMD_DE_CFG, &mut vcpu, &cpu(b"Auth")), Some(2));
        assert_eq!(msrs.read(0xc001_0010, &mut vcpu, &cpu(b"Auth")), Some(0));
    }

    #[test]
    fn upper_halves_that_the_kernel_would_refuse_never_reach_it() {
        let (mut msrs, mut vcpu) = (Msrs::default(), FakeVcpu::new());
        for index in [SYSENTER_CS, SFMASK, TSC_AUX] {
            let written = msrs.write(index, 0xf_0000_0001, &mut vcpu, &cpu(b"Genu"));
            assert_eq!(written, None, "{index:#x}");
            let written = msrs.write(index, 0xf_0000_0001, &mut vcpu, &cpu(b"Auth"));
            assert_eq!(written, Some(()), "{index:#x}");
            assert_eq!(msrs.read(index, &mut vcpu, &cpu(b"Auth")), Some(1), "{index:#x}");
        }
    }

    #[test]
    fn mtrrs_and_pat_are_kept_and_checked() {
        let (mut msrs, mut vcpu, cpu) = (Msrs::default(), FakeVcpu::new(), cpu(b"Genu"));
        for (index, good, bad) in [
            (PAT, 0x0007_0406_0007_0106, 2),
            (MTRR_DEF_TYPE, 0xc00, 0x803),
            (0x200, 0xc000_0000, 0xc000_0002),
            (0x268, 0x0606_0606_0606_0606, 0x0806_0606_0606_0606),
        ] {
            assert_eq!(msrs.write(index, good, &mut vcpu, &cpu), Some(()));
            assert_eq!(msrs.write(index, bad, &mut vcpu, &cpu), None);
            assert_eq!(msrs.read(index, &mut vcpu, &cpu), Some(good));
        }
    }

    #[test]
    fn long_mode_cannot_be_toggled_under_paging() {
        let (mut msrs, cpu) = (Msrs::default(), cpu(b"Auth"));
        let mut vcpu = FakeVcpu::long_mode(0, 0);
        assert_eq!(msrs.write(EFER, 0, &mut vcpu, &cpu), None);
        let syscall = EFER_LME | EFER_SCE | EFER_NXE;
        assert_eq!(msrs.write(EFER, syscall, &mut vcpu, &cpu), Some(()));
        assert_eq!(msrs.read(EFER, &mut vcpu, &cpu), Some(syscall | EFER_LMA));
        const EFER_SVME: u64 = 1 << 12;
        assert_eq!(msrs.write(EFER, syscall | EFER_SVME, &mut vcpu, &cpu), None);
    }

    #[test]
    fn addresses_must_be_canonical() {
        let (mut msrs, mut vcpu, cpu) = (Msrs::default(), FakeVcpu::new(), cpu(b"Auth"));
        for index in [LSTAR, FS_BASE, KERNEL_GS_BASE, SYSENTER_EIP] {
            assert_eq!(msrs.write(index, 1 << 47, &mut vcpu, &cpu), None);
            assert_eq!(msrs.write(index, 0xffff_8000_0000_0000, &mut vcpu, &cpu), Some(()));
            assert_eq!(msrs.read(index, &mut vcpu, &cpu), Some(0xffff_8000_0000_0000));
        }
    }
}
