//! VM exits: what each one needs to have read, and what it is for the rest of the kernel (SDM 3C 27.2, 3D appendix C).

use hypercall_abi::exit::{ControlAccess, ControlOperation, ExitKind, NestedFault, PortIo};
use hypercall_abi::vcpu::{Event, Groups};

/// Bit 31 of the exit reason: the entry failed.
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// A basic exit reason, by the names of SDM 3D table C-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u16);

macro_rules! reasons {
    ($($name:ident = $value:literal, $doc:literal;)*) => {
        impl Reason {
            $(#[doc = $doc] pub const $name: Reason = Reason($value);)*
        }
    };
}

reasons! {
    EXCEPTION_OR_NMI = 0, "Exception or non-maskable interrupt.";
    EXTERNAL_INTERRUPT = 1, "External interrupt.";
    TRIPLE_FAULT = 2, "Triple fault.";
    INIT = 3, "INIT signal.";
    SIPI = 4, "Start-up IPI.";
    INTERRUPT_WINDOW = 7, "Interrupt window.";
    NMI_WINDOW = 8, "NMI window.";
    TASK_SWITCH = 9, "Task switch.";
    CPUID = 10, "CPUID.";
    GETSEC = 11, "GETSEC.";
    HLT = 12, "HLT.";
    INVD = 13, "INVD.";
    INVLPG = 14, "INVLPG.";
    RDPMC = 15, "RDPMC.";
    RDTSC = 16, "RDTSC.";
    VMCALL = 18, "VMCALL.";
    VMCLEAR = 19, "VMCLEAR: the first of the VMX instructions.";
    VMXON = 27, "VMXON: the last of them, but for INVEPT and INVVPID.";
    CR_ACCESS = 28, "Control-register access.";
    MOV_DR = 29, "MOV DR.";
    IO_INSTRUCTION = 30, "I/O instruction.";
    RDMSR = 31, "RDMSR.";
    WRMSR = 32, "WRMSR.";
    MWAIT = 36, "MWAIT.";
    MONITOR = 39, "MONITOR.";
    PAUSE = 40, "PAUSE.";
    ENTRY_MACHINE_CHECK = 41, "VM-entry failure due to machine-check event.";
    VIRTUALIZED_EOI = 45, "Virtualized EOI.";
    EPT_VIOLATION = 48, "EPT violation.";
    INVEPT = 50, "INVEPT.";
    RDTSCP = 51, "RDTSCP.";
    PREEMPTION_TIMER = 52, "VMX-preemption timer expired.";
    INVVPID = 53, "INVVPID.";
    WBINVD = 54, "WBINVD or WBNOINVD.";
    XSETBV = 55, "XSETBV.";
    APIC_WRITE = 56, "APIC write.";
}

/// [`quick_kind`] by basic reason.
const QUICK: [Option<ExitKind>; 64] = {
    let mut kinds = [None; 64];
    let mut reason = 0;
    while reason < kinds.len() {
        kinds[reason] = match Reason(reason as u16) {
            Reason::IO_INSTRUCTION => Some(ExitKind::PortIo),
            // The kernel answers some.
            Reason::WRMSR => None,
            plain => plain.plain_kind(),
        };
        reason += 1;
    }
    kinds
};

/// The kind of an exit that is the VMM's, for the most frequent ones: those of [`Reason::plain_kind`] that are never the
/// kernel's, and port accesses. `raw_reason` is the field as it is: with a flag beside the basic reason there is none.
#[inline]
pub fn quick_kind(raw_reason: u32) -> Option<ExitKind> {
    QUICK.get(raw_reason as usize).copied().flatten()
}

bitflags::bitflags! {
    /// Fields to read after an exit, besides those that are read in any case.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Needs: u8 {
        /// Exit qualification.
        const QUALIFICATION = 1 << 0;
        /// VM-exit instruction length.
        const LENGTH = 1 << 1;
        /// VM-exit interruption information and error code.
        const INTERRUPTION = 1 << 2;
        /// Guest-linear and guest-physical address.
        const ADDRESSES = 1 << 3;
        /// VM-exit instruction information.
        const INSTRUCTION_INFO = 1 << 4;
    }
}

