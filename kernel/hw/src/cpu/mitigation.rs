//! Side channels: what [`kcore::mitigation`] decided, done.

use super::{cpuid, msr};
use crate::desc::KERNEL_DATA;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use kcore::mitigation::{Barriers, Facts, Plan, Vendor};

const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
const IA32_FLUSH_CMD: u32 = 0x10b;
const EFER_AUTO_IBRS: u64 = 1 << 21;

/// The plan, as the boot CPU chose it before others ran.
static SPEC_CTRL: AtomicU64 = AtomicU64::new(0);
static AUTO_IBRS: AtomicBool = AtomicBool::new(false);
static BARRIERS: AtomicU8 = AtomicU8::new(0);
static GUARDS_EXITS: AtomicBool = AtomicBool::new(false);

/// Decides what this machine needs. Once, on the boot CPU: the others are of the same kind.
pub fn choose(is_wanted: bool) -> Plan {
    let plan = if is_wanted { Plan::of(&facts()) } else { Plan::OFF };
    SPEC_CTRL.store(plan.spec_ctrl.unwrap_or(0), Ordering::Relaxed);
    AUTO_IBRS.store(plan.auto_ibrs, Ordering::Relaxed);
    BARRIERS.store(plan.barriers.bits(), Ordering::Relaxed);
    GUARDS_EXITS.store(plan.guards_exits, Ordering::Relaxed);
    plan
}

fn facts() -> Facts {
    let (leaf7, leaf21) = (cpuid::leaf(7, 0), cpuid::leaf(0x8000_0021, 0));
    let arch_capabilities = if Facts::has_arch_capabilities(leaf7.edx) {
        // SAFETY: CPUID announces the MSR.
        unsafe { msr::read(IA32_ARCH_CAPABILITIES) }
    } else {
        0
    };
    Facts {
        vendor: Vendor::of(cpuid::leaf(0, 0).ebx),
        ebx7: leaf7.ebx,
        edx7: leaf7.edx,
        edx7_2: if leaf7.eax >= 2 { cpuid::leaf(7, 2).edx } else { 0 },
        ebx8: cpuid::leaf(0x8000_0008, 0).ebx,
        eax21: leaf21.eax,
        ecx21: leaf21.ecx,
        arch_capabilities,
    }
}

/// Sets what stays as it is on this CPU. Guests are not offered IA32_SPEC_CTRL and run with the kernel's.
///
/// # Safety
/// Once per CPU, at boot, after [`choose`], when EFER is otherwise final.
pub unsafe fn init_cpu() {
    let spec_ctrl = SPEC_CTRL.load(Ordering::Relaxed);
    // SAFETY: the plan has a value only for MSRs and bits that CPUID announces.
    unsafe {
        if spec_ctrl != 0 {
            msr::write(IA32_SPEC_CTRL, spec_ctrl);
        }
        if AUTO_IBRS.load(Ordering::Relaxed) {
            msr::write(msr::EFER, msr::read(msr::EFER) | EFER_AUTO_IBRS);
        }
    }
}

/// Whether there is anything to clean between domains.
pub fn has_barriers() -> bool {
    BARRIERS.load(Ordering::Relaxed) != 0
}

/// Whether VM exits arrive at a landing that does not return by a guest's prediction.
pub(crate) fn guards_exits() -> bool {
    GUARDS_EXITS.load(Ordering::Relaxed)
}

/// Cleans what this CPU remembers of the domain that ran, before another one runs.
#[cold]
pub fn between_domains() {
    let barriers = Barriers::from_bits_truncate(BARRIERS.load(Ordering::Relaxed));
    // SAFETY: the plan has a barrier only where CPUID announces it. The commands and VERW change no register but flags and no memory;
    // the calls write below the stack pointer, where the kernel has no red zone, and are taken back.
    unsafe {
        if barriers.contains(Barriers::IBPB) {
            msr::write(IA32_PRED_CMD, 1);
            // IBPB does not reach the return predictor of every CPU: 32 returns that lead nowhere replace its contents.
            asm!(
                "2:",
                "call 3f",
                "int3",
                "3:",
                "call 4f",
                "int3",
                "4:",
                "add rsp, 16",
                "dec {count:e}",
                "jnz 2b",
                "lfence",
                count = inout(reg) 16 => _,
            );
        }
        if barriers.contains(Barriers::L1D) {
            msr::write(IA32_FLUSH_CMD, 1);
        }
        if barriers.contains(Barriers::VERW) {
            // Only the form with an operand in memory clears buffers.
            asm!("verw word ptr [{}]", in(reg) &KERNEL_DATA, options(readonly, nostack));
        }
    }
}
