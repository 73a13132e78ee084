//! I/O ports. Which ports the kernel touches is the callers' affair; none of them changes memory.

use core::arch::asm;

/// OUT, 8 bits.
#[inline]
pub fn write8(port: u16, value: u8) {
    // SAFETY: port I/O; the kernel's callers only address devices that do not write memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// IN, 8 bits.
#[inline]
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `write8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// OUT, 32 bits.
#[inline]
pub fn write32(port: u16, value: u32) {
    // SAFETY: as in `write8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// IN, 32 bits.
#[inline]
pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `write8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}