impl Reason {
    /// The kind of an exit on an instruction that the exit itself says everything about, its length apart.
    #[inline]
    pub const fn plain_kind(self) -> Option<ExitKind> {
        Some(match self {
            Reason::CPUID => ExitKind::Cpuid,
            Reason::VMCALL => ExitKind::Hypercall,
            Reason::RDMSR => ExitKind::MsrRead,
            Reason::WRMSR => ExitKind::MsrWrite,
            Reason::XSETBV => ExitKind::Xsetbv,
            Reason::INVD | Reason::WBINVD => ExitKind::CacheControl,
            Reason::PAUSE => ExitKind::Pause,
            Reason::MONITOR | Reason::MWAIT => ExitKind::Monitor,
            Reason::RDPMC => ExitKind::Rdpmc,
            Reason::RDTSC | Reason::RDTSCP => ExitKind::Rdtsc,
            Reason::GETSEC | Reason::INVEPT | Reason::INVVPID | Reason(FIRST_VMX..=LAST_VMX) => {
                ExitKind::VirtInstruction
            }
            _ => return None,
        })
    }

    /// What [`decode`] wants to know of this exit.
    pub const fn needs(self) -> Needs {
        if self.plain_kind().is_some() {
            return Needs::LENGTH;
        }
        match self {
            Reason::EXTERNAL_INTERRUPT
            | Reason::TRIPLE_FAULT
            | Reason::INIT
            | Reason::SIPI
            | Reason::INTERRUPT_WINDOW
            | Reason::NMI_WINDOW
            | Reason::PREEMPTION_TIMER => Needs::empty(),
            // The length is there for INT3, INTO and INT1.
            Reason::EXCEPTION_OR_NMI => Needs::INTERRUPTION.union(Needs::QUALIFICATION).union(Needs::LENGTH),
            // The hardware leaves the length undefined.
            Reason::EPT_VIOLATION => Needs::QUALIFICATION.union(Needs::ADDRESSES),
            Reason::IO_INSTRUCTION => {
                Needs::QUALIFICATION.union(Needs::LENGTH).union(Needs::INSTRUCTION_INFO)
            }
            Reason::TASK_SWITCH | Reason::INVLPG | Reason::CR_ACCESS | Reason::MOV_DR => {
                Needs::QUALIFICATION.union(Needs::LENGTH)
            }
            Reason::HLT => Needs::LENGTH,
            Reason(_) => Needs::QUALIFICATION,
        }
    }
}

/// The fields that [`Reason::needs`] names; others are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Exit qualification.
    pub qualification: u64,
    /// VM-exit interruption information.
    pub interruption: u32,
    /// VM-exit interruption error code, if the interruption information says that there is one.
    pub error_code: u32,
    /// Guest-linear address.
    pub linear: u64,
    /// Guest-physical address.
    pub physical: u64,
    /// VM-exit instruction information, 0 where the machine gives none for INS and OUTS.
    pub instruction: u32,
}

/// An exit for the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its kind.
    pub kind: ExitKind,
    /// The first words of `exit_info`.
    pub info: [u64; 4],
    /// How many of them mean something.
    pub info_count: usize,
    /// What the VMM needs to handle it.
    pub groups: Groups,
}

impl Report {
    /// An exit without details, for which RIP and the general-purpose registers are enough.
    pub const fn new(kind: ExitKind) -> Self {
        Report { kind, info: [0; 4], info_count: 0, groups: Groups::RIP }
    }

    const fn with<const N: usize>(kind: ExitKind, info: [u64; N]) -> Self {
        let mut report = Report::new(kind);
        let mut index = 0;
        while index < N {
            report.info[index] = info[index];
            index += 1;
        }
        report.info_count = N;
        report
    }

    const fn needing(self, groups: Groups) -> Self {
        Report { groups: self.groups.union(groups), ..self }
    }
}

/// What is to be done about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The VMM handles it.
    Vmm(Report),
    /// A host interrupt is pending.
    HostInterrupt,
    /// A host NMI was taken from the guest.
    HostNmi,
    /// A machine check.
    HostMachineCheck,
    /// The preemption timer.
    Timer,
    /// HLT.
    Halt,
    /// The guest goes on.
    Nothing,
    /// An exception that the kernel has to see but its VMM did not ask for: the guest gets it.
    Reflect {
        /// The exception.
        event: Event,
        /// For a debug exception, what it adds to DR6.
        debug_bits: u64,
    },
}

/// Exceptions that always exit. #DB and #AC that are raised while they are delivered would otherwise keep the CPU in
/// the guest for ever, deaf to NMIs (CVE-2015-8104, CVE-2015-5307); a machine check is the host's.
pub const ALWAYS_EXITING_EXCEPTIONS: u32 = 1 << DEBUG_EXCEPTION | 1 << ALIGNMENT_CHECK | 1 << MACHINE_CHECK;

