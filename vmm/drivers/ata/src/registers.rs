//! Registers and commands (ATA/ATAPI-6, 7 and 8).

/// The registers of a channel. Where reading and writing mean different registers, the name has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Error; features.
    ErrorFeatures = 1,
    /// Sector count.
    SectorCount = 2,
    /// Bits 0 to 7 of the address; with 48 bits, 24 to 31 first.
    LbaLow = 3,
    /// Bits 8 to 15; 32 to 39 first.
    LbaMid = 4,
    /// Bits 16 to 23; 40 to 47 first.
    LbaHigh = 5,
    /// Which drive, and how it is addressed.
    Device = 6,
    /// Status, and reading it ends the interrupt; command.
    StatusCommand = 7,
    /// Status without ending the interrupt; device control. It is not with the others.
    Control = 8,
}

/// Bits of the status register (7.15).
pub mod status {
    /// An error: the error register says which.
    pub const ERR: u8 = 1 << 0;
    /// The drive wants data to be transferred.
    pub const DRQ: u8 = 1 << 3;
    /// The drive is broken.
    pub const DF: u8 = 1 << 5;
    /// The drive is ready.
    pub const DRDY: u8 = 1 << 6;
    /// The drive works; no other bit means anything.
    pub const BSY: u8 = 1 << 7;
    /// What is read where no drive is.
    pub const FLOATING: u8 = 0xff;
}

/// Bits of the error register (7.9, 8.27.6).
pub mod error {
    /// The command was aborted.
    pub const ABRT: u8 = 1 << 2;
    /// The address was not found.
    pub const IDNF: u8 = 1 << 4;
    /// The data cannot be read, or the medium is write-protected.
    pub const UNC: u8 = 1 << 6;
    /// The transfer went wrong.
    pub const ICRC: u8 = 1 << 7;
}

/// Bits of the device register (7.7).
pub mod device {
    /// The first drive, addressed by LBA; older drives want the two obsolete bits set.
    pub const FIRST_LBA: u8 = 0xe0;
}

/// Bits of the device control register (7.8).
pub mod control {
    /// Software reset.
    pub const SRST: u8 = 1 << 2;
}

/// Command codes (8).
pub mod command {
    /// READ SECTOR(S).
    pub const READ_SECTORS: u8 = 0x20;
    /// READ SECTOR(S) EXT.
    pub const READ_SECTORS_EXT: u8 = 0x24;
    /// READ MULTIPLE EXT.
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    /// WRITE SECTOR(S).
    pub const WRITE_SECTORS: u8 = 0x30;
    /// WRITE SECTOR(S) EXT.
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    /// WRITE MULTIPLE EXT.
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    /// READ MULTIPLE.
    pub const READ_MULTIPLE: u8 = 0xc4;
    /// WRITE MULTIPLE.
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    /// SET MULTIPLE MODE.
    pub const SET_MULTIPLE: u8 = 0xc6;
    /// FLUSH CACHE.
    pub const FLUSH_CACHE: u8 = 0xe7;
    /// FLUSH CACHE EXT.
    pub const FLUSH_CACHE_EXT: u8 = 0xea;
    /// IDENTIFY DEVICE.
    pub const IDENTIFY: u8 = 0xec;
}

/// A channel's registers, as the driver reaches them.
pub trait Bus {
    /// Reads a register.
    fn read(&mut self, register: Register) -> u8;
    /// Writes a register.
    fn write(&mut self, register: Register, value: u8);
    /// Fills `into`, an even number of bytes, from the data register.
    fn read_data(&mut self, into: &mut [u8]);
    /// Writes `from`, an even number of bytes, to the data register.
    fn write_data(&mut self, from: &[u8]);
}
