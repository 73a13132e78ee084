//! The FPU state of a vCPU, and a vCPU that goes on as another one.

use super::vcpu::HALT;
use super::{Group, Needs, bind, group};
use crate::guest::{CODE, Guest};
use crate::prelude::*;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{Event, FpuOperation, Groups, gpr};

pub(super) const GROUP: Group = group!(
    "FPU state of vCPUs",
    Needs::Guests => [
        a_vcpu_goes_on_as_another_one_with_all_its_state,
        an_image_that_xrstor_would_refuse_is_refused,
        a_reset_clears_the_fpu,
        the_fpu_needs_a_page_of_ram_and_rights,
    ],
);

const READ: u64 = FpuOperation::Read as u64;
const WRITE: u64 = FpuOperation::Write as u64;
const RESET: u64 = FpuOperation::Reset as u64;

/// Where an image has MXCSR, and the header of XSAVE (SDM 1 table 10-2, 13.4).
const MXCSR: usize = 24;
const HEADER: usize = 512;

/// Where the guest that moves has its tables, what it loads, what it stores before and after, and how often its handler ran.
const IDT: u64 = 0x9000;
const GDT: u64 = 0xa000;
const VALUES: u64 = 0xb000;
const BEFORE: u64 = 0xc000;
const AFTER: u64 = 0xd000;
const INTERRUPTS: u64 = 0xb800;
/// The interrupt that is pending while it moves.
const VECTOR: u8 = 0x31;
/// MSRs that a guest writes by itself, and values.
const MSRS: [(u64, u64); 10] = [
    (0x174, 0x10),
    (0x175, 0x1122_3344),
    (0x176, 0x5566_7788),
    (0xc000_0081, 0x0011_0008_1234_5678),
    (0xc000_0082, 0x1234_5678_9abc),
    (0xc000_0083, 0x1357_9bdf),
    (0xc000_0084, 0x700),
    (0xc000_0100, 0x4444_5000),
    (0xc000_0101, 0x6666_7000),
    (0xc000_0102, 0x7654_3210_fedc),
];

core::arch::global_asm!(
    // Runs at `CODE` of the guest, in 64-bit mode. EBX: 1 if there is AVX.
    ".pushsection .text.conformance_move, \"ax\"",
    ".global conformance_move",
    ".global conformance_move_handler",
    ".global conformance_move_end",
    "conformance_move:",
    "mov esi, 0xb000",
    "fninit",
    "fldcw word ptr [rsi + 0x400]",
    "ldmxcsr dword ptr [rsi + 0x404]",
    "fldpi",
    "fld1",
    "test ebx, ebx",
    "jz 2f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovdqu ymm\\n, [rsi + 32 * \\n]",
    ".endr",
    "jmp 3f",
    "2:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "movdqu xmm\\n, [rsi + 32 * \\n]",
    ".endr",
    "3:",
    "lea r8, [rsi + 0x500]",
    "mov r9d, 10",
    "4:",
    "mov ecx, [r8]",
    "mov eax, [r8 + 8]",
    "mov edx, [r8 + 12]",
    "wrmsr",
    "add r8, 16",
    "dec r9d",
    "jnz 4b",
    ".irp n, 0, 1, 2, 3, 6",
    "mov rax, [rsi + 0x700 + 8 * \\n]",
    "mov dr\\n, rax",
    ".endr",
    "mov edi, 0xc000",
    "call 5f",
    // Here the vCPU moves.
    "cpuid",
    "mov edi, 0xd000",
    "call 5f",
    "hlt",
    // Stores everything at RDI.
    "5:",
    "test ebx, ebx",
    "jz 6f",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 [rdi]",
    "jmp 7f",
    "6:",
    "fxsave64 [rdi]",
    "7:",
    "lea r8, [rsi + 0x500]",
    "lea r10, [rdi + 0x400]",
    "mov r9d, 10",
    "8:",
    "mov ecx, [r8]",
    "rdmsr",
    "mov [r10], eax",
    "mov [r10 + 4], edx",
    "add r8, 16",
    "add r10, 8",
    "dec r9d",
    "jnz 8b",
    ".irp n, 0, 1, 2, 3, 6, 7",
    "mov rax, dr\\n",
    "mov [rdi + 0x500 + 8 * \\n], rax",
    ".endr",
    "pushfq",
    "pop rax",
    "mov [rdi + 0x600], rax",
    "mov [rdi + 0x608], rbx",
    "mov [rdi + 0x610], rbp",
    "mov [rdi + 0x618], rsp",
    "mov [rdi + 0x620], r11",
    "mov [rdi + 0x628], r12",
    "mov [rdi + 0x630], r13",
    "mov [rdi + 0x638], r14",
    "mov [rdi + 0x640], r15",
    "sgdt [rdi + 0x650]",
    "sidt [rdi + 0x660]",
    "ret",
    "conformance_move_handler:",
    "inc dword ptr [rsi + 0x800]",
    "iretq",
    "conformance_move_end:",
    ".popsection",
);

