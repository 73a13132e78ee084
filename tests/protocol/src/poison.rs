//! What `poison` fills its registers with, and what `witness` must never see.

/// The pattern. A guest that looks for it must not contain it: it compares with [`MASKED`].
pub const PATTERN: u64 = 0x6e61_6372_6570_6f69;

/// What makes an address of the pattern: MSRs that hold addresses get [`PATTERN`] & this, which is canonical.
pub const CANONICAL: u64 = 0x0000_7fff_ffff_ffff;

/// A value to exclusive-or a suspect with; the result is compared with [`MASKED`].
pub const MASK: u64 = 0x5555_aaaa_3333_cccc;

/// The pattern as it may appear in a witness.
pub const MASKED: u64 = (PATTERN ^ MASK) & CANONICAL;
