//! Port I/O and the end of the guest.

use core::arch::asm;

/// Reads a byte from an I/O port.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: IN changes no memory; what a device does on a read is what the tests are about.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads two bytes from an I/O port.
pub fn inw(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as for `inb`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Reads four bytes from an I/O port.
pub fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as for `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to an I/O port. No device of either board does DMA on a port write.
pub fn outb(port: u16, value: u8) {
    // SAFETY: OUT changes no memory of the guest on a board without DMA.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes two bytes to an I/O port.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as for `outb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes four bytes to an I/O port.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as for `outb`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// IN AL, DX with `before` in RAX; returns all of RAX.
pub fn in_al(port: u16, before: u64) -> u64 {
    let mut rax = before;
    // SAFETY: as for `inb`.
    unsafe { asm!("in al, dx", in("dx") port, inout("rax") rax, options(nomem, nostack, preserves_flags)) };
    rax
}

/// IN AX, DX with `before` in RAX; returns all of RAX.
pub fn in_ax(port: u16, before: u64) -> u64 {
    let mut rax = before;
    // SAFETY: as for `inb`.
    unsafe { asm!("in ax, dx", in("dx") port, inout("rax") rax, options(nomem, nostack, preserves_flags)) };
    rax
}

/// IN EAX, DX with `before` in RAX; returns all of RAX.
pub fn in_eax(port: u16, before: u64) -> u64 {
    let mut rax = before;
    // SAFETY: as for `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, inout("rax") rax, options(nomem, nostack, preserves_flags)) };
    rax
}

/// REP OUTSB.
pub fn outsb(port: u16, from: &[u8]) {
    // SAFETY: reads `from` and nothing else.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rcx") from.len() => _, inout("rsi") from.as_ptr() => _,
            options(nostack, readonly, preserves_flags));
    }
}

/// REP INSB.
pub fn insb(port: u16, to: &mut [u8]) {
    // SAFETY: writes `to` and nothing else.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags));
    }
}

/// REP INSW.
pub fn insw(port: u16, to: &mut [u16]) {
    // SAFETY: writes `to` and nothing else.
    unsafe {
        asm!("rep insw", in("dx") port, inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags));
    }
}

/// REP INSD.
pub fn insd(port: u16, to: &mut [u32]) {
    // SAFETY: writes `to` and nothing else.
    unsafe {
        asm!("rep insd", in("dx") port, inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags));
    }
}

/// OUTSB and INSB without REP, with DF set: one byte out, one byte in, and how far RSI and RDI went.
pub fn outsb_insb_backwards(out_port: u16, in_port: u16, byte: u8) -> (u8, i64, i64) {
    let mut received = 0_u8;
    let (from, to) = (&raw const byte, &raw mut received);
    let (from_end, to_end): (*const u8, *mut u8);
    // SAFETY: reads `byte` and writes `received`; DF is cleared again.
    unsafe {
        asm!("std", "mov edx, {o:e}", "outsb", "mov edx, {i:e}", "insb", "cld",
            o = in(reg) u32::from(out_port), i = in(reg) u32::from(in_port), out("edx") _,
            inout("rsi") from => from_end, inout("rdi") to => to_end, options(nostack));
    }
    (received, from_end as i64 - from as i64, to_end as i64 - to as i64)
}

/// Ends the virtual machine with an exit value; `tproto::exit` says what the host makes of it.
pub fn exit(value: u32) -> ! {
    outl(tproto::exit::PORT, value);
    // The board has no such port, which only a wrong command line explains: stop where a debugger can see it.
    crate::cpu::stop()
}
