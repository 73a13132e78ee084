//! Registers that VM entry and exit do not switch: the MSRs of SYSCALL and SWAPGS, CR2, and DR6.

use crate::cpu::msr;
use core::arch::asm;
use kcore::virt::vmx::syscall_msrs::SyscallMsrs;

macro_rules! register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ".")]
        #[inline]
        pub(super) fn $read() -> u64 {
            let value;
            // SAFETY: reading the register has no effect.
            unsafe {
                asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The value does not fault, and the kernel does not depend on the old one.
        #[inline]
        pub(super) unsafe fn $write(value: u64) {
            // SAFETY: by the contract of this function.
            unsafe {
                asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
            }
        }
    };
}

register!(read_cr0, write_cr0, "cr0");
register!(read_cr2, write_cr2, "cr2");
register!(read_cr4, write_cr4, "cr4");
register!(read_dr6, write_dr6, "dr6");

/// DR6 after reset.
pub(super) const DR6_RESET: u64 = 0xffff_0ff0;

/// The kernel's own values. KERNEL_GS_BASE is the GS base of user code, which has none.
pub(super) fn host_syscall_msrs() -> SyscallMsrs {
    // SAFETY: every CPU with long mode has these MSRs.
    unsafe {
        SyscallMsrs {
            star: msr::read(msr::STAR),
            lstar: msr::read(msr::LSTAR),
            sfmask: msr::read(msr::SFMASK),
            ..SyscallMsrs::default()
        }
    }
}

/// Puts `new` values into this CPU, which has `current` ones.
///
/// # Safety
/// The values are such that WRMSR takes them. No SYSCALL and no SWAPGS happens before the kernel's own are back.
#[inline]
pub(super) unsafe fn switch_syscall_msrs(current: &SyscallMsrs, new: &SyscallMsrs) {
    new.for_each_difference(current, |index, value| {
        // SAFETY: the caller promises valid values.
        unsafe { msr::write_from(index, value) };
    });
}
