//! The guest: its code, and the state it runs in.

#[cfg(target_os = "none")]
use bench_protocol::Samples;
use usys::abi::boot_info::Machine;
use usys::abi::vcpu::{self, DescriptorTable, Groups, Segment, VcpuPage};

/// Where its code is, in guest-physical memory.
pub const CODE: u64 = 0x1000;
/// Where its results go: 32-bit ticks.
pub const RESULTS: u64 = 0x8000;
/// Its page tables: PML4, and page-directory pointers of 1-GiB pages.
pub const TABLES: u64 = 0x1_0000;
/// Its memory in bytes.
pub const MEMORY: u64 = 2 << 20;
/// The vector of its interrupts.
pub const VECTOR: u8 = 0x41;
/// Its interrupt-descriptor table.
const IDT: u64 = 0xa000;
/// Its global descriptor table.
const GDT: u64 = 0xb000;
/// The end of its stack.
const STACK: u64 = 0xd000;
/// Page of a doorbell.
pub const BELL_PAGE: u64 = 0x8000_0000;
/// Port of a doorbell.
pub const BELL_PORT: u16 = 0x510;
/// Where pages appear when it touches them.
pub const DEMAND: u64 = 0x4000_0000;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    include_str!("../guest/src/interrupt.S"),
    include_str!("guest.S"),
    results = const RESULTS,
    total = const Samples::TOTAL,
    bell_call = const usys::abi::guest::DOORBELL_CALL,
    bell_port = const BELL_PORT,
    vector = const VECTOR,
);

/// A piece of the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Fills registers.
    Prepare,
    /// Measures nothing.
    Empty,
    /// CPUID.
    Cpuid,
    /// OUT.
    PioOut,
    /// IN.
    PioIn,
    /// VMCALL.
    Vmcall,
    /// VMMCALL.
    Vmmcall,
    /// A doorbell call by VMCALL.
    BellVmcall,
    /// A doorbell call by VMMCALL.
    BellVmmcall,
    /// OUT to a doorbell.
    BellPort,
    /// A write to a doorbell's page.
    BellPage,
    /// A doorbell call by VMCALL, until the interrupt that answers it is over.
    RoundtripVmcall,
    /// A doorbell call by VMMCALL, until the interrupt that answers it is over.
    RoundtripVmmcall,
    /// A self-IPI, until it is over.
    SelfIpi,
    /// The handler of [`VECTOR`].
    Handler,
    /// A first access to a page.
    Touch,
    /// Measures nothing, in real mode.
    RealEmpty,
    /// CPUID in real mode.
    RealCpuid,
}

#[cfg(target_os = "none")]
mod symbols {
    unsafe extern "C" {
        pub(super) static bench_guest_start: u8;
        pub(super) static bench_guest_end: u8;
        pub(super) static bench_guest_prepare: u8;
        pub(super) static bench_guest_empty: u8;
        pub(super) static bench_guest_cpuid: u8;
        pub(super) static bench_guest_pio_out: u8;
        pub(super) static bench_guest_pio_in: u8;
        pub(super) static bench_guest_vmcall: u8;
        pub(super) static bench_guest_vmmcall: u8;
        pub(super) static bench_guest_bell_vmcall: u8;
        pub(super) static bench_guest_bell_vmmcall: u8;
        pub(super) static bench_guest_bell_port: u8;
        pub(super) static bench_guest_bell_page: u8;
        pub(super) static bench_guest_roundtrip_vmcall: u8;
        pub(super) static bench_guest_roundtrip_vmmcall: u8;
        pub(super) static bench_guest_self_ipi: u8;
        pub(super) static bench_guest_handler: u8;
        pub(super) static bench_guest_touch: u8;
        pub(super) static bench_guest_real_empty: u8;
        pub(super) static bench_guest_real_cpuid: u8;
    }
}

/// The guest's code.
#[cfg(target_os = "none")]
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const symbols::bench_guest_start, &raw const symbols::bench_guest_end);
    // SAFETY: the two symbols enclose constant bytes of this program.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Guest-physical address of a piece.
#[cfg(target_os = "none")]
pub fn address(piece: Piece) -> u64 {
    let at = match piece {
        Piece::Prepare => &raw const symbols::bench_guest_prepare,
        Piece::Empty => &raw const symbols::bench_guest_empty,
        Piece::Cpuid => &raw const symbols::bench_guest_cpuid,
        Piece::PioOut => &raw const symbols::bench_guest_pio_out,
        Piece::PioIn => &raw const symbols::bench_guest_pio_in,
        Piece::Vmcall => &raw const symbols::bench_guest_vmcall,
        Piece::Vmmcall => &raw const symbols::bench_guest_vmmcall,
        Piece::BellVmcall => &raw const symbols::bench_guest_bell_vmcall,
        Piece::BellVmmcall => &raw const symbols::bench_guest_bell_vmmcall,
        Piece::BellPort => &raw const symbols::bench_guest_bell_port,
        Piece::BellPage => &raw const symbols::bench_guest_bell_page,
        Piece::RoundtripVmcall => &raw const symbols::bench_guest_roundtrip_vmcall,
        Piece::RoundtripVmmcall => &raw const symbols::bench_guest_roundtrip_vmmcall,
        Piece::SelfIpi => &raw const symbols::bench_guest_self_ipi,
        Piece::Handler => &raw const symbols::bench_guest_handler,
        Piece::Touch => &raw const symbols::bench_guest_touch,
        Piece::RealEmpty => &raw const symbols::bench_guest_real_empty,
        Piece::RealCpuid => &raw const symbols::bench_guest_real_cpuid,
    };
    CODE + (at as u64 - (&raw const symbols::bench_guest_start) as u64)
}

