//! Which controls the kernel uses, by the capability MSRs (SDM 3C 31.5.1, 3D appendix A).

use super::control_registers::FixedBits;

/// Pin-based VM-execution controls (SDM 3C table 24-5).
pub mod pin {
    /// External-interrupt exiting.
    pub const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    /// NMI exiting.
    pub const NMI_EXITING: u32 = 1 << 3;
    /// Virtual NMIs.
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    /// Activate VMX-preemption timer.
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
}

/// Primary processor-based VM-execution controls (SDM 3C table 24-6).
pub mod primary {
    /// Interrupt-window exiting.
    pub const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    /// Use TSC offsetting.
    pub const TSC_OFFSETTING: u32 = 1 << 3;
    /// HLT exiting.
    pub const HLT_EXITING: u32 = 1 << 7;
    /// INVLPG exiting.
    pub const INVLPG_EXITING: u32 = 1 << 9;
    /// MWAIT exiting.
    pub const MWAIT_EXITING: u32 = 1 << 10;
    /// RDPMC exiting.
    pub const RDPMC_EXITING: u32 = 1 << 11;
    /// RDTSC exiting.
    pub const RDTSC_EXITING: u32 = 1 << 12;
    /// CR3-load exiting.
    pub const CR3_LOAD_EXITING: u32 = 1 << 15;
    /// CR3-store exiting.
    pub const CR3_STORE_EXITING: u32 = 1 << 16;
    /// CR8-load exiting.
    pub const CR8_LOAD_EXITING: u32 = 1 << 19;
    /// CR8-store exiting.
    pub const CR8_STORE_EXITING: u32 = 1 << 20;
    /// Use TPR shadow.
    pub const TPR_SHADOW: u32 = 1 << 21;
    /// NMI-window exiting.
    pub const NMI_WINDOW_EXITING: u32 = 1 << 22;
    /// MOV-DR exiting.
    pub const MOV_DR_EXITING: u32 = 1 << 23;
    /// Unconditional I/O exiting.
    pub const UNCONDITIONAL_IO_EXITING: u32 = 1 << 24;
    /// Use MSR bitmaps.
    pub const MSR_BITMAPS: u32 = 1 << 28;
    /// MONITOR exiting.
    pub const MONITOR_EXITING: u32 = 1 << 29;
    /// PAUSE exiting.
    pub const PAUSE_EXITING: u32 = 1 << 30;
    /// Activate secondary controls.
    pub const SECONDARY_CONTROLS: u32 = 1 << 31;
}

/// Secondary processor-based VM-execution controls (SDM 3C table 24-7).
pub mod secondary {
    /// Enable EPT.
    pub const EPT: u32 = 1 << 1;
    /// Enable RDTSCP.
    pub const RDTSCP: u32 = 1 << 3;
    /// Virtualize x2APIC mode.
    pub const X2APIC_MODE: u32 = 1 << 4;
    /// Enable VPID.
    pub const VPID: u32 = 1 << 5;
    /// WBINVD exiting.
    pub const WBINVD_EXITING: u32 = 1 << 6;
    /// Unrestricted guest.
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    /// Virtual-interrupt delivery.
    pub const INTERRUPT_DELIVERY: u32 = 1 << 9;
    /// Enable INVPCID.
    pub const INVPCID: u32 = 1 << 12;
    /// Enable ENCLS exiting.
    pub const ENCLS_EXITING: u32 = 1 << 15;
    /// Enable XSAVES/XRSTORS.
    pub const XSAVES: u32 = 1 << 20;
}

/// VM-exit controls (SDM 3C table 24-13).
pub mod exit {
    /// Save debug controls.
    pub const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    /// Host address-space size.
    pub const HOST_64_BIT: u32 = 1 << 9;
    /// Acknowledge interrupt on exit.
    pub const ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
    /// Save IA32_PAT.
    pub const SAVE_PAT: u32 = 1 << 18;
    /// Load IA32_PAT.
    pub const LOAD_PAT: u32 = 1 << 19;
    /// Save IA32_EFER.
    pub const SAVE_EFER: u32 = 1 << 20;
    /// Load IA32_EFER.
    pub const LOAD_EFER: u32 = 1 << 21;
}

