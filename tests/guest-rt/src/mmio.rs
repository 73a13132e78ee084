//! Memory-mapped registers, through as many kinds of instruction as guests use on them.
//!
//! Addresses are physical, below 4 GiB, and belong to a device or to nothing: what the runtime lives in is RAM.

use core::arch::asm;

/// Reads a register by a plain MOV.
pub fn read32(address: u64) -> u32 {
    // SAFETY: a mapped device address (module documentation).
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register by a plain MOV.
pub fn write32(address: u64, value: u32) {
    // SAFETY: a mapped device address (module documentation).
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Defines `fn name(address, operand) -> result` around one instruction with a memory operand `[{a}]`, a register
/// `{v}` that holds the operand before and the result afterwards.
macro_rules! forms {
    ($($(#[$doc:meta])* $name:ident: $template:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(address: u64, operand: u64) -> u64 {
            let mut value = operand;
            // SAFETY: a mapped device address (module documentation), and no other memory.
            unsafe { asm!($template, a = inout(reg) address => _, v = inout(reg) value, options(nostack)) };
            value
        }
    )*};
}

forms! {
    /// MOV r64, m64.
    mov_load64: "mov {v}, [{a}]";
    /// MOV r16, m16: the rest of the operand stays.
    mov_load16: "mov {v:x}, [{a}]";
    /// MOV r8, m8: the rest of the operand stays.
    mov_load8: "mov {v:l}, [{a}]";
    /// MOV m8, r8.
    mov_store8: "mov [{a}], {v:l}";
    /// MOV m16, r16.
    mov_store16: "mov [{a}], {v:x}";
    /// MOV m64, r64.
    mov_store64: "mov [{a}], {v}";
    /// MOVZX r32, m8.
    movzx8: "movzx {v:e}, byte ptr [{a}]";
    /// MOVZX r32, m16.
    movzx16: "movzx {v:e}, word ptr [{a}]";
    /// MOVSX r64, m8.
    movsx8: "movsx {v}, byte ptr [{a}]";
    /// MOVSXD r64, m32.
    movsxd: "movsxd {v}, dword ptr [{a}]";
    /// OR m32, r32.
    or_memory: "or [{a}], {v:e}";
    /// AND m32, r32.
    and_memory: "and [{a}], {v:e}";
    /// XOR m32, r32.
    xor_memory: "xor [{a}], {v:e}";
    /// ADD m32, r32.
    add_memory: "add [{a}], {v:e}";
    /// SUB m32, r32.
    sub_memory: "sub [{a}], {v:e}";
    /// OR r32, m32.
    or_register: "or {v:e}, [{a}]";
    /// AND r32, m32.
    and_register: "and {v:e}, [{a}]";
    /// ADD r32, m32.
    add_register: "add {v:e}, [{a}]";
    /// XCHG m32, r32.
    xchg: "xchg [{a}], {v:e}";
    /// CMP m32, r32, then SETE.
    cmp_equal: "cmp [{a}], {v:e}\n sete {v:l}\n movzx {v:e}, {v:l}";
    /// TEST m32, r32, then SETNZ.
    test_any: "test [{a}], {v:e}\n setnz {v:l}\n movzx {v:e}, {v:l}";
    /// BT m32, imm8 of 31, then SETC.
    bt31: "bt dword ptr [{a}], 31\n setc {v:l}\n movzx {v:e}, {v:l}";
    /// MOV through a base, a scaled index and a displacement, with FS prefix (base 0).
    mov_load_sib: "sub {a}, 0x240\n shr {v}, 3\n mov {v:e}, fs:[{a} + {v}*8 + 0x240]";
}

/// MOV m32, imm32 of 5A00_0000H.
pub fn mov_store_imm(address: u64) {
    // SAFETY: a mapped device address (module documentation).
    unsafe { asm!("mov dword ptr [{}], 0x5a000000", in(reg) address, options(nostack, preserves_flags)) };
}

/// REP MOVSD from a device to memory.
pub fn copy_from(address: u64, to: &mut [u32]) {
    // SAFETY: a mapped device address (module documentation); the destination is as long as the count says.
    unsafe {
        asm!(
            "rep movsd",
            inout("rcx") to.len() => _, inout("rsi") address => _, inout("rdi") to.as_mut_ptr() => _, options(nostack),
        );
    }
}

/// REP MOVSD from memory to a device, to ascending addresses.
pub fn copy_to(address: u64, from: &[u32]) {
    // SAFETY: a mapped device address (module documentation); the source is as long as the count says.
    unsafe {
        asm!(
            "rep movsd",
            inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _, inout("rdi") address => _, options(nostack),
        );
    }
}

/// REP STOSD to a device.
pub fn fill(address: u64, value: u32, count: usize) {
    // SAFETY: a mapped device address (module documentation).
    unsafe {
        asm!(
            "rep stosd",
            inout("rcx") count => _, in("eax") value, inout("rdi") address => _, options(nostack),
        );
    }
}