/// Vector of debug exceptions.
pub const DEBUG_EXCEPTION: u8 = 1;
const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;
const ALIGNMENT_CHECK: u8 = 17;
const MACHINE_CHECK: u8 = 18;

/// Exit qualification of a debug exception: B0 to B3, BD, BS, as in DR6 (SDM 3C table 27-1).
const DEBUG_BITS: u64 = 0x600f;

/// Says what an exit is. `wanted_exceptions` is the VMM's exception bitmap; `was_delivering` is set if the exit
/// interrupted the delivery of an event.
#[inline]
pub fn decode(reason: Reason, details: &Details, wanted_exceptions: u32, was_delivering: bool) -> Outcome {
    if let Some(kind) = reason.plain_kind() {
        return Outcome::Vmm(Report::new(kind));
    }
    let qualification = details.qualification;
    Outcome::Vmm(match reason {
        Reason::EXTERNAL_INTERRUPT => return Outcome::HostInterrupt,
        Reason::PREEMPTION_TIMER => return Outcome::Timer,
        Reason::HLT => return Outcome::Halt,
        Reason::EXCEPTION_OR_NMI => return decode_exception(details, wanted_exceptions, was_delivering),
        Reason::IO_INSTRUCTION => decode_port_io(details),
        Reason::EPT_VIOLATION => Report::with(ExitKind::NestedFault, nested_fault(details)),
        Reason::INTERRUPT_WINDOW => Report::new(ExitKind::InterruptWindow),
        Reason::NMI_WINDOW => Report::new(ExitKind::NmiWindow),
        Reason::CR_ACCESS => {
            Report::with(ExitKind::ControlAccess, [decode_control_access(qualification).encode()])
                .needing(Groups::CONTROL)
        }
        Reason::MOV_DR => Report::with(ExitKind::DebugAccess, [decode_debug_access(qualification).encode()]),
        Reason::TRIPLE_FAULT => Report::new(ExitKind::TripleFault),
        Reason::INIT | Reason::SIPI => Report::new(ExitKind::Init),
        // Selector in bits 0-15, source in 30-31, numbered as in the ABI (table 27-2).
        Reason::TASK_SWITCH => {
            Report::with(ExitKind::TaskSwitch, [qualification & 0xffff | (qualification >> 30 & 3) << 16])
        }
        Reason::INVLPG => Report::with(ExitKind::Invlpg, [qualification]),
        // Both come when the instruction is done. The write is a self-IPI with a vector below 16: nothing follows from it.
        Reason::VIRTUALIZED_EOI => Report::with(ExitKind::Eoi, [qualification & 0xff]),
        Reason::APIC_WRITE => return Outcome::Nothing,
        Reason(raw) => Report::with(ExitKind::Unhandled, [0, raw as u64, qualification]),
    })
}

const FIRST_VMX: u16 = Reason::VMCLEAR.0;
const LAST_VMX: u16 = Reason::VMXON.0;

/// VM-exit interruption information and IDT-vectoring information (SDM 3C tables 24-17 and 24-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption(pub u32);

impl Interruption {
    const NMI_UNBLOCKING: u32 = 1 << 12;
    /// Vector, type, error code valid, valid. Bit 12 is no part of the event.
    const EVENT: u32 = 0x8000_0fff;

    /// Whether the field says anything.
    pub const fn is_valid(self) -> bool {
        self.0 >> 31 != 0
    }

