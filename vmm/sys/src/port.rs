//! I/O ports.

use core::arch::asm;

/// Ports that a capability opened to this process. An access to a port that none opened faults and ends the process.
#[derive(Clone, Copy, Debug)]
pub struct PortRange {
    base: u16,
    count: u16,
}

impl PortRange {
    /// `count` ports from `base`.
    pub const fn new(base: u16, count: u16) -> Self {
        PortRange { base, count }
    }

    /// Reads a byte from the port at `offset`; 0xff, what an absent device reads as, outside the range.
    pub fn read(&self, offset: u16) -> u8 {
        let mut value = 0xff;
        if let Some(port) = self.port(offset, 1) {
            // SAFETY: IN touches no memory; the kernel refuses ports that this process has no authority for.
            unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack)) };
        }
        value
    }

    /// Writes a byte to the port at `offset`; outside the range nothing happens.
    pub fn write(&self, offset: u16, value: u8) {
        if let Some(port) = self.port(offset, 1) {
            // SAFETY: as in `read`.
            unsafe { asm!("out dx, al", in("al") value, in("dx") port, options(nomem, nostack)) };
        }
    }

    /// Writes two bytes to the ports from `offset`; outside the range nothing happens.
    pub fn write16(&self, offset: u16, value: u16) {
        if let Some(port) = self.port(offset, 2) {
            // SAFETY: as in `read`.
            unsafe { asm!("out dx, ax", in("ax") value, in("dx") port, options(nomem, nostack)) };
        }
    }

    /// Reads four bytes from the ports from `offset`; all ones outside the range.
    pub fn read32(&self, offset: u16) -> u32 {
        let mut value = u32::MAX;
        if let Some(port) = self.port(offset, 4) {
            // SAFETY: as in `read`.
            unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack)) };
        }
        value
    }

    /// Writes four bytes to the ports from `offset`; outside the range nothing happens.
    pub fn write32(&self, offset: u16, value: u32) {
        if let Some(port) = self.port(offset, 4) {
            // SAFETY: as in `read`.
            unsafe { asm!("out dx, eax", in("eax") value, in("dx") port, options(nomem, nostack)) };
        }
    }

    /// Fills `into` with 16-bit words from the port at `offset`; a last odd byte, and everything outside the range, is left as it
    /// is.
    pub fn read_words(&self, offset: u16, into: &mut [u8]) {
        if let Some(port) = self.port(offset, 2) {
            // SAFETY: INS writes `into.len() / 2` words from the start of `into`, upwards since the direction flag is clear;
            // the kernel refuses ports that this process has no authority for.
            unsafe {
                asm!(
                    "rep insw",
                    in("dx") port,
                    inout("rdi") into.as_mut_ptr() => _,
                    inout("rcx") into.len() / 2 => _,
                    options(nostack, preserves_flags),
                );
            }
        }
    }

    /// Writes `from` as 16-bit words to the port at `offset`; a last odd byte is dropped, and outside the range nothing happens.
    pub fn write_words(&self, offset: u16, from: &[u8]) {
        if let Some(port) = self.port(offset, 2) {
            // SAFETY: OUTS reads `from.len() / 2` words from the start of `from`; otherwise as in `read_words`.
            unsafe {
                asm!(
                    "rep outsw",
                    in("dx") port,
                    inout("rsi") from.as_ptr() => _,
                    inout("rcx") from.len() / 2 => _,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
    }

    fn port(&self, offset: u16, size: u16) -> Option<u16> {
        if offset.checked_add(size)? > self.count {
            return None;
        }
        self.base.checked_add(offset)
    }
}
