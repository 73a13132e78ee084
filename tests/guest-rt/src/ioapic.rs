//! The I/O APIC at its usual address.

use crate::mmio;

/// Address of the index register; data is 10H behind it.
pub const BASE: u64 = 0xfec0_0000;
/// Offset of the data register.
pub const DATA: u64 = 0x10;

/// Index of the ID register.
pub const ID: u32 = 0;
/// Index of the version register: version in bits 7:0, last entry in bits 23:16.
pub const VERSION: u32 = 1;

/// Redirection entry: masked.
pub const MASKED: u64 = 1 << 16;
/// Redirection entry: level-triggered.
pub const LEVEL: u64 = 1 << 15;
/// Redirection entry: a level-triggered interrupt was accepted and is not ended yet.
pub const REMOTE_IRR: u64 = 1 << 14;

/// Reads a register.
pub fn read(index: u32) -> u32 {
    mmio::write32(BASE, index);
    mmio::read32(BASE + DATA)
}

/// Writes a register.
pub fn write(index: u32, value: u32) {
    mmio::write32(BASE, index);
    mmio::write32(BASE + DATA, value);
}

/// Number of interrupt lines.
pub fn lines() -> u32 {
    (read(VERSION) >> 16 & 0xff) + 1
}

/// Reads the redirection entry of a line.
pub fn entry(line: u32) -> u64 {
    u64::from(read(0x11 + 2 * line)) << 32 | u64::from(read(0x10 + 2 * line))
}

/// Writes the redirection entry of a line; it is masked while its halves disagree.
pub fn set_entry(line: u32, entry: u64) {
    write(0x10 + 2 * line, MASKED as u32);
    write(0x11 + 2 * line, (entry >> 32) as u32);
    write(0x10 + 2 * line, entry as u32);
}
