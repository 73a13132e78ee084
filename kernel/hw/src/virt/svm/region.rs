//! Detection, and SVM of one CPU: switching it on, its ASIDs.

use super::probe;
use crate::cpu::{cpuid, fpu, msr, xsavec};
use crate::mem::kernel_virt_to_phys;
use crate::percpu;
use crate::virt::{Features, Unsupported};
use core::cell::UnsafeCell;
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;
use kcore::virt::svm::asid::{Pool, Tag, TlbControl};
use kcore::virt::svm::msr_bitmap::{IOPM_SIZE, MSRPM_SIZE, PermissionMap};
use kcore::virt::svm::processor::{Processor, SvmFeatures};

/// VM_CR.
const VM_CR: u32 = 0xc001_0114;
/// VM_CR: SVMDIS cannot be changed.
const VM_CR_LOCK: u64 = 1 << 3;
/// VM_CR: EFER.SVME cannot be set.
const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_HSAVE_PA.
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// EFER.SVME.
const EFER_SVME: u64 = 1 << 12;

/// The permission maps of all guests, in the kernel image because each has to be physically contiguous.
static MSR_MAP: Map<MSRPM_SIZE> = Map::new();
static IO_MAP: Map<IOPM_SIZE> = Map::new();

struct Map<const SIZE: usize>(UnsafeCell<PermissionMap<SIZE>>);
// SAFETY: the boot CPU fills them before there is another CPU or a guest; afterwards only their address is used.
unsafe impl<const SIZE: usize> Sync for Map<SIZE> {}

impl<const SIZE: usize> Map<SIZE> {
    const fn new() -> Self {
        Map(UnsafeCell::new(PermissionMap([0; SIZE])))
    }

    fn address(&self) -> PhysAddr {
        kernel_virt_to_phys(self.0.get() as u64)
    }
}

/// What one CPU has.
struct PerCpu {
    asids: UnsafeCell<Pool>,
}

struct AllCpus([PerCpu; MAX_CPUS]);
// SAFETY: each CPU uses only the entry of its own number, with interrupts off.
unsafe impl Sync for AllCpus {}
static CPUS: AllCpus = AllCpus([const { PerCpu { asids: UnsafeCell::new(Pool::new(0)) } }; MAX_CPUS]);

/// The features of this CPU.
pub(super) fn processor() -> Processor {
    let registers = |leaf, subleaf| {
        let result = if leaf == 0x4000_0000 {
            // Meaningful only if the hypervisor bit is set, which `Processor` looks at.
            core::arch::x86_64::__cpuid_count(leaf, subleaf)
        } else {
            cpuid::leaf(leaf, subleaf)
        };
        [result.eax, result.ebx, result.ecx, result.edx]
    };
    Processor::from_cpuid(registers, fpu::guest_xcr0())
}

/// Whether this CPU can run guests, and what it offers.
///
/// # Errors
/// Why not.
pub fn detect() -> Result<Features, Unsupported> {
    let processor = processor();
    if !processor.has_svm {
        return Err(Unsupported::NoExtension);
    }
    if let Some(control) = probe::read_msr(VM_CR)
        && control & (VM_CR_SVMDIS | VM_CR_LOCK) == VM_CR_SVMDIS | VM_CR_LOCK
    {
        return Err(Unsupported::LockedByFirmware);
    }
    if !processor.svm.contains(SvmFeatures::NP) {
        return Err(Unsupported::NoNestedPaging);
    }
    if processor.asids < 2 {
        return Err(Unsupported::MissingControl("ASID"));
    }
    Ok(Features {
        is_vmx: false,
        has_instruction_length: processor.has_next_rip(),
        has_nested_1g: processor.has_1g_pages,
        // Nested tables have the format of others, and their flags (APM 15.25.5).
        has_dirty_flags: true,
        has_rdtscp: processor.has_rdtscp,
        has_invpcid: processor.has_invpcid,
        has_xsaves: processor.has_xsaves && xsavec::works(),
        virtualizes_apic: false,
    })
}

/// Switches SVM on. `frame` is for the CPU to keep the host's state in while a guest runs.
///
/// # Errors
/// As [`detect`].
///
/// # Safety
/// Once per CPU, with interrupts off, after the FPU, TSC_AUX and the per-CPU block were set up. The frame belongs to
/// this CPU from here on.
pub unsafe fn enable_cpu(frame: PhysAddr) -> Result<(), Unsupported> {
    detect()?;
    let processor = processor();
    // SAFETY: VM_CR is only written where it could be read, and it is not locked, since `detect` would have failed.
    // EFER and VM_HSAVE_PA exist where CPUID announces SVM; the frame is exclusively the CPU's.
    unsafe {
        if let Some(control) = probe::read_msr(VM_CR)
            && control & VM_CR_SVMDIS != 0
        {
            msr::write(VM_CR, control & !VM_CR_SVMDIS);
        }
        msr::write(msr::EFER, msr::read(msr::EFER) | EFER_SVME);
        msr::write(VM_HSAVE_PA, frame.0);
    }
    if percpu::id() == 0 {
        // SAFETY: the boot CPU is alone, and no reference to the maps is alive.
        unsafe {
            (*MSR_MAP.0.get()).fill(!processor.quirks.shares_pat);
            (*IO_MAP.0.get()).fill();
        }
    }
    // SAFETY: only this CPU uses its pool, interrupts are off, and no reference to it is alive.
    unsafe { *this_cpu().asids.get() = Pool::new(processor.asids) };
    Ok(())
}

fn this_cpu() -> &'static PerCpu {
    &CPUS.0[percpu::id()]
}

/// The ASID for the next run on this CPU: see [`Pool::prepare`].
pub(super) fn prepare_asid(tag: &mut Tag, flush: bool, processor: &Processor) -> (u32, TlbControl) {
    let has_flush_by_asid = processor.svm.contains(SvmFeatures::FLUSH_BY_ASID);
    // SAFETY: only this CPU uses its pool, the kernel is not preempted, and the reference ends with this call.
    unsafe { (*this_cpu().asids.get()).prepare(tag, flush, has_flush_by_asid) }
}

/// After an entry that VMRUN refused: see [`Pool::refused`].
pub(super) fn give_up_asid(tag: &mut Tag) {
    // SAFETY: as in `prepare_asid`.
    unsafe { (*this_cpu().asids.get()).refused(tag) }
}

/// Physical addresses of the MSR and of the I/O permission map.
pub(super) fn permission_maps() -> (PhysAddr, PhysAddr) {
    (MSR_MAP.address(), IO_MAP.address())
}
