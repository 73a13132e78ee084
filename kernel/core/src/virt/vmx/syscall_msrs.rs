//! The MSRs of SYSCALL and SWAPGS, and TSC_AUX: neither VM entry nor VM exit switches them.
//!
//! The guest reads them by itself. It writes KERNEL_GS_BASE by itself too, by SWAPGS if nothing else. Writes of the others, of
//! which a guest makes a few in its life, exit to the kernel, so that it knows the values without reading them back at
//! every exit.

use super::checks::is_canonical;

/// IA32_STAR.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_CSTAR.
pub const CSTAR: u32 = 0xc000_0083;
/// IA32_FMASK.
pub const SFMASK: u32 = 0xc000_0084;
/// IA32_KERNEL_GS_BASE.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX.
pub const TSC_AUX: u32 = 0xc000_0103;

/// Their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyscallMsrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX; 0 where the machine has none.
    pub tsc_aux: u64,
}

/// What a guest's WRMSR comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The MSR has the new value.
    Done,
    /// #GP(0).
    Refused,
    /// The MSR is none of these: the VMM handles it.
    Foreign,
}

impl SyscallMsrs {
    /// A guest's WRMSR that exited, with the checks that the CPU would make (SDM 4 table 2-2).
    pub fn write(&mut self, index: u32, value: u64, has_tsc_aux: bool) -> Write {
        let (msr, is_valid) = match index {
            STAR => (&mut self.star, true),
            LSTAR => (&mut self.lstar, is_canonical(value)),
            CSTAR => (&mut self.cstar, is_canonical(value)),
            SFMASK => (&mut self.sfmask, value >> 32 == 0),
            TSC_AUX if has_tsc_aux => (&mut self.tsc_aux, value >> 32 == 0),
            _ => return Write::Foreign,
        };
        if !is_valid {
            return Write::Refused;
        }
        *msr = value;
        Write::Done
    }

    /// Calls `write` for the MSRs that have to be written to go from the values of `current` to these around a run. CSTAR and
    /// TSC_AUX are none of them: the kernel depends on neither, and its user code has no 32-bit segment to make a SYSCALL from, so
    /// they stay a guest's until another one or another domain runs.
    #[inline]
    pub fn for_each_difference(&self, current: &SyscallMsrs, mut write: impl FnMut(u32, &u64)) {
        // The kernel's own are never a guest's: nobody knows where it is, nor has its segments.
        write(STAR, &self.star);
        write(LSTAR, &self.lstar);
        if self.sfmask != current.sfmask {
            write(SFMASK, &self.sfmask);
        }
        if self.kernel_gs_base != current.kernel_gs_base {
            write(KERNEL_GS_BASE, &self.kernel_gs_base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLE: u64 = 1 << 47;

    #[test]
    fn a_guest_sets_what_the_processor_would_take() {
        let mut msrs = SyscallMsrs::default();
        for (index, value) in [
            (STAR, u64::MAX),
            (LSTAR, 0xffff_8000_0000_1000),
            (CSTAR, 0x7fff_ffff_f000),
            (SFMASK, 0xffff_ffff),
            (TSC_AUX, 7),
        ] {
            assert_eq!(msrs.write(index, value, true), Write::Done, "{index:#x}");
        }
        let expected = SyscallMsrs {
            star: u64::MAX,
            lstar: 0xffff_8000_0000_1000,
            cstar: 0x7fff_ffff_f000,
            sfmask: 0xffff_ffff,
            kernel_gs_base: 0,
            tsc_aux: 7,
        };
        assert_eq!(msrs, expected);
    }

    #[test]
    fn a_refused_value_changes_nothing() {
        let mut msrs = SyscallMsrs::default();
        for (index, value) in [(LSTAR, HOLE), (CSTAR, HOLE), (SFMASK, 1 << 32), (TSC_AUX, 1 << 32)] {
            assert_eq!(msrs.write(index, value, true), Write::Refused, "{index:#x}");
        }
        assert_eq!(msrs, SyscallMsrs::default());
    }

    #[test]
    fn other_msrs_are_the_vmms() {
        let mut msrs = SyscallMsrs::default();
        assert_eq!(msrs.write(0x10, 1, true), Write::Foreign);
        assert_eq!(msrs.write(TSC_AUX, 1, false), Write::Foreign);
    }

    #[test]
    fn only_what_user_code_depends_on_and_what_differs_is_written() {
        let host = SyscallMsrs { lstar: 1, ..SyscallMsrs::default() };
        let guest = SyscallMsrs { kernel_gs_base: 5, cstar: 6, tsc_aux: 7, ..host };
        let written = |new: &SyscallMsrs, current| {
            let mut written = std::vec::Vec::new();
            new.for_each_difference(current, |index, &value| written.push((index, value)));
            written
        };
        let always = [(STAR, 0), (LSTAR, 1)];
        assert_eq!(written(&host, &host), always);
        assert_eq!(written(&guest, &host), [&always[..], &[(KERNEL_GS_BASE, 5)]].concat());
        assert_eq!(written(&host, &guest), [&always[..], &[(KERNEL_GS_BASE, 0)]].concat());
    }
}
