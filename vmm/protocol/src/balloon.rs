//! The page by which a VMM and the root task pass the guest's memory to and fro, piece by piece.
//!
//! A VM with a balloon gets its memory in pieces of [`PIECE_PAGES`] pages, each with a capability of its own, which the VMM finds at
//! [`crate::process::monitor::GUEST_MEMORY`] and behind. The VMM gives a piece back: it deletes the capability, and with it
//! all mappings, sets the piece's bit in [`GIVEN`], and signals. It wants one back: it writes [`WANTED`], signals, and waits for
//! [`ANSWER`] on a notification for that; with [`GRANTED`] there is a capability for zeroed memory where the old one was.
//!
//! Neither side trusts the other with more than the VM's own memory: what the VMM gives and keeps using ends under it.

/// Pages of a piece.
pub const PIECE_PAGES: u64 = 512;
/// Most memory of a VM with a balloon, in MiB: 8 GiB.
pub const MAX_MEMORY_MIB: u32 = 8 << 10;
/// Most pieces of a VM.
pub const MAX_PIECES: usize = MAX_MEMORY_MIB as usize / 2;

/// Offset of a 64-bit word: how many pages the root task would like the VM to do without. The root task's; it signals
/// [`crate::process::monitor::BALLOON_BIT`] when it changes.
pub const TARGET: usize = 0;
/// Offset of a 64-bit word: the number of a piece that the VMM wants, plus 1. The root task takes it and leaves 0.
pub const WANTED: usize = 8;
/// Offset of a 32-bit word: [`GRANTED`] or [`REFUSED`] when there is an answer. The VMM clears it before it asks.
pub const ANSWER: usize = 16;
/// Offset of 64-bit words with a bit for each piece: what the VMM gives. The root task takes them and leaves 0.
pub const GIVEN: usize = 1024;
/// Words of [`GIVEN`].
pub const GIVEN_WORDS: usize = MAX_PIECES / 64;

/// The piece is there.
pub const GRANTED: u32 = 1;
/// There is no memory: the VM cannot go on.
pub const REFUSED: u32 = 2;
