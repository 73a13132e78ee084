//! The SVM instructions that are not part of the world switch, and debug registers.

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

/// Reads DR0 to DR3.
#[inline]
pub(super) fn read_breakpoints() -> [u64; 4] {
    let mut dr = [0; 4];
    // SAFETY: reading debug registers has no effect while DR7.GD is clear, which the kernel never sets.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) dr[0], out(reg) dr[1], out(reg) dr[2],
            out(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
    dr
}

/// Writes DR0 to DR3.
#[inline]
pub(super) fn write_breakpoints(dr: [u64; 4]) {
    // SAFETY: breakpoint addresses have no effect while DR7 enables none of them; in the kernel it never does, and
    // #VMEXIT resets it (APM 15.6).
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) dr[0], in(reg) dr[1], in(reg) dr[2],
            in(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
}
