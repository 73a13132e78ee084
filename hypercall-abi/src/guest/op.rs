//! What requests ask for, and how they end (SPEC.md 11.4).

/// Fills the buffer: with input (console), sectors (block), a frame (network) or random bytes (entropy).
pub const READ: u8 = 0;
/// Takes the buffer: output (console), sectors (block), a frame (network) or a line of the log (control).
pub const WRITE: u8 = 1;
/// Block: makes durable what was written.
pub const FLUSH: u8 = 2;
/// Block: the content of `argument` sectors from `offset` on is needed no more.
pub const DISCARD: u8 = 3;
/// Block: `argument` sectors from `offset` on read as zeroes from now on.
pub const WRITE_ZEROES: u8 = 4;
/// Balloon: gives `argument` pages from guest-physical address `offset` on to the host.
pub const GIVE: u8 = 5;
/// Balloon: takes them back; they are zero.
pub const TAKE: u8 = 6;
/// Balloon: the content of these pages is needed no more; they stay the guest's.
pub const REPORT: u8 = 7;
/// Control: turns the machine off.
pub const POWER_OFF: u8 = 8;
/// Control: resets the machine.
pub const RESET: u8 = 9;
/// Control: ends the VM with the exit code `argument` (32 bits).
pub const EXIT: u8 = 10;

/// Bytes that one request to a console or the log has at most.
pub const MAX_WRITE: usize = 4096;

/// How a request ended: bits 16-31 of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// As asked.
    Done = 0,
    /// There are no such sectors or pages, or the length is not one of the kind's.
    OutOfRange = 1,
    /// The disk cannot be written.
    ReadOnly = 2,
    /// The device does not do this.
    Unsupported = 3,
    /// The medium failed.
    Io = 4,
}

impl Status {
    /// The status with this number; a number of a later version counts as [`Status::Io`].
    pub const fn from_raw(raw: u16) -> Self {
        match raw {
            0 => Status::Done,
            1 => Status::OutOfRange,
            2 => Status::ReadOnly,
            3 => Status::Unsupported,
            _ => Status::Io,
        }
    }
}