unsafe extern "C" {
    static conformance_move: u8;
    static conformance_move_handler: u8;
    static conformance_move_end: u8;
}

/// A page that images go through: the capability, and where it is.
fn image_page(w: &mut World) -> Seen<(Sel, &'static mut [u8; PAGE as usize])> {
    let memory = w.ram(1)?;
    let address = w.view(memory, 1)?;
    // SAFETY: the page is mapped until the test ends, which alone refers to it; the kernel writes it in calls only.
    Ok((memory, unsafe { &mut *(address as *mut [u8; PAGE as usize]) }))
}

fn has_avx(w: &World) -> bool {
    w.info.guest_xcr0 & 7 == 7
}

/// A guest that loads every register there is, and halts after it stored them twice, with CPUID in between.
fn traveller(w: &mut World) -> Seen<Guest> {
    let mut guest = Guest::new(w)?;
    guest.long_mode();
    let start = &raw const conformance_move;
    // SAFETY: the symbols are the ends of the code above.
    let (code, handler) = unsafe {
        let length = (&raw const conformance_move_end).offset_from(start) as usize;
        (
            core::slice::from_raw_parts(start, length),
            CODE + (&raw const conformance_move_handler).offset_from(start) as u64,
        )
    };
    guest.code(code);
    for (at, descriptor) in (GDT..).step_by(8).zip([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff_u64]) {
        guest.write(at, &descriptor.to_le_bytes());
    }
    let gate = handler | 8 << 16 | 0x8e00 << 32;
    guest.write(IDT + u64::from(VECTOR) * 16, &gate.to_le_bytes());
    for index in 0..64 {
        guest.write(VALUES + 8 * index, &0x0123_4567_89ab_cdef_u64.wrapping_mul(index + 1).to_le_bytes());
    }
    guest.write(VALUES + 0x400, &0x0f7f_u32.to_le_bytes());
    guest.write(VALUES + 0x404, &0x7f80_u32.to_le_bytes());
    for (at, (index, value)) in (VALUES + 0x500..).step_by(16).zip(MSRS) {
        guest.write(at, &index.to_le_bytes());
        guest.write(at + 8, &value.to_le_bytes());
    }
    for (register, value) in [(0, 0x1111), (1, 0x2222), (2, 0x3333), (3, 0x4444), (6, 0xffff_0ff5_u64)] {
        guest.write(VALUES + 0x700 + 8 * register, &value.to_le_bytes());
    }
    let (has_avx, machine_xcr0) = (has_avx(w), w.info.guest_xcr0);
    let page = guest.page();
    for (index, register) in page.gpr.iter_mut().enumerate().skip(gpr::RBP) {
        *register = 0x1111_2222_3333_0000 + index as u64;
    }
    page.gpr[gpr::RBX] = has_avx.into();
    if has_avx {
        page.cr4 |= 1 << 18;
        page.xcr0 = machine_xcr0 & 7;
    }
    page.rflags |= 1 << 9;
    (page.gdtr.base, page.gdtr.limit) = (GDT, 23);
    (page.idtr.base, page.idtr.limit) = (IDT, 0xfff);
    Ok(guest)
}

/// What the guest stored, without what the last x87 instruction was, which not every CPU saves.
fn stored(guest: &Guest, at: u64) -> [u8; 0x680] {
    // SAFETY: the guest's memory is mapped, and no guest runs.
    let mut stored = unsafe { ((guest.ram + at) as *const [u8; 0x680]).read_volatile() };
    stored[6..24].fill(0);
    stored
}

fn a_vcpu_goes_on_as_another_one_with_all_its_state(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let (memory, image) = image_page(w)?;
    let mut guest = traveller(w)?;
    guest.run_to(ExitKind::Cpuid)?;
    guest.read(Groups::all())?;
    call(VcpuFpu, guest.vcpu, [READ, memory, 0]).done()?;
    equal("MXCSR in the image", (image[MXCSR], image[MXCSR + 1]), (0x80, 0x7f))?;

    let mut state = guest.page().clone();
    state.rip += 2;
    state.inject = Event::interrupt(VECTOR);
    state.dirty = Groups::all().bits();
    guest.replace_vcpu(w, cpu)?;
    *guest.page() = state;
    w.call_on(cpu, VcpuFpu, guest.vcpu, [WRITE, memory, 0])?.done()?;
    let kind = w.call_on(cpu, VcpuRun, guest.vcpu, [])?.value()?;
    equal("kind", kind, ExitKind::Hlt as u64)?;

    let (before, after) = (stored(&guest, BEFORE), stored(&guest, AFTER));
    holds("the guest stored something", before[160..].iter().any(|&byte| byte != 0))?;
    if let Some(at) = (0..before.len()).find(|&at| before[at] != after[at]) {
        return Err(Failure::new("what the guest stored", (at, after[at]), (at, before[at])));
    }
    // SAFETY: the guest's memory is mapped.
    let count = unsafe { ((guest.ram + INTERRUPTS) as *const u32).read_volatile() };
    equal("times that the pending interrupt came", count, 1)
}

