//! Registers that VM entry and exit do not switch: the MSRs of SYSCALL and SWAPGS, CR2, and the debug registers but DR7.

use crate::cpu::msr;
use core::arch::asm;

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
register!(read_dr0, write_dr0, "dr0");
register!(read_dr1, write_dr1, "dr1");
register!(read_dr2, write_dr2, "dr2");
register!(read_dr3, write_dr3, "dr3");
register!(read_dr6, write_dr6, "dr6");

/// STAR to TSC_AUX.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SyscallMsrs {
    /// IA32_STAR.
    pub(super) star: u64,
    /// IA32_LSTAR.
    pub(super) lstar: u64,
    /// IA32_CSTAR.
    pub(super) cstar: u64,
    /// IA32_FMASK.
    pub(super) sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub(super) kernel_gs_base: u64,
    /// IA32_TSC_AUX; 0 where the machine has none.
    pub(super) tsc_aux: u64,
}

impl SyscallMsrs {
    /// The values in this CPU.
    pub(super) fn read(has_tsc_aux: bool) -> Self {
        // SAFETY: every CPU with long mode has these MSRs, TSC_AUX apart.
        unsafe {
            SyscallMsrs {
                star: msr::read(msr::STAR),
                lstar: msr::read(msr::LSTAR),
                cstar: msr::read(msr::CSTAR),
                sfmask: msr::read(msr::SFMASK),
                kernel_gs_base: msr::read(msr::KERNEL_GS_BASE),
                tsc_aux: if has_tsc_aux { msr::read(msr::TSC_AUX) } else { 0 },
            }
        }
    }

    /// Puts these values into this CPU, which has `current` ones: MSRs that do not change are left alone.
    ///
    /// # Safety
    /// The values are such that WRMSR takes them. No SYSCALL and no SWAPGS happens before the kernel's own are back.
    pub(super) unsafe fn switch_from(&self, current: &SyscallMsrs) {
        for (index, new, old) in [
            (msr::STAR, self.star, current.star),
            (msr::LSTAR, self.lstar, current.lstar),
            (msr::CSTAR, self.cstar, current.cstar),
            (msr::SFMASK, self.sfmask, current.sfmask),
            (msr::KERNEL_GS_BASE, self.kernel_gs_base, current.kernel_gs_base),
            (msr::TSC_AUX, self.tsc_aux, current.tsc_aux),
        ] {
            if new != old {
                // SAFETY: the caller promises valid values; where there is no TSC_AUX, both of its are 0.
                unsafe { msr::write(index, new) };
            }
        }
    }
}

/// DR0 to DR3, and DR6.
#[derive(Clone, Copy, Debug)]
pub(super) struct DebugRegisters {
    /// DR0 to DR3.
    pub(super) dr: [u64; 4],
    /// DR6.
    pub(super) dr6: u64,
}

impl DebugRegisters {
    /// As after reset, and as the kernel has them: DR7 enables no breakpoint in the kernel.
    pub(super) const RESET: DebugRegisters = DebugRegisters {
        dr: [0; 4],
        dr6: 0xffff_0ff0,
    };

    /// The values in this CPU.
    pub(super) fn read() -> Self {
        DebugRegisters {
            dr: [read_dr0(), read_dr1(), read_dr2(), read_dr3()],
            dr6: read_dr6(),
        }
    }

    /// Puts these values into this CPU, which has `current` ones.
    ///
    /// # Safety
    /// The upper half of DR6 is zero, and DR7 enables no breakpoint.
    pub(super) unsafe fn switch_from(&self, current: &DebugRegisters) {
        // Nearly always equal: five comparisons, where `==` on the arrays would call memcmp.
        let differences = self
            .dr
            .iter()
            .zip(&current.dr)
            .fold(self.dr6 ^ current.dr6, |all, (a, b)| all | a ^ b);
        if differences == 0 {
            return;
        }
        // SAFETY: DR0 to DR3 take every value, and DR6 this one; nothing breaks on them while DR7 is off.
        unsafe {
            write_dr0(self.dr[0]);
            write_dr1(self.dr[1]);
            write_dr2(self.dr[2]);
            write_dr3(self.dr[3]);
            write_dr6(self.dr6);
        }
    }
}
