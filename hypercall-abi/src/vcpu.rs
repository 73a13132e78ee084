//! The page that the kernel and a VMM share for one vCPU (SPEC.md 7).
//!
//! The guest's registers live in it. [`VcpuPage::dirty`] says what the VMM changed since the last exit,
//! [`VcpuPage::filled`] what the last exit wrote. The kernel reads each value it checks once.

use crate::exit::ExitKind;
use crate::numbers::numbers;

bitflags::bitflags! {
    /// Groups of vCPU state. General-purpose registers need no group: they are always current, RSP apart.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Groups: u32 {
        /// RIP, RFLAGS, interruptibility, activity. Filled at every exit.
        const RIP = 1 << 0;
        /// CS, SS, RSP.
        const CS_SS = 1 << 1;
        /// DS, ES, FS, GS.
        const DATA_SEGMENTS = 1 << 2;
        /// LDTR, TR, GDTR, IDTR.
        const TABLES = 1 << 3;
        /// CR0, CR3, CR4, EFER, and the PDPTEs if PAE paging is on outside long mode.
        const CONTROL = 1 << 4;
        /// DR0 to DR3, DR6, DR7. CR2 needs no group: like a general-purpose register it is always current.
        const DEBUG = 1 << 5;
        /// SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
        const SYSENTER = 1 << 6;
        /// STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, TSC_AUX.
        const SYSCALL = 1 << 7;
        /// PAT, DEBUGCTL.
        const PAT = 1 << 8;
        /// XCR0.
        const XCR0 = 1 << 9;
        /// The event in [`VcpuPage::inject`] (informative: the kernel looks at its valid bit at each run).
        const INJECT = 1 << 10;
        /// [`VcpuPage::intercepts`], [`VcpuPage::exception_bitmap`].
        const INTERCEPTS = 1 << 11;
        /// [`VcpuPage::tsc_offset`].
        const TSC_OFFSET = 1 << 12;
        /// IRR, ISR or TPR in the virtual-APIC page.
        const APIC = 1 << 13;
        /// [`VcpuPage::code_root`].
        const CODE = 1 << 14;
    }
}

bitflags::bitflags! {
    /// How `VcpuRun` behaves this time; read at every run, no dirty bit needed.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RunFlags: u32 {
        /// HLT blocks inside the call instead of returning [`ExitKind::Hlt`].
        const HLT_BLOCKS = 1 << 0;
        /// Return [`ExitKind::InterruptWindow`] when the guest could take an interrupt.
        const INTERRUPT_WINDOW = 1 << 1;
        /// Return [`ExitKind::NmiWindow`] when the guest could take an NMI.
        const NMI_WINDOW = 1 << 2;
        /// Deliver interrupts from the virtual-APIC page, and answer the guest's writes of the x2APIC's TPR, EOI and SELF IPI.
        const VIRTUAL_APIC = 1 << 3;
    }
}

bitflags::bitflags! {
    /// Optional exits. What isolation needs exits in any case.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercepts: u32 {
        /// PAUSE exits.
        const PAUSE = 1 << 0;
        /// MOV to and from debug registers exits.
        const DEBUG_REGISTERS = 1 << 1;
        /// RDTSC and RDTSCP exit.
        const RDTSC = 1 << 2;
        /// INVLPG and writes of CR3 exit.
        const PAGING = 1 << 3;
    }
}

bitflags::bitflags! {
    /// What keeps the guest from taking an event at the next instruction (SDM 3C table 25-3, in its bit order).
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interruptibility: u32 {
        /// The instruction before was STI.
        const STI = 1 << 0;
        /// The instruction before was MOV SS or POP SS.
        const MOV_SS = 1 << 1;
        /// An NMI is being handled.
        const NMI = 1 << 3;
    }
}

impl Interruptibility {
    /// The shadow of the instruction before: no interrupt is taken.
    pub const SHADOW: Self = Self::STI.union(Self::MOV_SS);
}

numbers! {
    /// What `VcpuFpu` does.
    FpuOperation: u64 {
        /// The page gets the state.
        Read = 0,
        /// The state becomes the page's.
        Write = 1,
        /// The state, and XCR0, become those after reset.
        Reset = 2,
    }
}

/// [`VcpuPage::activity`]: the guest runs.
pub const ACTIVITY_ACTIVE: u32 = 0;
/// [`VcpuPage::activity`]: the guest executed HLT and waits for an interrupt.
pub const ACTIVITY_HALTED: u32 = 1;

