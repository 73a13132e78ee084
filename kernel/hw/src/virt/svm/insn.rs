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
