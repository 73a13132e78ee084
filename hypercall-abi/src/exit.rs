//! Why `VcpuRun` returned: vendor-neutral (SPEC.md 8).

use crate::numbers::numbers;

numbers! {
    /// Why `VcpuRun` returned. `info` below is [`crate::vcpu::VcpuPage::exit_info`].
    ExitKind: u32 {
        /// Poked, now or before the call.
        Poked = 1,
        /// The deadline of the page is reached.
        Deadline = 2,
        /// The bound notification has bits; they are in `notified`.
        Notified = 3,
        /// HLT (RIP still on it).
        Hlt = 4,
        /// CPUID.
        Cpuid = 5,
        /// IN, OUT, INS or OUTS: see [`PortIo`].
        PortIo = 6,
        /// An access that the guest space does not allow: see [`NestedFault`].
        NestedFault = 7,
        /// RDMSR, index in RCX.
        MsrRead = 8,
        /// WRMSR, index in RCX, value in RDX:RAX.
        MsrWrite = 9,
        /// MOV to or from a control register, CLTS or LMSW: see [`ControlAccess`].
        ControlAccess = 10,
        /// MOV to or from a debug register; info\[0\] as in [`ControlAccess`].
        DebugAccess = 11,
        /// VMCALL or VMMCALL: info\[0\] the privilege level of the guest.
        Hypercall = 12,
        /// The guest could take an interrupt now.
        InterruptWindow = 13,
        /// The guest could take an NMI now.
        NmiWindow = 14,
        /// An exception of the exception bitmap: info\[0\] the vector, info\[1\] the error code, info\[2\] CR2 for a page fault
        /// or the DR6 bits for a debug exception.
        Exception = 15,
        /// Triple fault, or a shutdown for another reason.
        TripleFault = 16,
        /// The hardware, or the kernel before it, refused the state: info\[0\] the rule ([`EntryRule`]), info\[1\] what the
        /// hardware said.
        EntryFailure = 17,
        /// XSETBV, index in RCX, value in RDX:RAX.
        Xsetbv = 18,
        /// INVD or WBINVD.
        CacheControl = 19,
        /// PAUSE.
        Pause = 20,
        /// MONITOR or MWAIT.
        Monitor = 21,
        /// Task switch: info\[0\] the selector in bits 0-15, the source in 16-17 (0 CALL, 1 IRET, 2 JMP, 3 gate).
        TaskSwitch = 22,
        /// INVLPG: info\[0\] the linear address where known.
        Invlpg = 23,
        /// RDPMC.
        Rdpmc = 24,
        /// RDTSC or RDTSCP.
        Rdtsc = 25,
        /// A virtualization instruction of this vendor (VMX instructions, VMRUN and its kin): the guest was told that there
        /// are none.
        VirtInstruction = 26,
        /// INIT signal or SIPI while the vCPU ran.
        Init = 27,
        /// With a virtual APIC: an interrupt of [`crate::vcpu::VcpuPage::eoi_exits`] is over; info\[0\] its vector. RIP is behind the
        /// instruction, and dirty.
        Eoi = 28,
        /// Anything else: info\[0\] 0 for VMX and 1 for SVM, info\[1\] the raw reason, info\[2\] its qualification.
        Unhandled = 31,
    }
}

/// [`ExitKind::PortIo`]: info\[0\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortIo {
    /// The port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub is_in: bool,
    /// INS or OUTS: info\[1\] is the effective segment (index as in the page) where known, else 0xff.
    pub is_string: bool,
    /// With REP.
    pub is_rep: bool,
}

impl PortIo {
    /// Packs into info\[0\].
    pub const fn encode(self) -> u64 {
        self.port as u64
            | (self.size as u64) << 16
            | (self.is_in as u64) << 24
            | (self.is_string as u64) << 25
            | (self.is_rep as u64) << 26
    }

    /// Whether info\[0\] says OUT: then it has nothing but port and size.
    #[inline]
    pub const fn is_plain_out(raw: u64) -> bool {
        raw >> 24 == 0
    }

    /// Unpacks info\[0\].
    pub const fn decode(raw: u64) -> Self {
        PortIo {
            port: raw as u16,
            size: (raw >> 16) as u8,
            is_in: raw >> 24 & 1 != 0,
            is_string: raw >> 25 & 1 != 0,
            is_rep: raw >> 26 & 1 != 0,
        }
    }
}

bitflags::bitflags! {
    /// [`ExitKind::NestedFault`]: info\[1\]. info\[0\] is the guest-physical address, info\[2\] the linear address if
    /// `LINEAR_VALID`, info\[3\] the number of instruction bytes the hardware fetched (0 to 15), info\[4\] and info\[5\]
    /// those bytes.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NestedFault: u64 {
        /// Data read.
        const READ = 1 << 0;
        /// Data write.
        const WRITE = 1 << 1;
        /// Instruction fetch.
        const EXECUTE = 1 << 2;
        /// Something was mapped at the address (with fewer rights).
        const PRESENT = 1 << 3;
        /// The linear address is known.
        const LINEAR_VALID = 1 << 4;
        /// The access was one of the guest's own page walk.
        const PAGE_WALK = 1 << 5;
    }
}

/// [`ExitKind::ControlAccess`] and [`ExitKind::DebugAccess`]: info\[0\].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlAccess {
    /// Register number: 0, 3, 4, 8; or 0 to 7 for a debug register.
    pub register: u8,
    /// What the instruction is.
    pub operation: ControlOperation,
    /// The general-purpose register, 0xff if the hardware does not say.
    pub gpr: u8,
    /// LMSW: the source operand.
    pub source: u16,
}

/// What a [`ControlAccess`] is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlOperation {
    /// MOV to the register.
    Write = 0,
    /// MOV from the register.
    Read = 1,
    /// CLTS.
    Clts = 2,
    /// LMSW.
    Lmsw = 3,
}

impl ControlAccess {
    /// Packs into info\[0\].
    pub const fn encode(self) -> u64 {
        self.register as u64
            | (self.operation as u64) << 8
            | (self.gpr as u64) << 16
            | (self.source as u64) << 32
    }

    /// Unpacks info\[0\].
    pub const fn decode(raw: u64) -> Self {
        ControlAccess {
            register: raw as u8,
            operation: match raw >> 8 & 3 {
                0 => ControlOperation::Write,
                1 => ControlOperation::Read,
                2 => ControlOperation::Clts,
                _ => ControlOperation::Lmsw,
            },
            gpr: (raw >> 16) as u8,
            source: (raw >> 32) as u16,
        }
    }
}

/// Which rule a refused entry broke (SPEC.md 8.3).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRule {
    /// The kernel found nothing; the hardware refused: info\[1\] is the VM-instruction error, the exit reason, or the
    /// SVM exit code.
    Hardware = 0,
    /// A control-register value is not supported.
    ControlRegister = 1,
    /// EFER, or EFER against CR0 and CR4.
    Efer = 2,
    /// RFLAGS, or RFLAGS against the injected event.
    Rflags = 3,
    /// A segment register.
    Segment = 4,
    /// An address is not canonical.
    Canonical = 5,
    /// The injected event.
    Event = 6,
    /// DR7, DEBUGCTL, PAT, XCR0 or another MSR value.
    Msr = 7,
    /// Activity or interruptibility.
    Activity = 8,
}
