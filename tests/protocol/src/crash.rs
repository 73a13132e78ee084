//! How a VMM crashes that is made to.

/// What it reads; nothing is mapped there.
pub const ADDRESS: u64 = 0x7ead_0000;
