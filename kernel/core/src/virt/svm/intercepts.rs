//! Which guest actions exit (APM 15.9, table B-1).

use super::vmcb::Control;
use hypercall_abi::vcpu::Intercepts;

bitflags::bitflags! {
    /// Intercept word 3 (offset 00CH).
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Word3: u32 {
        /// Physical interrupts.
        const INTR = 1 << 0;
        /// Physical NMIs.
        const NMI = 1 << 1;
        /// INIT signals.
        const INIT = 1 << 3;
        /// Virtual interrupts, about to be taken.
        const VINTR = 1 << 4;
        /// RDTSC.
        const RDTSC = 1 << 14;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// IRET.
        const IRET = 1 << 20;
        /// INVD.
        const INVD = 1 << 22;
        /// PAUSE.
        const PAUSE = 1 << 23;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPG.
        const INVLPG = 1 << 25;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Ports, by the I/O permission map.
        const IOIO_PROT = 1 << 27;
        /// MSRs, by the MSR permission map.
        const MSR_PROT = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// Shutdown, such as a triple fault.
        const SHUTDOWN = 1 << 31;
    }
}

bitflags::bitflags! {
    /// Intercept word 4 (offset 010H).
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Word4: u32 {
        /// VMRUN: VMRUN itself demands it.
        const VMRUN = 1 << 0;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// RDTSCP.
        const RDTSCP = 1 << 7;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 9;
        /// MONITOR and MONITORX.
        const MONITOR = 1 << 10;
        /// MWAIT and MWAITX.
        const MWAIT = 1 << 11;
        /// MWAIT with an armed monitor.
        const MWAIT_ARMED = 1 << 12;
        /// XSETBV.
        const XSETBV = 1 << 13;
        /// RDPRU.
        const RDPRU = 1 << 14;
    }
}

/// #DB.
pub const DEBUG_EXCEPTION: u8 = 1;
/// #AC.
pub const ALIGNMENT_CHECK: u8 = 17;
/// #MC.
pub const MACHINE_CHECK: u8 = 18;

/// Exceptions that exit in any case. A machine check is the host's. A guest can arrange that delivering a #DB or #AC
/// raises the next one without an instruction in between, and then no interrupt ends the loop
/// (CVE-2015-5307, CVE-2015-8104): the kernel takes these two and injects them again.
pub const FORCED_EXCEPTIONS: u32 = 1 << DEBUG_EXCEPTION | 1 << ALIGNMENT_CHECK | 1 << MACHINE_CHECK;

/// Vector 2 is no exception: NMIs have an intercept of their own.
const NO_EXCEPTION: u32 = 1 << 2;

const CR0: u16 = 1 << 0;
const CR3: u16 = 1 << 3;
const CR4: u16 = 1 << 4;
/// CR8 is V_TPR, which belongs to the VMM's local APIC. QEMU also aborts when a guest writes CR8 while V_IRQ is set.
const CR8: u16 = 1 << 8;

/// What a guest's next run intercepts, beyond what isolation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What the VMM asked for.
    pub optional: Intercepts,
    /// Exceptions that the VMM asked for.
    pub exceptions: u32,
    /// Reads and writes of CR0: the guest's view differs from the register ([`super::checks::HIDDEN_CR0`]), or that of
    /// EFER, which a write of CR0 has to see.
    pub cr0: bool,
    /// Reads of CR4: the guest's view differs from the register ([`super::checks::CR4_MCE`]).
    pub cr4_reads: bool,
    /// Debug registers: the CPU does not hold the guest's.
    pub debug_registers: bool,
    /// Virtual interrupts: V_IRQ is there to open a window.
    pub window: bool,
    /// IRET: the end of an NMI handler.
    pub iret: bool,
}