/// A segment register. `access` is in the layout of VMX (SDM 3C table 25-2): type 0-3, S 4, DPL 5-6, P 7, AVL 12,
/// L 13, D/B 14, G 15, unusable 16.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Base linear address.
    pub base: u64,
    /// Limit in bytes, as expanded by G.
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Reserved, zero.
    pub reserved: u16,
    /// Access rights.
    pub access: u32,
    /// Reserved, zero.
    pub reserved2: u32,
}

impl Segment {
    /// Bit of [`Self::access`]: the register holds no segment.
    pub const UNUSABLE: u32 = 1 << 16;

    /// A segment without a descriptor's leftovers.
    pub const fn new(selector: u16, base: u64, limit: u32, access: u32) -> Self {
        Segment { base, limit, selector, reserved: 0, access, reserved2: 0 }
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Base linear address.
    pub base: u64,
    /// Limit in bytes (0 to 65535).
    pub limit: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// An event to inject: the common layout of VMX (SDM 3C table 25-15) and SVM (APM 2 15.20). Vector 0-7, type 8-10, error code
/// valid 11, valid 31, error code 32-63.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event(pub u64);

impl Event {
    /// No event.
    pub const NONE: Event = Event(0);
    /// Type: external interrupt.
    pub const EXTERNAL: u8 = 0;
    /// Type: NMI.
    pub const NMI: u8 = 2;
    /// Type: exception.
    pub const EXCEPTION: u8 = 3;
    /// Type: INT n.
    pub const SOFTWARE: u8 = 4;

    /// An external interrupt.
    pub const fn interrupt(vector: u8) -> Self {
        Event(1 << 31 | vector as u64)
    }

    /// An exception, with its error code where the vector has one.
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        let base = 1 << 31 | (Self::EXCEPTION as u64) << 8 | vector as u64;
        match error_code {
            Some(code) => Event(base | 1 << 11 | (code as u64) << 32),
            None => Event(base),
        }
    }

    /// A non-maskable interrupt.
    pub const fn nmi() -> Self {
        Event(1 << 31 | (Self::NMI as u64) << 8 | 2)
    }

    /// Whether there is an event.
    pub const fn is_valid(self) -> bool {
        self.0 >> 31 & 1 != 0
    }

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The type, one of the constants above.
    pub const fn kind(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// The error code, if it has one.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 >> 11 & 1 != 0 { Some((self.0 >> 32) as u32) } else { None }
    }
}

/// Indices into [`VcpuPage::gpr`]: the hardware's numbering.
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP: belongs to [`super::Groups::CS_SS`].
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
}

/// The shared page. Offsets are pinned by `tests/layout.rs`.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct VcpuPage {
    /// General-purpose registers, RSP at index 4.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// [`Interruptibility`] bits.
    pub interruptibility: u32,
    /// [`ACTIVITY_ACTIVE`] or [`ACTIVITY_HALTED`].
    pub activity: u32,

    /// Out: [`ExitKind`] of the last return.
    pub exit_kind: u32,
    /// Out: length of the instruction that exited, 0 if the hardware does not say (then the VMM fetches it).
    pub exit_length: u32,
    /// Out: details of the exit, see [`crate::exit`].
    pub exit_info: [u64; 8],
    /// Out: bits taken from the bound notification.
    pub notified: u64,

    /// In and out: [`Groups`] that the VMM changed; the kernel clears what it took.
    pub dirty: u32,
    /// Out: [`Groups`] that the last exit wrote.
    pub filled: u32,
    /// In: [`Groups`] to fill at every exit, beyond what the exit needs.
    pub want: u32,
    /// In: [`RunFlags`].
    pub run_flags: u32,
    /// In: host TSC at which `VcpuRun` returns [`ExitKind::Deadline`]; `u64::MAX` for never.
    pub deadline: u64,
    /// In: event to inject at the next entry. Out: an event whose delivery the exit interrupted; it stays pending
    /// unless the VMM takes it away.
    pub inject: Event,
    /// In and out: length of the instruction for an injected software event.
    pub inject_length: u32,
    /// In: [`Intercepts`].
    pub intercepts: u32,
    /// In: bit n set: exception n exits.
    pub exception_bitmap: u32,
    /// In: [`Groups`] to fill, beyond `want`, where the VMM has to decode an instruction: at
    /// [`ExitKind::NestedFault`], and at exits on an instruction whose length the hardware does not say.
    pub decode: u32,
    /// In: added to the host TSC.
    pub tsc_offset: u64,

    /// ES, CS, SS, DS, FS, GS: the hardware's numbering.
    pub segments: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,

    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// EFER as the guest sees it: without SVME, which is refused.
    pub efer: u64,
    /// PDPTEs under PAE paging outside long mode.
    pub pdpte: [u64; 4],
    /// XCR0.
    pub xcr0: u64,

    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,

    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
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
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_DEBUGCTL.
    pub debugctl: u64,

    /// In: stores that the VMM has decoded, each at [`Store::place`] of its address.
    pub stores: [Store; STORES],
    /// In: bit *n* of the 256: with a virtual APIC, the end of interrupt *n* exits as [`ExitKind::Eoi`].
    pub eoi_exits: [u64; 4],
    /// Out: CR3 if the guest executes 64-bit code, else [`NO_CODE_ROOT`]. The tables there, of four levels, say where the
    /// instruction at RIP is.
    pub code_root: u64,
    /// In: interrupts for bits of the bound notification. Byte *n*: with a virtual APIC, bit [`FIRST_LINE`] + *n* raises this vector
    /// and does not end the run; it does as any other bit if that is below 16.
    pub lines: [u8; LINES],
}