fn an_image_that_xrstor_would_refuse_is_refused(w: &mut World) -> Check {
    let (memory, image) = image_page(w)?;
    let mut guest = traveller(w)?;
    guest.run_to(ExitKind::Cpuid)?;
    call(VcpuFpu, guest.vcpu, [READ, memory, 0]).done()?;
    let good = *image;
    // A bit of each reserved byte, and components that there are not, and the compacted format.
    let bad = (HEADER + 8..HEADER + 64).chain([MXCSR + 2, MXCSR + 3, HEADER + 1, HEADER + 7]);
    for at in bad {
        *image = good;
        image[32] ^= 0xff;
        image[at] |= 0x80;
        call(VcpuFpu, guest.vcpu, [WRITE, memory, 0])
            .fails(BadArgument)
            .map_err(|Failure(why)| Failure(alloc::format!("byte {at}: {why}")))?;
    }
    call(VcpuFpu, guest.vcpu, [READ, memory, 0]).done()?;
    holds("a refused image changes nothing", *image == good)?;
    // What is not reserved may be anything: the guest goes on with it.
    image[HEADER + 64..].fill(0xa5);
    image[32..HEADER].fill(0x5a);
    call(VcpuFpu, guest.vcpu, [WRITE, memory, 0]).done()?;
    let page = guest.page();
    page.rip = CODE;
    page.dirty |= Groups::RIP.bits();
    guest.run_to(ExitKind::Cpuid)
}

fn a_reset_clears_the_fpu(w: &mut World) -> Check {
    let (memory, image) = image_page(w)?;
    let mut guest = traveller(w)?;
    guest.run_to(ExitKind::Cpuid)?;
    call(VcpuFpu, guest.vcpu, [RESET]).done()?;
    call(VcpuFpu, guest.vcpu, [READ, memory, 0]).done()?;
    let mut expected = [0; 464];
    (expected[0], expected[1], expected[MXCSR], expected[MXCSR + 1]) = (0x7f, 3, 0x80, 0x1f);
    holds("the image is that after reset", image[..464] == expected && image[512..].iter().all(|&b| b == 0))?;
    guest.read(Groups::XCR0)?;
    equal("XCR0", guest.page().xcr0, u64::from(w.info.guest_xcr0 != 0))?;
    // So the guest finds it: FXSAVE64 [EDI]; HLT.
    guest.code(&[0x48, 0x0f, 0xae, 0x07, 0xf4]);
    guest.restart();
    guest.page().gpr[gpr::RDI] = AFTER;
    guest.run_to(ExitKind::Hlt)?;
    let after = stored(&guest, AFTER);
    equal("x87 control, MXCSR", (after[0], after[1], after[MXCSR], after[MXCSR + 1]), (0x7f, 3, 0x80, 0x1f))?;
    holds("the registers are empty", after[32..416].iter().all(|&byte| byte == 0))
}

fn the_fpu_needs_a_page_of_ram_and_rights(w: &mut World) -> Check {
    let (memory, image) = image_page(w)?;
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    let vcpu = guest.vcpu;
    call(VcpuFpu, vcpu, [READ, memory, 0]).done()?;
    for operation in [3, 4, 1 << 32] {
        call(VcpuFpu, vcpu, [operation, memory, 0]).fails(BadArgument)?;
    }
    for operation in [READ, WRITE] {
        call(VcpuFpu, vcpu, [operation, vcpu, 0]).fails(BadType)?;
        call(VcpuFpu, vcpu, [operation, 0, 0]).fails(BadSelector)?;
        for page in [1, u64::MAX] {
            call(VcpuFpu, vcpu, [operation, memory, page]).fails(BadArgument)?;
        }
        if let Some(device) = bind::device_page(w)? {
            call(VcpuFpu, vcpu, [operation, device, 0]).fails(BadArgument)?;
        }
        call(VcpuFpu, memory, [operation, memory, 0]).fails(BadType)?;
        let no_run = w.without(vcpu, Rights::VCPU_RUN)?;
        call(VcpuFpu, no_run, [operation, memory, 0]).fails(BadRights)?;
    }
    let (reader, writer) = (w.without(memory, Rights::WRITE)?, w.without(memory, Rights::READ)?);
    call(VcpuFpu, vcpu, [READ, reader, 0]).fails(BadRights)?;
    call(VcpuFpu, vcpu, [WRITE, writer, 0]).fails(BadRights)?;
    call(VcpuFpu, vcpu, [WRITE, reader, 0]).done()?;
    image.fill(0);
    call(VcpuFpu, vcpu, [READ, writer, 0]).done()?;
    equal("x87 control", (image[0], image[1]), (0x7f, 3))?;
    guest.run_to(ExitKind::Hlt)
}
