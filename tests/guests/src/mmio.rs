//! Memory-mapped registers through many kinds of instruction.
//!
//! The APIC timer's initial count serves as a register of 32 plain bits: its interrupt is masked.

use trt::lapic::{self, Lapic, Mode, reg};
use trt::mmio as m;
use trt::{check, ioapic, is_nacre, skip};

const SCRATCH: u64 = lapic::BASE + reg::INITIAL_COUNT as u64;
/// An address without a device or memory on Nacre's board.
const HOLE: u64 = 0xfd00_0000;
const VALUE: u32 = 0xa1b2_c3d4;

/// The guest.
pub fn run() {
    let apic = Lapic::enable(Mode::Xapic);
    apic.write(reg::LVT_TIMER, lapic::LVT_MASKED | 0xff);
    moves();
    arithmetic();
    comparisons();
    strings();
    local_apic(&apic);
    io_apic();
    if is_nacre() { hole() } else { skip!("what an address without a device does is the board's own") }
}

fn scratch(value: u32) {
    m::write32(SCRATCH, value);
}

fn moves() {
    scratch(VALUE);
    check!(eq m::read32(SCRATCH), VALUE, "MOV writes and reads a register");
    m::mov_store_imm(SCRATCH);
    check!(eq m::read32(SCRATCH), 0x5a00_0000, "MOV stores an immediate operand");
    scratch(VALUE);
    check!(eq m::movsxd(SCRATCH, 0), 0xffff_ffff_a1b2_c3d4, "MOVSXD extends the sign");
    check!(
        eq m::mov_load_sib(SCRATCH - 0x80, 0x80), VALUE.into(),
        "MOV finds base, scaled index and displacement",
    );
    check!(eq m::xchg(SCRATCH, 0x1234_5678), VALUE.into(), "XCHG returns what the register held");
    check!(eq m::read32(SCRATCH), 0x1234_5678, "XCHG stores what the operand held");
}

