//! The SVM instructions that are not part of the world switch.

use core::arch::asm;
use kcore::addr::PhysAddr;

/// VMSAVE: stores FS, GS, LDTR, TR, KERNEL_GS_BASE and the system-call MSRs.
///
/// # Safety
/// `area` is a page-aligned frame of RAM that nothing else uses; EFER.SVME is set.
#[inline]
pub(super) unsafe fn vmsave(area: PhysAddr) {
    // SAFETY: the caller gives the frame; VMSAVE writes to it alone.
    unsafe { asm!("vmsave rax", in("rax") area.0, options(nostack, preserves_flags)) }
}

/// Writes CR2, which a guest's VMRUN loads everywhere but in Bochs.
pub(super) fn write_cr2(value: u64) {
    // SAFETY: CR2 takes any value, and nothing of the kernel's is in it outside the page-fault handler.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) }
}
