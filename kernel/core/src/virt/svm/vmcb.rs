//! The virtual machine control block (APM appendix B).

use core::mem::{offset_of, size_of};

/// Bytes without meaning for us, which must be zero.
#[repr(transparent)]
#[derive(Clone, Debug)]
struct Reserved<const BYTES: usize>([u8; BYTES]);

impl<const BYTES: usize> Default for Reserved<BYTES> {
    fn default() -> Self {
        Reserved([0; BYTES])
    }
}

/// A segment register or descriptor-table register in the save area. Conversions are in [`super::segment`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmcbSegment {
    /// Selector.
    pub selector: u16,
    /// Type 0-3, S 4, DPL 5-6, P 7, AVL 8, L 9, D/B 10, G 11.
    pub attributes: u16,
    /// Limit in bytes, as expanded by G.
    pub limit: u32,
    /// Base linear address.
    pub base: u64,
}

bitflags::bitflags! {
    /// State that the CPU may take from its own copy of the VMCB (APM 15.15.3). A bit may be set only if nobody
    /// changed the fields it stands for since the last #VMEXIT of this VMCB on this CPU.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Addresses of the I/O and MSR permission maps.
        const PERMISSION_MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR.
        const VIRTUAL_INTERRUPT = 1 << 3;
        /// Nested paging: N_CR3, G_PAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR, IDTR.
        const DESCRIPTOR_TABLES = 1 << 7;
        /// ES, CS, SS, DS, CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// DEBUGCTL and the last-branch records.
        const LAST_BRANCH = 1 << 10;
    }
}

/// [`Control::interrupt_control`]: V_IRQ, a virtual interrupt is pending (APM 15.21.4).
pub const V_IRQ: u64 = 1 << 8;
/// [`Control::interrupt_control`]: V_INTR_PRIO at its highest.
pub const V_INTR_PRIO_MAX: u64 = 0xf << 16;
/// [`Control::interrupt_control`]: V_IGN_TPR, V_TPR does not hold the virtual interrupt back.
pub const V_IGN_TPR: u64 = 1 << 20;
/// [`Control::interrupt_control`]: V_INTR_MASKING, the guest's RFLAGS.IF masks virtual interrupts only.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// Shift of V_INTR_VECTOR in [`Control::interrupt_control`].
pub const V_INTR_VECTOR_SHIFT: u32 = 32;
/// [`Control::interrupt_shadow`]: the guest is in an interrupt shadow.
pub const INTERRUPT_SHADOW: u64 = 1;
/// [`Control::nested_control`]: NP_ENABLE.
pub const NP_ENABLE: u64 = 1;
/// [`Control::lbr_control`]: DEBUGCTL and the last-branch records are switched.
pub const LBR_ENABLE: u64 = 1;

/// The control area (APM table B-1).
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Bit n: reads of CRn exit.
    pub intercept_cr_reads: u16,
    /// Bit n: writes of CRn exit.
    pub intercept_cr_writes: u16,
    /// Bit n: reads of DRn exit.
    pub intercept_dr_reads: u16,
    /// Bit n: writes of DRn exit.
    pub intercept_dr_writes: u16,
    /// Bit n: exception n exits.
    pub intercept_exceptions: u32,
    /// Intercept words 3 to 5: see [`super::intercepts`].
    pub intercepts: [u32; 3],
    reserved_018: Reserved<0x24>,
    /// PAUSE filter threshold.
    pub pause_threshold: u16,
    /// PAUSE filter count.
    pub pause_count: u16,
    /// Physical address of the I/O permission map: three contiguous pages.
    pub iopm_base: u64,
    /// Physical address of the MSR permission map: two contiguous pages.
    pub msrpm_base: u64,
    /// Added to the host TSC.
    pub tsc_offset: u64,
    /// Address-space identifier; 0 is the host's.
    pub asid: u32,
    /// What VMRUN flushes: [`super::asid::TlbControl`].
    pub tlb_control: u32,
    /// Virtual interrupts: the `V_` constants.
    pub interrupt_control: u64,
    /// [`INTERRUPT_SHADOW`], and GUEST_INTERRUPT_MASK in bit 1.
    pub interrupt_shadow: u64,
    /// Out: exit code (APM appendix C).
    pub exit_code: u64,
    /// Out: EXITINFO1.
    pub exit_info_1: u64,
    /// Out: EXITINFO2.
    pub exit_info_2: u64,
    /// Out: EXITINTINFO, the event whose delivery the exit interrupted.
    pub exit_int_info: u64,
    /// [`NP_ENABLE`] and its kin.
    pub nested_control: u64,
    /// AVIC APIC_BAR.
    pub avic_bar: u64,
    /// Guest-physical address of the GHCB.
    pub ghcb: u64,
    /// EVENTINJ, the event that VMRUN delivers.
    pub event_injection: u64,
    /// Root of the nested tables.
    pub nested_cr3: u64,
    /// [`LBR_ENABLE`], and VMSAVE/VMLOAD virtualization in bit 1.
    pub lbr_control: u64,
    /// [`Clean`] bits.
    pub clean: u32,
    reserved_0c4: u32,
    /// nRIP: the instruction after the intercepted one.
    pub next_rip: u64,
    /// Number of bytes in [`Self::bytes`] (0 to 15).
    pub byte_count: u8,
    /// Bytes of the instruction that faulted.
    pub bytes: [u8; 15],
    reserved_0e0: Reserved<0x320>,
}

