//! The disk of the test driver: sectors that are special.

/// Sectors of the disk.
pub const SECTORS: u64 = 8192;
/// A request with this sector fails.
pub const FAILS: u64 = 2048;
/// A request with this sector makes the first driver process crash, and fails then: Linux asks twice for what fails.
pub const CRASHES: u64 = 4096;
/// A request with this sector makes the second one loop for ever.
pub const LOOPS: u64 = 6144;