impl Choice {
    /// Writes the intercepts into the control area.
    pub fn apply(&self, control: &mut Control) {
        let mut word3 =
            Word3::all() - Word3::VINTR - Word3::RDTSC - Word3::IRET - Word3::PAUSE - Word3::INVLPG;
        let mut word4 = Word4::all() - Word4::RDTSCP;
        word3.set(Word3::VINTR, self.window);
        word3.set(Word3::IRET, self.iret);
        word3.set(Word3::PAUSE, self.optional.contains(Intercepts::PAUSE));
        word3.set(Word3::RDTSC, self.optional.contains(Intercepts::RDTSC));
        word4.set(Word4::RDTSCP, self.optional.contains(Intercepts::RDTSC));
        word3.set(Word3::INVLPG, self.optional.contains(Intercepts::PAGING));

        control.intercept_cr_reads = CR8;
        // A guest may have neither MCE clear nor what the kernel does not switch.
        control.intercept_cr_writes = CR8 | CR4;
        if self.cr0 {
            control.intercept_cr_reads |= CR0;
            control.intercept_cr_writes |= CR0;
        }
        if self.optional.contains(Intercepts::PAGING) {
            control.intercept_cr_writes |= CR3;
        }
        if self.cr4_reads {
            control.intercept_cr_reads |= CR4;
        }
        let debug_registers = self.debug_registers || self.optional.contains(Intercepts::DEBUG_REGISTERS);
        let debug_registers = if debug_registers { 0xffff } else { 0 };
        (control.intercept_dr_reads, control.intercept_dr_writes) = (debug_registers, debug_registers);
        control.intercept_exceptions = self.exceptions & !NO_EXCEPTION | FORCED_EXCEPTIONS;
        control.intercepts = [word3.bits(), word4.bits(), 0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Choice = Choice {
        optional: Intercepts::empty(),
        exceptions: 0,
        cr0: false,
        cr4_reads: false,
        debug_registers: false,
        window: false,
        iret: false,
    };

    fn applied(choice: Choice) -> Control {
        let mut control = Control::default();
        choice.apply(&mut control);
        control
    }

    #[test]
    fn a_vmm_that_asks_for_nothing_still_gets_isolation() {
        let control = applied(NOTHING);
        // INTR NMI INIT RDPMC CPUID INVD HLT INVLPGA IOIO MSR TASK_SWITCH SHUTDOWN.
        assert_eq!(control.intercepts[0], 0xbd44_800b);
        // All but RDTSCP and ICEBP.
        assert_eq!(control.intercepts[1], 0x7e7f);
        assert_eq!((control.intercept_cr_reads, control.intercept_cr_writes), (0x100, 0x110));
        assert_eq!((control.intercept_dr_reads, control.intercept_dr_writes), (0, 0));
        assert_eq!(control.intercept_exceptions, 1 << 1 | 1 << 17 | 1 << 18);
    }

    #[test]
    fn optional_intercepts_add_exactly_what_they_name() {
        let base = applied(NOTHING);
        let with = |optional| applied(Choice { optional, ..NOTHING });
        assert_eq!(with(Intercepts::PAUSE).intercepts[0] ^ base.intercepts[0], 1 << 23);
        let rdtsc = with(Intercepts::RDTSC);
        assert_eq!(rdtsc.intercepts[0] ^ base.intercepts[0], 1 << 14);
        assert_eq!(rdtsc.intercepts[1] ^ base.intercepts[1], 1 << 7);
        let paging = with(Intercepts::PAGING);
        assert_eq!(paging.intercepts[0] ^ base.intercepts[0], 1 << 25);
        assert_eq!(paging.intercept_cr_writes, 0x118);
        let debug = with(Intercepts::DEBUG_REGISTERS);
        assert_eq!((debug.intercept_dr_reads, debug.intercept_dr_writes), (0xffff, 0xffff));
    }

    #[test]
    fn an_nmi_is_never_taken_for_an_exception() {
        assert_eq!(applied(Choice { exceptions: u32::MAX, ..NOTHING }).intercept_exceptions, !(1 << 2));
    }

    #[test]
    fn a_hidden_cr0_exits_on_reads_and_writes() {
        let control = applied(Choice { cr0: true, ..NOTHING });
        assert_eq!((control.intercept_cr_reads, control.intercept_cr_writes), (0x101, 0x111));
    }

    #[test]
    fn a_cr4_that_the_guest_does_not_see_exits_on_reads() {
        let control = applied(Choice { cr4_reads: true, ..NOTHING });
        assert_eq!((control.intercept_cr_reads, control.intercept_cr_writes), (0x110, 0x110));
    }
}
