//! What the test switch does not survive.

/// A frame of so many bytes makes it crash: for Linux a ping with 735 bytes of data.
pub const CRASH_LEN: u16 = 777;
