//! A virtual CPU as the VMM sees it: the shared page, filled on demand.

use crate::fault;
use hypercall_abi::vcpu::{
    self as abi, ACTIVITY_ACTIVE, CS, Event, Groups, Interruptibility, SS, VcpuPage, gpr,
};

/// A virtual CPU that is not running.
pub trait Vcpu {
    /// The page shared with the kernel.
    fn page(&mut self) -> &mut VcpuPage;

    /// Sees to it that these groups of the page hold the guest's state: those that neither the last exit nor the
    /// VMM has written are fetched from the kernel.
    fn require(&mut self, groups: Groups);

    /// The page with these groups in it.
    fn state(&mut self, groups: Groups) -> &mut VcpuPage {
        self.require(groups);
        self.page()
    }
}

/// CR0: protected mode.
pub const CR0_PE: u64 = 1 << 0;
/// CR0: task switched.
pub const CR0_TS: u64 = 1 << 3;
/// CR0: extension type, always set.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: x87 errors are exceptions.
pub const CR0_NE: u64 = 1 << 5;
/// CR0: supervisor writes honour read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: not write-through.
pub const CR0_NW: u64 = 1 << 29;
/// CR0: cache disable.
pub const CR0_CD: u64 = 1 << 30;
/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: 4 MiB pages.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4: 64-bit page-table entries.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: process-context identifiers.
pub const CR4_PCIDE: u64 = 1 << 17;
/// CR4: XSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4: supervisor-mode execution prevention.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4: supervisor-mode access prevention.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4: protection keys.
pub const CR4_PKE: u64 = 1 << 22;
/// EFER: SYSCALL.
pub const EFER_SCE: u64 = 1 << 0;
/// EFER: long mode enabled.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: no-execute pages.
pub const EFER_NXE: u64 = 1 << 11;
/// RFLAGS: trap flag.
pub const RFLAGS_TF: u64 = 1 << 8;
/// RFLAGS: interrupts enabled.
pub const RFLAGS_IF: u64 = 1 << 9;
/// RFLAGS: direction.
pub const RFLAGS_DF: u64 = 1 << 10;
/// RFLAGS: resume.
pub const RFLAGS_RF: u64 = 1 << 16;
/// RFLAGS: virtual-8086 mode.
pub const RFLAGS_VM: u64 = 1 << 17;
/// RFLAGS: alignment check; with SMAP, access to user pages.
pub const RFLAGS_AC: u64 = 1 << 18;

/// Segment access rights: L, 64-bit code.
pub const ACCESS_LONG: u32 = 1 << 13;
/// Segment access rights: D/B, 32-bit.
pub const ACCESS_BIG: u32 = 1 << 14;

/// The groups that say in which mode the CPU is.
pub const MODE: Groups = Groups::RIP.union(Groups::CS_SS).union(Groups::CONTROL);

/// The current privilege level: DPL of SS, which virtualization hardware keeps so (SDM 3C 25.4.1). Needs `CS_SS`.
pub const fn privilege_level(page: &VcpuPage) -> u8 {
    (page.segments[SS].access >> 5) as u8 & 3
}

/// Size of code in bits: 16, 32 or 64. Needs [`MODE`].
pub const fn code_bits(page: &VcpuPage) -> u32 {
    let access = page.segments[CS].access;
    if page.efer & EFER_LMA != 0 && access & ACCESS_LONG != 0 {
        64
    } else if access & ACCESS_BIG != 0 {
        32
    } else {
        16
    }
}

/// The root of the page tables, four levels of them, if the CPU runs 64-bit code; `None` also where the last exit does not say.
#[inline]
pub const fn code_root(page: &VcpuPage) -> Option<u64> {
    let is_told = page.filled & Groups::CODE.bits() != 0 && page.code_root != abi::NO_CODE_ROOT;
    if is_told { Some(page.code_root) } else { None }
}

