//! What the guest of the paravirtual devices says by them.

/// Line on its paravirtual console.
pub const SHOWN: &str = "shown on the paravirtual console";
/// Line in the log.
pub const LOGGED: &str = "logged by the control device";
/// Line in the log that the guest `virtio` sends there by a socket.
pub const SAID: &str = "said by a socket";
/// Context id of that guest.
pub const CID: u32 = 77;
/// Sectors of its disk.
pub const SECTORS: u64 = 64;