    const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn kind(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Whether there is an error code.
    pub const fn has_error_code(self) -> bool {
        self.0 >> 11 & 1 != 0
    }

    /// Whether the event is of one of the kinds that INT, INT1, INT3 and INTO raise: its injection needs the length of
    /// the instruction.
    pub const fn is_software(self) -> bool {
        is_software_event(self.kind())
    }

    /// The event, to inject it again.
    pub const fn event(self, error_code: u32) -> Event {
        let error_code = if self.has_error_code() { error_code } else { 0 };
        Event((self.0 & Self::EVENT) as u64 | (error_code as u64) << 32)
    }
}

/// Whether events of this kind come from INT n (4), INT1 (5), or INT3 and INTO (6).
pub const fn is_software_event(kind: u8) -> bool {
    matches!(kind, 4..=6)
}

/// Whether NMIs, which an IRET that faulted had unblocked, are to be blocked again (SDM 3C 27.2.3). Not asked when the
/// exit interrupted the delivery of an event.
pub fn restores_nmi_blocking(reason: Reason, details: &Details) -> bool {
    match reason {
        Reason::EXCEPTION_OR_NMI => {
            let info = Interruption(details.interruption);
            info.0 & Interruption::NMI_UNBLOCKING != 0 && info.vector() != DOUBLE_FAULT
        }
        Reason::EPT_VIOLATION => details.qualification & Interruption::NMI_UNBLOCKING as u64 != 0,
        _ => false,
    }
}

fn decode_exception(details: &Details, wanted: u32, was_delivering: bool) -> Outcome {
    let info = Interruption(details.interruption);
    let vector = info.vector();
    if info.kind() == Event::NMI {
        return Outcome::HostNmi;
    }
    if vector == MACHINE_CHECK {
        return Outcome::HostMachineCheck;
    }
    // Two events at once are more than one injection holds: the VMM decides.
    let is_wanted = vector < 32 && wanted >> vector & 1 != 0;
    if !is_wanted && !was_delivering {
        let debug_bits = if vector == DEBUG_EXCEPTION { details.qualification & DEBUG_BITS } else { 0 };
        return Outcome::Reflect { event: info.event(details.error_code), debug_bits };
    }
    let error_code = if info.has_error_code() { details.error_code as u64 } else { 0 };
    let extra = match vector {
        PAGE_FAULT => details.qualification,
        DEBUG_EXCEPTION => details.qualification & DEBUG_BITS,
        _ => 0,
    };
    Outcome::Vmm(Report::with(ExitKind::Exception, [vector as u64, error_code, extra]))
}

/// The port access of an exit qualification (SDM 3C table 27-5).
#[inline]
pub const fn port_io(qualification: u64) -> PortIo {
    PortIo {
        port: (qualification >> 16) as u16,
        size: (qualification & 7) as u8 + 1,
        is_in: qualification >> 3 & 1 != 0,
        is_string: qualification >> 4 & 1 != 0,
        is_rep: qualification >> 5 & 1 != 0,
    }
}

/// The segment of OUTS is in bits 15-17 of the instruction information (SDM 3C table 27-8).
fn decode_port_io(details: &Details) -> Report {
    const ES: u64 = 0;
    const UNKNOWN: u64 = 0xff;
    let io = port_io(details.qualification);
    if !io.is_string {
        return Report::with(ExitKind::PortIo, [io.encode()]);
    }
    let segment = match (io.is_in, details.instruction) {
        (true, _) => ES,
        (false, 0) => UNKNOWN,
        (false, info) => (info >> 15 & 7) as u64,
    };
    Report::with(ExitKind::PortIo, [io.encode(), segment])
        .needing(Groups::CS_SS.union(Groups::DATA_SEGMENTS).union(Groups::CONTROL))
}

/// The words of `exit_info` at an EPT violation (SDM 3C table 27-7).
#[inline]
pub fn nested_fault(details: &Details) -> [u64; 4] {
    let qualification = details.qualification;
    let has_linear = qualification >> 7 & 1 != 0;
    let is_translation = qualification >> 8 & 1 != 0;
    let mut flags = NestedFault::from_bits_truncate(qualification & 7);
    flags.set(NestedFault::PRESENT, qualification & 0x38 != 0);
    flags.set(NestedFault::LINEAR_VALID, has_linear);
    flags.set(NestedFault::PAGE_WALK, has_linear && !is_translation);
    let linear = if has_linear { details.linear } else { 0 };
    // The last word: VMX fetches no instruction bytes.
    [details.physical, flags.bits(), linear, 0]
}

/// SDM 3C table 27-3.
fn decode_control_access(qualification: u64) -> ControlAccess {
    const NO_GPR: u8 = 0xff;
    let (operation, has_gpr) = match qualification >> 4 & 3 {
        0 => (ControlOperation::Write, true),
        1 => (ControlOperation::Read, true),
        2 => (ControlOperation::Clts, false),
        _ => (ControlOperation::Lmsw, false),
    };
    ControlAccess {
        register: qualification as u8 & 15,
        operation,
        gpr: if has_gpr { (qualification >> 8) as u8 & 15 } else { NO_GPR },
        source: if operation == ControlOperation::Lmsw { (qualification >> 16) as u16 } else { 0 },
    }
}

/// SDM 3C table 27-4.
fn decode_debug_access(qualification: u64) -> ControlAccess {
    ControlAccess {
        register: qualification as u8 & 7,
        operation: if qualification >> 4 & 1 != 0 { ControlOperation::Read } else { ControlOperation::Write },
        gpr: (qualification >> 8) as u8 & 15,
        source: 0,
    }
}

#[cfg(test)]
mod tests;