/// As [`complete_instruction`], where RIP and the interrupt shadow are all that changes. Says whether it was so; else nothing was
/// done.
#[inline(always)]
pub fn complete_plainly(page: &mut VcpuPage, length: u8) -> bool {
    let next = page.rip.wrapping_add(length.into());
    let is_plain = page.rflags & (RFLAGS_TF | RFLAGS_RF) == 0 && (page.rip ^ next) >> 16 == 0;
    if is_plain {
        page.rip = next;
        page.interruptibility &= !(Interruptibility::STI | Interruptibility::MOV_SS).bits();
        page.activity = ACTIVITY_ACTIVE;
        page.dirty |= Groups::RIP.bits();
    }
    is_plain
}

/// Puts the CPU behind the instruction of `length` bytes that was just emulated: RIP, the interrupt shadow, RF, and
/// the single-step trap if TF is set.
#[inline]
pub fn complete_instruction(vcpu: &mut impl Vcpu, length: u8) {
    let page = vcpu.page();
    let next = page.rip.wrapping_add(length.into());
    page.interruptibility &= !(Interruptibility::STI | Interruptibility::MOV_SS).bits();
    page.activity = ACTIVITY_ACTIVE;
    page.dirty |= Groups::RIP.bits();
    let traps = page.rflags & RFLAGS_TF != 0;
    page.rflags &= !RFLAGS_RF;
    // The mode matters only where RIP could wrap; elsewhere the kernel need not be asked for it.
    if (page.rip ^ next) >> 16 == 0 {
        page.rip = next;
    } else {
        wrap_rip(vcpu, next);
    }
    if traps {
        trap_single_step(vcpu);
    }
}

#[cold]
fn wrap_rip(vcpu: &mut impl Vcpu, next: u64) {
    let page = vcpu.state(MODE);
    page.rip = match code_bits(page) {
        64 => next,
        16 if page.cr0 & CR0_PE == 0 => next & 0xffff,
        _ => next & 0xffff_ffff,
    };
}

#[cold]
fn trap_single_step(vcpu: &mut impl Vcpu) {
    const DR6_SINGLE_STEP: u64 = 1 << 14;
    if vcpu.page().inject.is_valid() {
        return;
    }
    let page = vcpu.state(Groups::DEBUG);
    page.dr6 |= DR6_SINGLE_STEP;
    page.inject = Event::exception(fault::DEBUG_EXCEPTION, None);
    page.dirty |= (Groups::DEBUG | Groups::INJECT).bits();
}

/// Reads a general-purpose register; RSP needs `CS_SS`.
pub fn read_gpr(vcpu: &mut impl Vcpu, index: u8) -> u64 {
    let index = usize::from(index & 15);
    if index == gpr::RSP { vcpu.state(Groups::CS_SS).gpr[index] } else { vcpu.page().gpr[index] }
}

/// Writes a general-purpose register.
pub fn write_gpr(vcpu: &mut impl Vcpu, index: u8, value: u64) {
    let index = usize::from(index & 15);
    if index == gpr::RSP {
        let page = vcpu.state(Groups::CS_SS);
        page.gpr[index] = value;
        page.dirty |= Groups::CS_SS.bits();
    } else {
        vcpu.page().gpr[index] = value;
    }
}

/// EDX:EAX as one value.
pub fn read_edx_eax(page: &VcpuPage) -> u64 {
    page.gpr[gpr::RDX] << 32 | page.gpr[gpr::RAX] & 0xffff_ffff
}

/// Puts a value into EDX:EAX; the upper halves of both registers become zero.
pub fn write_edx_eax(page: &mut VcpuPage, value: u64) {
    page.gpr[gpr::RAX] = value & 0xffff_ffff;
    page.gpr[gpr::RDX] = value >> 32;
}

/// The state after reset with every group dirty, and nothing left of an earlier run.
pub fn reset(page: &mut VcpuPage) {
    page.reset();
    page.want = 0;
    page.run_flags = 0;
    page.intercepts = 0;
    page.exception_bitmap = 0;
    page.inject_length = 0;
    page.filled = abi::Groups::all().bits();
    // Nearly every instruction that has to be decoded needs no more than what is fetched by this.
    page.decode = Groups::CODE.bits();
}