/// The guest exists on the machine only.
#[cfg(not(target_os = "none"))]
pub fn code() -> &'static [u8] {
    &[]
}

/// The guest exists on the machine only.
#[cfg(not(target_os = "none"))]
pub fn address(_: Piece) -> u64 {
    CODE
}

/// The guest's page tables: the first 4 GiB one to one.
pub fn page_tables() -> [(u64, u64); 5] {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let directory = TABLES + 0x1000;
    let gib = |index: u64| (directory + index * 8, index << 30 | LARGE | PRESENT_WRITABLE);
    [(TABLES, directory | PRESENT_WRITABLE), gib(0), gib(1), gib(2), gib(3)]
}

/// Real mode at a piece, with all segments at 0.
pub fn enter_real_mode(page: &mut VcpuPage, piece: Piece) {
    page.reset();
    // Its instructions are known.
    page.decode = 0;
    page.segments[vcpu::CS] = Segment::new(0, 0, 0xffff, 0x9b);
    page.rip = address(piece);
}

/// 64-bit mode at a piece, with paging on and everything that the hardware does not switch unlike the host's.
pub fn enter_long_mode(page: &mut VcpuPage, machine: Machine, guest_xcr0: u64) {
    const CR0: u64 = 0x8000_0033;
    const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const EFER_SCE_LME_LMA_NXE: u64 = 0xd01;
    let data = Segment::new(0x10, 0, 0xffff_ffff, 0xc093);
    page.reset();
    // Its instructions are known.
    page.decode = 0;
    page.segments = [data; 6];
    page.segments[vcpu::CS] = Segment::new(8, 0, 0xffff_ffff, 0xa09b);
    page.ldtr = Segment::new(0, 0, 0, Segment::UNUSABLE);
    page.tr = Segment::new(0x18, 0x7000, 0x67, 0x8b);
    page.gdtr = DescriptorTable { base: 0x6000, limit: 0x7f, reserved: 0 };
    page.idtr = page.gdtr;
    page.cr0 = CR0;
    page.cr3 = TABLES;
    page.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT;
    page.efer = EFER_SCE_LME_LMA_NXE;
    if machine.contains(Machine::XSAVE) {
        page.cr4 |= CR4_OSXSAVE;
        page.xcr0 = guest_xcr0;
    }
    page.dr = [0x1111_0000, 0x2222_0000, 0x3333_0000, 0x4444_0000];
    // Breakpoint 0 is on, where nothing is executed.
    page.dr7 = 0x401;
    page.star = 0x0013_0008_0000_0000;
    page.lstar = 0xffff_8000_1234_5678;
    page.cstar = 0xffff_8000_8765_4321;
    page.sfmask = 0x4_7700;
    page.kernel_gs_base = 0xffff_9000_0000_1000;
    page.sysenter_esp = 0xffff_a000_0000_2000;
    page.tsc_aux = if machine.contains(Machine::RDTSCP) { 0x55 } else { 0 };
    // Entries 1 and 5 write-combining.
    page.pat = 0x0007_0106_0007_0106;
    page.dirty = Groups::all().bits();
}

/// What the guest needs to take interrupts: an entry of its descriptor table, and code and data segments.
pub fn descriptors() -> [(u64, u64); 4] {
    let handler = address(Piece::Handler);
    let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32;
    [
        (IDT + u64::from(VECTOR) * 16, gate),
        (IDT + u64::from(VECTOR) * 16 + 8, 0),
        (GDT + 8, 0x00af_9b00_0000_ffff),
        (GDT + 16, 0x00cf_9300_0000_ffff),
    ]
}

/// With interrupts on, from the virtual APIC.
pub fn take_interrupts(page: &mut VcpuPage) {
    const RFLAGS_IF: u64 = 1 << 9;
    page.rflags |= RFLAGS_IF;
    (page.gdtr.base, page.gdtr.limit) = (GDT, 23);
    (page.idtr.base, page.idtr.limit) = (IDT, 0xfff);
    page.gpr[vcpu::gpr::RSP] = STACK;
    page.run_flags |= vcpu::RunFlags::VIRTUAL_APIC.bits();
    page.dirty |= (Groups::RIP | Groups::TABLES | Groups::CS_SS | Groups::APIC).bits();
}

/// At a piece, with `rsi` and what is added to it after each round.
pub fn jump(page: &mut VcpuPage, piece: Piece, rsi: u64, step: u64) {
    page.rip = address(piece);
    page.gpr[vcpu::gpr::RSI] = rsi;
    page.gpr[vcpu::gpr::RBP] = step;
    page.activity = vcpu::ACTIVITY_ACTIVE;
    page.dirty |= Groups::RIP.bits();
}