/// The save area (APM table B-2).
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct SaveArea {
    /// ES.
    pub es: VmcbSegment,
    /// CS.
    pub cs: VmcbSegment,
    /// SS.
    pub ss: VmcbSegment,
    /// DS.
    pub ds: VmcbSegment,
    /// FS: switched by VMLOAD and VMSAVE.
    pub fs: VmcbSegment,
    /// GS: switched by VMLOAD and VMSAVE.
    pub gs: VmcbSegment,
    /// GDTR.
    pub gdtr: VmcbSegment,
    /// LDTR: switched by VMLOAD and VMSAVE.
    pub ldtr: VmcbSegment,
    /// IDTR.
    pub idtr: VmcbSegment,
    /// TR: switched by VMLOAD and VMSAVE.
    pub tr: VmcbSegment,
    reserved_0a0: Reserved<0x2b>,
    /// Current privilege level.
    pub cpl: u8,
    reserved_0cc: u32,
    /// EFER, SVME set.
    pub efer: u64,
    reserved_0d8: Reserved<0x70>,
    /// CR4.
    pub cr4: u64,
    /// CR3.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RIP.
    pub rip: u64,
    reserved_180: Reserved<0x58>,
    /// RSP.
    pub rsp: u64,
    reserved_1e0: Reserved<0x18>,
    /// RAX.
    pub rax: u64,
    /// STAR: this and the next seven are switched by VMLOAD and VMSAVE.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// CR2.
    pub cr2: u64,
    reserved_248: Reserved<0x20>,
    /// The guest's PAT, with nested paging.
    pub g_pat: u64,
    /// DEBUGCTL, with [`LBR_ENABLE`].
    pub debugctl: u64,
    reserved_278: Reserved<0x988>,
}

/// A VMCB: one page, whose physical address VMRUN takes.
#[repr(C, align(4096))]
#[derive(Clone, Debug, Default)]
pub struct Vmcb {
    /// What exits, what is injected, why it exited.
    pub control: Control,
    /// The guest's registers.
    pub save: SaveArea,
}

const _: () = {
    assert!(size_of::<Vmcb>() == 0x1000 && offset_of!(Vmcb, save) == 0x400);
    assert!(offset_of!(Control, intercept_exceptions) == 0x08);
    assert!(offset_of!(Control, intercepts) == 0x0c);
    assert!(offset_of!(Control, pause_threshold) == 0x3c);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, msrpm_base) == 0x48);
    assert!(offset_of!(Control, tsc_offset) == 0x50);
    assert!(offset_of!(Control, asid) == 0x58 && offset_of!(Control, tlb_control) == 0x5c);
    assert!(offset_of!(Control, interrupt_control) == 0x60);
    assert!(offset_of!(Control, interrupt_shadow) == 0x68);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_injection) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, lbr_control) == 0xb8);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, byte_count) == 0xd0 && offset_of!(Control, bytes) == 0xd1);
    assert!(offset_of!(SaveArea, gdtr) == 0x60 && offset_of!(SaveArea, ldtr) == 0x70);
    assert!(offset_of!(SaveArea, idtr) == 0x80 && offset_of!(SaveArea, tr) == 0x90);
    assert!(offset_of!(SaveArea, cpl) == 0xcb);
    assert!(offset_of!(SaveArea, efer) == 0xd0);
    assert!(offset_of!(SaveArea, cr4) == 0x148 && offset_of!(SaveArea, cr0) == 0x158);
    assert!(offset_of!(SaveArea, dr7) == 0x160 && offset_of!(SaveArea, dr6) == 0x168);
    assert!(offset_of!(SaveArea, rflags) == 0x170 && offset_of!(SaveArea, rip) == 0x178);
    assert!(offset_of!(SaveArea, rsp) == 0x1d8 && offset_of!(SaveArea, rax) == 0x1f8);
    assert!(offset_of!(SaveArea, star) == 0x200 && offset_of!(SaveArea, kernel_gs_base) == 0x220);
    assert!(offset_of!(SaveArea, sysenter_cs) == 0x228 && offset_of!(SaveArea, cr2) == 0x240);
    assert!(offset_of!(SaveArea, g_pat) == 0x268 && offset_of!(SaveArea, debugctl) == 0x270);
};

impl SaveArea {
    /// Puts the state after reset into the save area (APM 14.1.3), except that CR0.CD and NW are clear and CR4.MCE is set:
    /// [`super::checks::HIDDEN_CR0`] and [`super::checks::CR4_MCE`] say why.
    pub fn reset(&mut self) {
        const DATA: VmcbSegment = VmcbSegment { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        (self.es, self.ss, self.ds, self.fs, self.gs) = (DATA, DATA, DATA, DATA, DATA);
        self.cs = VmcbSegment { selector: 0xf000, attributes: 0x9b, limit: 0xffff, base: 0xffff_0000 };
        self.ldtr = VmcbSegment { attributes: 0x82, ..DATA };
        self.tr = VmcbSegment { attributes: 0x8b, ..DATA };
        self.gdtr = VmcbSegment { attributes: 0, ..DATA };
        self.idtr = self.gdtr;
        self.cpl = 0;
        self.efer = super::checks::EFER_SVME;
        self.cr0 = super::checks::CR0_ET;
        (self.cr2, self.cr3, self.cr4) = (0, 0, super::checks::CR4_MCE);
        (self.dr6, self.dr7) = (0xffff_0ff0, 0x400);
        (self.rflags, self.rip, self.rsp, self.rax) = (2, 0xfff0, 0, 0);
        (self.star, self.lstar, self.cstar, self.sfmask, self.kernel_gs_base) = (0, 0, 0, 0, 0);
        (self.sysenter_cs, self.sysenter_esp, self.sysenter_eip) = (0, 0, 0);
        (self.g_pat, self.debugctl) = (0x0007_0406_0007_0406, 0);
    }
}

#[cfg(test)]
impl Vmcb {
    /// A VMCB with the guest after reset.
    pub(crate) fn after_reset() -> Self {
        let mut vmcb = Vmcb::default();
        vmcb.save.reset();
        vmcb
    }
}