/// VM-entry controls (SDM 3C table 24-15).
pub mod entry {
    /// Load debug controls.
    pub const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    /// IA-32e mode guest.
    pub const IA32E_MODE_GUEST: u32 = 1 << 9;
    /// Load IA32_PAT.
    pub const LOAD_PAT: u32 = 1 << 14;
    /// Load IA32_EFER.
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// What the machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// EPT with 4 levels, write-back tables, 2 MiB pages and INVEPT.
    Ept,
    /// Unrestricted guest.
    UnrestrictedGuest,
    /// A control, by its name in the manual.
    Control(&'static str),
}

/// A control: its bit, and its name in the manual.
type Named = (u32, &'static str);

/// Allowed settings of a 32-bit word of controls: the low half has the bits that must be 1, the high half those that
/// may be 1 (SDM 3D A.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed(pub u64);

impl Allowed {
    pub(super) const fn must_be_one(self) -> u32 {
        self.0 as u32
    }

    pub(super) const fn may_be_one(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The word with `required`, and those of `optional` that exist. Controls in `switched` start as 0 and must be free
    /// to be either. Bits that must be 1 and that nobody names are reserved ones with a default of 1 (SDM 3C 31.5.1).
    fn choose(self, required: &[Named], optional: u32, switched: &[Named]) -> Result<u32, Missing> {
        let mut word = self.must_be_one() | (optional & self.may_be_one());
        for &(bit, name) in required {
            if self.may_be_one() & bit == 0 {
                return Err(Missing::Control(name));
            }
            word |= bit;
        }
        for &(bit, name) in switched {
            if self.may_be_one() & bit == 0 || self.must_be_one() & bit != 0 {
                return Err(Missing::Control(name));
            }
        }
        Ok(word)
    }

    /// Whether all of these may be 0 and may be 1.
    const fn is_free(self, bits: u32) -> bool {
        self.may_be_one() & bits == bits && self.must_be_one() & bits == 0
    }

    /// Fails if one of `refused` must be 1.
    fn refuse(self, refused: &[Named]) -> Result<(), Missing> {
        match refused.iter().find(|(bit, _)| self.must_be_one() & bit != 0) {
            Some(&(_, name)) => Err(Missing::Control(name)),
            None => Ok(()),
        }
    }
}

const PIN_REQUIRED: &[Named] = &[
    (pin::EXTERNAL_INTERRUPT_EXITING, "external-interrupt exiting"),
    (pin::NMI_EXITING, "NMI exiting"),
    (pin::VIRTUAL_NMIS, "virtual NMIs"),
    (pin::PREEMPTION_TIMER, "activate VMX-preemption timer"),
];

const PRIMARY_REQUIRED: &[Named] = &[
    (primary::TSC_OFFSETTING, "use TSC offsetting"),
    (primary::HLT_EXITING, "HLT exiting"),
    (primary::MWAIT_EXITING, "MWAIT exiting"),
    (primary::RDPMC_EXITING, "RDPMC exiting"),
    (primary::CR8_LOAD_EXITING, "CR8-load exiting"),
    (primary::CR8_STORE_EXITING, "CR8-store exiting"),
    (primary::UNCONDITIONAL_IO_EXITING, "unconditional I/O exiting"),
    (primary::MSR_BITMAPS, "use MSR bitmaps"),
    (primary::MONITOR_EXITING, "MONITOR exiting"),
    (primary::SECONDARY_CONTROLS, "activate secondary controls"),
];

/// Switched at run time, as the VMM asks.
const PRIMARY_SWITCHED: &[Named] = &[
    (primary::INTERRUPT_WINDOW_EXITING, "interrupt-window exiting"),
    (primary::INVLPG_EXITING, "INVLPG exiting"),
    (primary::RDTSC_EXITING, "RDTSC exiting"),
    (primary::CR3_LOAD_EXITING, "CR3-load exiting"),
    (primary::NMI_WINDOW_EXITING, "NMI-window exiting"),
    (primary::MOV_DR_EXITING, "MOV-DR exiting"),
    (primary::PAUSE_EXITING, "PAUSE exiting"),
];

const PRIMARY_REFUSED: &[Named] = &[(primary::CR3_STORE_EXITING, "CR3-store exiting off")];

const SECONDARY_REQUIRED: &[Named] = &[(secondary::WBINVD_EXITING, "WBINVD exiting")];

/// Without ENCLS exiting a guest could reach enclave memory through leaves that its VMM cannot filter.
const SECONDARY_OPTIONAL: u32 =
    secondary::RDTSCP | secondary::VPID | secondary::INVPCID | secondary::ENCLS_EXITING | secondary::XSAVES;

/// The secondary controls with which WRMSR of TPR, EOI and SELF IPI acts on the virtual-APIC page, and interrupts are delivered from
/// it (SDM 3C 29.1.2, 29.2). "APIC-register virtualization" is not among them: what else there is to read is the VMM's.
pub const APIC_VIRTUALIZATION: u32 = secondary::X2APIC_MODE | secondary::INTERRUPT_DELIVERY;

const EXIT_REQUIRED: &[Named] = &[
    (exit::SAVE_DEBUG_CONTROLS, "save debug controls"),
    (exit::HOST_64_BIT, "host address-space size"),
    (exit::SAVE_PAT, "save IA32_PAT"),
    (exit::LOAD_PAT, "load IA32_PAT on exit"),
    (exit::SAVE_EFER, "save IA32_EFER"),
    (exit::LOAD_EFER, "load IA32_EFER on exit"),
];

/// Interrupts stay pending over the exit: the host takes them through its IDT.
const EXIT_REFUSED: &[Named] = &[(exit::ACKNOWLEDGE_INTERRUPT, "acknowledge interrupt on exit off")];

const ENTRY_REQUIRED: &[Named] = &[
    (entry::LOAD_DEBUG_CONTROLS, "load debug controls"),
    (entry::LOAD_PAT, "load IA32_PAT on entry"),
    (entry::LOAD_EFER, "load IA32_EFER on entry"),
];

/// Follows the guest's EFER.LMA.
const ENTRY_SWITCHED: &[Named] = &[(entry::IA32E_MODE_GUEST, "IA-32e mode guest")];

/// The capability MSRs that the kernel looks at.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    pub(super) basic: u64,
    pub(super) misc: u64,
    pub(super) pin: Allowed,
    pub(super) primary: Allowed,
    pub(super) secondary: Allowed,
    pub(super) exit: Allowed,
    pub(super) entry: Allowed,
    pub(super) ept_vpid: u64,
    /// What VMX wants of CR0 and CR4.
    pub fixed: FixedBits,
}

/// IA32_VMX_BASIC and the numbers of the others relative to it.
const VMX_BASIC: u32 = 0x480;

impl Capabilities {
    /// Reads the MSRs with `read`, which is asked only for those that exist once CPUID announces VMX.
    pub fn read(mut read: impl FnMut(u32) -> u64) -> Self {
        let basic = read(VMX_BASIC);
        // The "true" MSRs tell which of the controls with a default of 1 may be 0 (SDM 3D A.2).
        let [pin, primary, exit, entry] =
            if basic >> 55 & 1 != 0 { [0x48d, 0x48e, 0x48f, 0x490] } else { [0x481, 0x482, 0x483, 0x484] };
        let primary = Allowed(read(primary));
        let has_secondary = primary.may_be_one() & primary::SECONDARY_CONTROLS != 0;
        let secondary = Allowed(if has_secondary { read(0x48b) } else { 0 });
        let has_ept_vpid = secondary.may_be_one() & (secondary::EPT | secondary::VPID) != 0;
        Capabilities {
            basic,
            misc: read(0x485),
            pin: Allowed(read(pin)),
            primary,
            secondary,
            exit: Allowed(read(exit)),
            entry: Allowed(read(entry)),
            ept_vpid: if has_ept_vpid { read(0x48c) } else { 0 },
            fixed: FixedBits {
                cr0_fixed0: read(0x486),
                cr0_fixed1: read(0x487),
                cr4_fixed0: read(0x488),
                cr4_fixed1: read(0x489),
            },
        }
    }

    /// VMCS revision identifier, for VMXON regions and VMCSs (SDM 3D A.1).
    pub const fn revision(&self) -> u32 {
        self.basic as u32 & 0x7fff_ffff
    }

    /// Chooses the controls.
    ///
    /// # Errors
    /// What a machine lacks that the kernel cannot do without.
    pub fn choose(&self) -> Result<Controls, Missing> {
        const PAGE_BYTES: u64 = 4096;
        const WRITE_BACK: u64 = 6;
        if self.basic >> 32 & 0x1fff > PAGE_BYTES || self.basic >> 50 & 15 != WRITE_BACK {
            return Err(Missing::Control("VMCS in a write-back page"));
        }
        self.primary.refuse(PRIMARY_REFUSED)?;
        self.exit.refuse(EXIT_REFUSED)?;
        let ept = EptVpid(self.ept_vpid);
        if self.secondary.may_be_one() & secondary::EPT == 0 || !ept.has_what_the_kernel_needs() {
            return Err(Missing::Ept);
        }
        if self.secondary.may_be_one() & secondary::UNRESTRICTED_GUEST == 0 {
            return Err(Missing::UnrestrictedGuest);
        }
        let mut optional = SECONDARY_OPTIONAL | secondary::EPT | secondary::UNRESTRICTED_GUEST;
        if !ept.has_single_context_invvpid() {
            optional &= !secondary::VPID;
        }
        Ok(Controls {
            pin: self.pin.choose(PIN_REQUIRED, 0, &[])?,
            primary: self.primary.choose(PRIMARY_REQUIRED, 0, PRIMARY_SWITCHED)?,
            secondary: self.secondary.choose(SECONDARY_REQUIRED, optional, &[])?,
            exit: self.exit.choose(EXIT_REQUIRED, 0, &[])?,
            entry: self.entry.choose(ENTRY_REQUIRED, 0, ENTRY_SWITCHED)?,
            timer_shift: self.misc as u8 & 31,
            has_string_io_info: self.basic >> 54 & 1 != 0,
            can_inject_length_0: self.misc >> 30 & 1 != 0,
            has_nested_1g: ept.has_1g(),
            has_single_context_invept: ept.has_single_context_invept(),
            has_dirty_flags: ept.has(EptVpid::DIRTY_FLAGS),
            virtualizes_apic: self.primary.is_free(primary::TPR_SHADOW)
                && self.secondary.is_free(APIC_VIRTUALIZATION),
        })
    }
}

/// IA32_VMX_EPT_VPID_CAP (SDM 3D A.10).
#[derive(Clone, Copy)]
struct EptVpid(u64);

impl EptVpid {
    const WALK_4: u64 = 1 << 6;
    const WRITE_BACK: u64 = 1 << 14;
    const PAGE_2M: u64 = 1 << 16;
    const PAGE_1G: u64 = 1 << 17;
    const INVEPT: u64 = 1 << 20;
    const DIRTY_FLAGS: u64 = 1 << 21;
    const INVEPT_SINGLE: u64 = 1 << 25;
    const INVEPT_ALL: u64 = 1 << 26;
    const INVVPID: u64 = 1 << 32;
    const INVVPID_SINGLE: u64 = 1 << 41;

    const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    const fn has_what_the_kernel_needs(self) -> bool {
        self.has(Self::WALK_4 | Self::WRITE_BACK | Self::PAGE_2M | Self::INVEPT | Self::INVEPT_ALL)
    }

    const fn has_1g(self) -> bool {
        self.has(Self::PAGE_1G)
    }

    const fn has_single_context_invept(self) -> bool {
        self.has(Self::INVEPT_SINGLE)
    }

    const fn has_single_context_invvpid(self) -> bool {
        self.has(Self::INVVPID | Self::INVVPID_SINGLE)
    }
}

/// The controls that every vCPU starts with, and what else the backend must know of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// Pin-based controls.
    pub pin: u32,
    /// Primary controls; those that the VMM may ask for are 0.
    pub primary: u32,
    /// Secondary controls.
    pub secondary: u32,
    /// VM-exit controls.
    pub exit: u32,
    /// VM-entry controls without "IA-32e mode guest".
    pub entry: u32,
    /// The preemption timer counts once in 2 to the power of this many TSC ticks.
    pub timer_shift: u8,
    /// Exits of INS and OUTS have instruction information.
    pub has_string_io_info: bool,
    /// Software events may be injected with an instruction length of 0.
    pub can_inject_length_0: bool,
    /// EPT has 1 GiB pages.
    pub has_nested_1g: bool,
    /// INVEPT for one EPT pointer.
    pub has_single_context_invept: bool,
    /// EPT has accessed and dirty flags.
    pub has_dirty_flags: bool,
    /// The controls of [`APIC_VIRTUALIZATION`] and the TPR shadow can be switched.
    pub virtualizes_apic: bool,
}

impl Controls {
    /// Whether all of these secondary controls are on.
    pub const fn has_secondary(&self, controls: u32) -> bool {
        self.secondary & controls == controls
    }

    /// Preemption-timer value for this many TSC ticks: the exit is not early by rounding, but up to one unit late.
    #[inline]
    pub fn timer_value(&self, ticks: u64) -> u32 {
        const LAST: u64 = u32::MAX as u64 - 1;
        (ticks >> self.timer_shift).min(LAST) as u32 + 1
    }
}

/// EPT pointer of a 4-level table with write-back walks, maybe with accessed and dirty flags (SDM 3C 24.6.11).
pub const fn ept_pointer(root: crate::addr::PhysAddr, has_dirty_flags: bool) -> u64 {
    const WRITE_BACK: u64 = 6;
    const LEVELS: u64 = 4;
    root.0 | (has_dirty_flags as u64) << 6 | (LEVELS - 1) << 3 | WRITE_BACK
}

#[cfg(test)]
pub(super) mod tests;