/// A virtual CPU for tests: its page, and a record of what was asked of it.
#[cfg(any(test, feature = "fake"))]
#[derive(Clone, Debug)]
pub struct FakeVcpu {
    /// The page.
    pub page: alloc::boxed::Box<VcpuPage>,
    /// Groups that were required since the test last cleared this.
    pub required: Groups,
}

#[cfg(any(test, feature = "fake"))]
impl FakeVcpu {
    /// A CPU after reset.
    pub fn new() -> Self {
        let zero = abi::Segment::default();
        let table = abi::DescriptorTable::default();
        let mut page = alloc::boxed::Box::new(VcpuPage {
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            interruptibility: 0,
            activity: 0,
            exit_kind: 0,
            exit_length: 0,
            exit_info: [0; 8],
            notified: 0,
            dirty: 0,
            filled: 0,
            want: 0,
            run_flags: 0,
            deadline: 0,
            inject: Event::NONE,
            inject_length: 0,
            intercepts: 0,
            exception_bitmap: 0,
            decode: 0,
            tsc_offset: 0,
            segments: [zero; 6],
            ldtr: zero,
            tr: zero,
            gdtr: table,
            idtr: table,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            pdpte: [0; 4],
            xcr0: 0,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: 0,
            debugctl: 0,
            stores: [abi::Store::default(); abi::STORES],
            eoi_exits: [0; 4],
            code_root: abi::NO_CODE_ROOT,
            lines: [0; abi::LINES],
        });
        reset(&mut page);
        FakeVcpu { page, required: Groups::empty() }
    }

    /// A CPU in flat 64-bit mode, CPL 0, at `rip`, with the page tables at `cr3`.
    pub fn long_mode(rip: u64, cr3: u64) -> Self {
        let mut vcpu = Self::new();
        let page = &mut vcpu.page;
        page.rip = rip;
        page.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
        page.cr3 = cr3;
        page.cr4 = CR4_PAE;
        page.efer = EFER_LME | EFER_LMA | EFER_NXE;
        page.segments = [abi::Segment::new(0x18, 0, 0xffff_ffff, 0xc093); 6];
        page.segments[CS] = abi::Segment::new(0x10, 0, 0xffff_ffff, 0xa09b);
        vcpu
    }
}

#[cfg(any(test, feature = "fake"))]
impl Default for FakeVcpu {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(any(test, feature = "fake"))]
impl Vcpu for FakeVcpu {
    fn page(&mut self) -> &mut VcpuPage {
        &mut self.page
    }

    fn require(&mut self, groups: Groups) {
        self.required |= groups;
        self.page.filled |= groups.bits();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulated_instruction_ends_the_sti_shadow() {
        let mut vcpu = FakeVcpu::long_mode(0x1000, 0);
        vcpu.page.interruptibility = Interruptibility::STI.bits();
        vcpu.page.rflags |= RFLAGS_RF;
        complete_instruction(&mut vcpu, 3);
        assert_eq!((vcpu.page.rip, vcpu.page.interruptibility, vcpu.page.rflags), (0x1003, 0, 2));
    }

    #[test]
    fn a_debugger_sees_its_single_step_after_an_emulated_instruction() {
        let mut vcpu = FakeVcpu::long_mode(0x1000, 0);
        vcpu.page.rflags |= RFLAGS_TF;
        complete_instruction(&mut vcpu, 2);
        assert_eq!(vcpu.page.inject, Event::exception(1, None));
        assert_ne!(vcpu.page.dr6 & 1 << 14, 0);
    }

    #[test]
    fn rip_wraps_as_in_real_mode() {
        let mut vcpu = FakeVcpu::new();
        vcpu.page.rip = 0xffff;
        complete_instruction(&mut vcpu, 2);
        assert_eq!(vcpu.page.rip, 1);
    }
}