/// One instruction that reads, changes and writes a register: its name, its form, its operand, the result.
type MemoryForm = (&'static str, fn(u64, u64) -> u64, u64, u32);

fn arithmetic() {
    let forms: [MemoryForm; 5] = [
        ("OR", m::or_memory, 0x0f0f_0000, VALUE | 0x0f0f_0000),
        ("AND", m::and_memory, 0xffff_00ff, VALUE & 0xffff_00ff),
        ("XOR", m::xor_memory, 0xffff_ffff, !VALUE),
        ("ADD", m::add_memory, 0x0101, VALUE + 0x0101),
        ("SUB", m::sub_memory, 0x0101, VALUE - 0x0101),
    ];
    for (name, form, operand, expected) in forms {
        scratch(VALUE);
        form(SCRATCH, operand);
        check!(eq m::read32(SCRATCH), expected, "{name} with a memory operand as destination");
    }
    scratch(VALUE);
    check!(eq m::or_register(SCRATCH, 0x0f), (VALUE | 0x0f).into(), "OR with a memory operand as source");
    check!(
        eq m::and_register(SCRATCH, 0xffff), (VALUE & 0xffff).into(),
        "AND with a memory operand as source",
    );
    check!(eq m::add_register(SCRATCH, 1), (VALUE + 1).into(), "ADD with a memory operand as source");
}

fn comparisons() {
    scratch(VALUE);
    check!(eq m::cmp_equal(SCRATCH, VALUE.into()), 1, "CMP sets ZF for equal operands");
    check!(eq m::cmp_equal(SCRATCH, 1), 0, "CMP clears ZF for different operands");
    check!(eq m::test_any(SCRATCH, 0x8000_0000), 1, "TEST clears ZF for a common bit");
    check!(eq m::test_any(SCRATCH, 0x0000_0003), 0, "TEST sets ZF without a common bit");
    check!(eq m::bt31(SCRATCH, 0), 1, "BT finds a bit");
}

fn strings() {
    scratch(VALUE);
    let mut words = [0; 1];
    m::copy_from(SCRATCH, &mut words);
    check!(eq words, [VALUE], "MOVS reads a register");
    m::copy_to(SCRATCH, &[0x0bad_cafe]);
    check!(eq m::read32(SCRATCH), 0x0bad_cafe, "MOVS writes a register");
    m::fill(SCRATCH, 0x0123_4567, 1);
    check!(eq m::read32(SCRATCH), 0x0123_4567, "STOS writes a register");
    scratch(0);
}

fn local_apic(apic: &Lapic) {
    let version = apic.read(reg::VERSION);
    check!((0x10..0x20).contains(&(version & 0xff)), "the local APIC is an integrated one");
    check!(version >> 16 & 0xff >= 3, "the local APIC has at least four local vectors");
    apic.write(reg::TPR, 0x35);
    check!(eq apic.read(reg::TPR), 0x35, "the task priority holds what was written");
    apic.write(reg::TPR, 0);
    apic.write(reg::LDR, 0x0100_0000);
    check!(eq apic.read(reg::LDR), 0x0100_0000, "the logical destination holds what was written");
    apic.write(reg::SVR, 0x1ff);
    check!(eq apic.read(reg::SVR) & 0x1ff, 0x1ff, "the APIC stays enabled with spurious vector FFH");
}

fn io_apic() {
    let lines = ioapic::lines();
    check!(lines >= 24, "the I/O APIC has {lines} lines");
    for line in [0, 23] {
        let entry = 0x0300_0000_0001_0045;
        ioapic::set_entry(line, entry);
        check!(eq ioapic::entry(line), entry, "line {line}'s redirection entry holds what was written");
    }
    ioapic::set_entry(23, !0);
    check!(
        eq ioapic::entry(23) & (ioapic::REMOTE_IRR | 1 << 12), 0,
        "status bits of a redirection entry are read-only",
    );
    ioapic::set_entry(23, ioapic::MASKED);
    m::write32(ioapic::BASE, 0x11 + 2 * 23);
    m::write32(ioapic::BASE + ioapic::DATA, 0);
    m::or_memory(ioapic::BASE + ioapic::DATA, 0x0500_0000);
    check!(eq m::read32(ioapic::BASE + ioapic::DATA), 0x0500_0000, "OR works on the I/O APIC's data window");
}

fn hole() {
    check!(eq m::read32(HOLE), u32::MAX, "four bytes from a hole are all ones");
    check!(eq m::mov_load64(HOLE, 0), u64::MAX, "eight bytes from a hole are all ones");
    check!(
        eq m::mov_load16(HOLE, 0x1122_3344_5566_7788), 0x1122_3344_5566_ffff,
        "MOV r16 keeps the rest of the register",
    );
    check!(
        eq m::mov_load8(HOLE, 0x1122_3344_5566_7788), 0x1122_3344_5566_77ff,
        "MOV r8 keeps the rest of the register",
    );
    check!(eq m::movzx8(HOLE, 1 << 63), 0xff, "MOVZX extends a byte with zeroes");
    check!(eq m::movzx16(HOLE, 1 << 63), 0xffff, "MOVZX extends two bytes with zeroes");
    check!(eq m::movsx8(HOLE, 0), u64::MAX, "MOVSX extends a byte with its sign");
    m::mov_store8(HOLE, 0);
    m::mov_store16(HOLE, 0);
    m::mov_store64(HOLE, 0);
    m::fill(HOLE, 0, 64);
    check!(eq m::read32(HOLE), u32::MAX, "writes to a hole of every size are lost");
    let mut words = [0; 65];
    m::copy_from(HOLE, &mut words[..64]);
    check!(
        words[..64].iter().all(|word| *word == u32::MAX) && words[64] == 0,
        "REP MOVSD reads 64 double words of a hole"
    );
    m::copy_to(HOLE, &words);
    check!(eq m::read32(HOLE), u32::MAX, "REP MOVSD to a hole is lost");
}
