//! Reading an MSR that may not exist.
//!
//! SVM promises the MSR VM_CR, but not every machine has it (Bochs' models have not): there RDMSR is a #GP. At boot,
//! before the kernel has anything to catch it with, the read runs under a copy of the IDT whose #GP gate skips the
//! instruction.

use crate::cpu::tables::TableRegister;
use core::arch::{asm, naked_asm};

/// Vectors of exceptions: as many gates are copied, so that NMI and machine check keep theirs.
const GATES: usize = 32;
const GENERAL_PROTECTION: usize = 13;

/// A 64-bit gate (APM 4.8.4), as two quadwords.
type Gate = [u64; 2];

/// Handler of the #GP: continues behind the RDMSR, which has 2 bytes, with the carry flag set.
#[unsafe(naked)]
unsafe extern "C" fn skip_rdmsr() {
    naked_asm!(
        "add qword ptr [rsp + 8], 2", // RIP; the error code is below it.
        "or qword ptr [rsp + 24], 1", // RFLAGS.CF.
        "add rsp, 8",
        "iretq",
    )
}

/// An interrupt gate to `skip_rdmsr`, present, for this code segment, on the current stack.
fn gate() -> Gate {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00 << 32;
    let handler = skip_rdmsr as *const () as u64;
    let selector: u16;
    // SAFETY: reading CS has no effect.
    unsafe { asm!("mov {:x}, cs", out(reg) selector, options(nomem, nostack, preserves_flags)) }
    let low =
        handler & 0xffff | (selector as u64) << 16 | PRESENT_INTERRUPT_GATE | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// RDMSR; `None` if it is a #GP.
///
/// The kernel's IDT is loaded, as it is from the first instructions of its boot code on.
pub(super) fn read_msr(index: u32) -> Option<u64> {
    let original = TableRegister::idtr();
    // SAFETY: the kernel's IDT has a gate for each of the 256 vectors.
    let mut gates = unsafe { (original.base as *const [Gate; GATES]).read_volatile() };
    gates[GENERAL_PROTECTION] = gate();
    let probing = TableRegister { limit: size_of_val(&gates) as u16 - 1, base: (&raw const gates) as u64 };
    let (low, high): (u32, u32);
    let faulted: u8;
    // SAFETY: both tables have valid gates for every exception, interrupts are off while there are no gates for them,
    // and `gates` outlives its use. RDMSR either succeeds with CF as CLC left it, or the gate's handler sets CF. The
    // stack below RSP is used, so no `nostack`.
    unsafe {
        asm!(
            "pushfq",
            "cli",
            "lidt [{probing}]",
            "clc",
            "rdmsr",
            "setc {faulted}",
            "lidt [{original}]",
            "popfq",
            probing = in(reg) &raw const probing,
            original = in(reg) &raw const original,
            faulted = out(reg_byte) faulted,
            in("ecx") index,
            inout("eax") 0 => low,
            inout("edx") 0 => high,
        );
    }
    (faulted == 0).then_some((high as u64) << 32 | low as u64)
}