/// The first bit of a notification that may stand for an interrupt, [`VcpuPage::lines`].
pub const FIRST_LINE: u32 = 56;
/// How many do.
pub const LINES: usize = 8;

/// [`VcpuPage::code_root`]: the guest does not execute 64-bit code.
pub const NO_CODE_ROOT: u64 = u64::MAX;

/// Entries of [`VcpuPage::stores`].
pub const STORES: usize = 8;

/// An instruction that writes to memory and changes nothing else: what the kernel may go on behind, without decoding it, when it
/// rings the doorbell of a page (SPEC.md 4.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// RIP of the instruction.
    pub rip: u64,
    /// Its bytes.
    pub code: [u8; 15],
    /// How many: 1 to 15; 0 for an empty entry.
    pub length: u8,
}

impl Store {
    /// The instruction `code` at `rip`; an empty entry if that has more than 15 bytes.
    pub fn new(rip: u64, code: &[u8]) -> Self {
        let mut store = Store { rip, ..Store::default() };
        if let Some(to) = store.code.get_mut(..code.len()) {
            to.copy_from_slice(code);
            store.length = code.len() as u8;
        }
        store
    }

    /// Where in [`VcpuPage::stores`] an instruction at `rip` is looked for.
    pub const fn place(rip: u64) -> usize {
        (rip ^ rip >> 3) as usize % STORES
    }
}

/// Index of ES in [`VcpuPage::segments`].
pub const ES: usize = 0;
/// Index of CS in [`VcpuPage::segments`].
pub const CS: usize = 1;
/// Index of SS in [`VcpuPage::segments`].
pub const SS: usize = 2;
/// Index of DS in [`VcpuPage::segments`].
pub const DS: usize = 3;
/// Index of FS in [`VcpuPage::segments`].
pub const FS: usize = 4;
/// Index of GS in [`VcpuPage::segments`].
pub const GS: usize = 5;

impl VcpuPage {
    /// The exit of the last return, decoded; `None` before the first run.
    pub fn exit(&self) -> Option<ExitKind> {
        ExitKind::from_raw(self.exit_kind)
    }

    /// Puts the architectural state after reset into the page (SDM 3A table 10-1) and marks it all dirty.
    pub fn reset(&mut self) {
        const DATA: Segment = Segment::new(0, 0, 0xffff, 0x93);
        self.gpr = [0; 16];
        self.gpr[gpr::RDX] = 0x600;
        self.rip = 0xfff0;
        self.rflags = 2;
        self.interruptibility = 0;
        self.activity = ACTIVITY_ACTIVE;
        self.inject = Event::NONE;
        self.segments = [DATA; 6];
        self.segments[CS] = Segment::new(0xf000, 0xffff_0000, 0xffff, 0x9b);
        self.ldtr = Segment::new(0, 0, 0xffff, 0x82);
        self.tr = Segment::new(0, 0, 0xffff, 0x8b);
        self.gdtr = DescriptorTable { base: 0, limit: 0xffff, reserved: 0 };
        self.idtr = self.gdtr;
        self.cr0 = 0x6000_0010;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.pdpte = [0; 4];
        self.xcr0 = 1;
        self.dr = [0; 4];
        self.dr6 = 0xffff_0ff0;
        self.dr7 = 0x400;
        (self.sysenter_cs, self.sysenter_esp, self.sysenter_eip) = (0, 0, 0);
        (self.star, self.lstar, self.cstar, self.sfmask) = (0, 0, 0, 0);
        (self.kernel_gs_base, self.tsc_aux, self.debugctl) = (0, 0, 0);
        self.pat = 0x0007_0406_0007_0406;
        self.deadline = u64::MAX;
        self.decode = (Groups::CS_SS | Groups::DATA_SEGMENTS | Groups::CONTROL).bits();
        self.code_root = NO_CODE_ROOT;
        self.lines = [0; LINES];
        self.dirty = Groups::all().bits();
    }
}
