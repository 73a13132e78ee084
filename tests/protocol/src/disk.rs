//! The disk of the test driver: sectors that are special.

/// Sectors of the disk.
pub const SECTORS: u64 = 8192;
/// A request with this sector fails.
pub const FAILS: u64 = 2048;
/// A request with this sector makes the driver process crash.
pub const CRASHES: u64 = 4096;
