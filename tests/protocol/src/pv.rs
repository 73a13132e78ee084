//! What the guest of the paravirtual devices says by them.

/// Line on its paravirtual console.
pub const SHOWN: &str = "shown on the paravirtual console";
/// Line in the log.
pub const LOGGED: &str = "logged by the control device";
/// Sectors of its disk.
pub const SECTORS: u64 = 64;
