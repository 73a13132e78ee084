//! Queues: rings of requests and completions in guest memory (SPEC.md 11.3).
//!
//! A queue is one piece of guest memory with four parts, of which each has one writer:
//!
//! ```text
//!   0  driver's word    submitted, interrupt threshold      the driver
//!  64  device's word    completed, doorbell threshold,      the device
//!                       fault
//! 128  requests         size x 32 bytes                     the driver
//!      completions      size x  8 bytes                     the device
//! ```
//!
//! Counts run freely modulo 2^32; entry *n* is at place *n* mod size. The driver's and the device's word are in cache lines
//! of their own, each is written and read as one 64-bit value, and that is all that the two sides share beside the entries.
//! SPEC.md 11.3 has the memory order.

/// Offset of the driver's word: a [`Word`] of submitted requests and of the completions behind which it wants an interrupt.
pub const DRIVER_WORD: usize = 0;
/// Offset of the device's word: a [`Word`] of completed requests and of the submissions behind which it wants the doorbell.
pub const DEVICE_WORD: usize = 64;
/// Offset of 32 bits that are not 0 if the device stopped: [`super::device::Fault`].
pub const FAULT: usize = 72;
/// Offset of the requests.
pub const REQUESTS: usize = 128;
/// Bytes of a request.
pub const REQUEST_BYTES: usize = 32;
/// Bytes of a completion.
pub const COMPLETION_BYTES: usize = 8;
/// Bytes of an entry of an indirect table.
pub const SEGMENT_BYTES: usize = 16;
/// The memory of a queue begins at a multiple of this.
pub const ALIGNMENT: u64 = 64;
/// The largest size of a queue that any device takes.
pub const MAX_SIZE: u32 = 1 << 15;
/// The largest size of a queue whose memory fits a page.
pub const PAGE_SIZE_MAX: u32 = 64;
/// Entries of an indirect table at most.
pub const MAX_SEGMENTS: usize = 64;

/// Offset of the completions.
pub const fn completions(size: u32) -> usize {
    REQUESTS + size as usize * REQUEST_BYTES
}

/// Bytes of a queue.
pub const fn bytes(size: u32) -> usize {
    completions(size) + size as usize * COMPLETION_BYTES
}

const _: () = assert!(bytes(PAGE_SIZE_MAX) <= super::device::PAGE_BYTES as usize);

/// What one side tells the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Entries that this side has produced.
    pub produced: u32,
    /// The other side's count behind which this side wants to be told: when it passes from this value to the next.
    pub threshold: u32,
}

impl Word {
    /// The 64-bit value: `produced` in the low half.
    pub const fn encode(self) -> u64 {
        self.produced as u64 | (self.threshold as u64) << 32
    }

    /// What the 64-bit value says.
    pub const fn decode(raw: u64) -> Self {
        Word { produced: raw as u32, threshold: (raw >> 32) as u32 }
    }
}

/// Whether a side whose count went from `old` to `new` has to tell the other, which asked for it behind `threshold`.
#[inline]
pub const fn is_due(threshold: u32, old: u32, new: u32) -> bool {
    new.wrapping_sub(threshold).wrapping_sub(1) < new.wrapping_sub(old)
}

/// A request: four 64-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Guest-physical address of the buffer, or of the indirect table.
    pub address: u64,
    /// Bytes of the buffer, or of the table.
    pub len: u32,
    /// The driver's name for the request, which its completion repeats.
    pub id: u16,
    /// What to do ([`super::op`]).
    pub op: u8,
    /// [`INDIRECT`] or 0.
    pub flags: u8,
    /// Where: block: the first sector; balloon: the address of the first page.
    pub offset: u64,
    /// How much, for requests without a buffer.
    pub argument: u64,
}

/// Flag of a request: its buffer is scattered, and the address is that of a table of [`Segment`]s.
pub const INDIRECT: u8 = 1 << 0;

impl Request {
    /// The words in memory.
    #[inline]
    pub const fn encode(&self) -> [u64; 4] {
        let second =
            self.len as u64 | (self.id as u64) << 32 | (self.op as u64) << 48 | (self.flags as u64) << 56;
        [self.address, second, self.offset, self.argument]
    }

    /// What the words say.
    #[inline]
    pub const fn decode([address, second, offset, argument]: [u64; 4]) -> Self {
        Request {
            address,
            len: second as u32,
            id: (second >> 32) as u16,
            op: (second >> 48) as u8,
            flags: (second >> 56) as u8,
            offset,
            argument,
        }
    }
}

/// The end of a request: one 64-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which request.
    pub id: u16,
    /// How it ended ([`super::op::Status`]).
    pub status: u16,
    /// Bytes that were moved.
    pub len: u32,
}

impl Completion {
    /// The word in memory.
    #[inline]
    pub const fn encode(self) -> u64 {
        self.id as u64 | (self.status as u64) << 16 | (self.len as u64) << 32
    }

    /// What the word says.
    #[inline]
    pub const fn decode(raw: u64) -> Self {
        Completion { id: raw as u16, status: (raw >> 16) as u16, len: (raw >> 32) as u32 }
    }
}

/// An entry of an indirect table: two 64-bit words, of which the high half of the second is ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
}

impl Segment {
    /// The words in memory.
    #[inline]
    pub const fn encode(self) -> [u64; 2] {
        [self.address, self.len as u64]
    }

    /// What the words say.
    #[inline]
    pub const fn decode([address, len]: [u64; 2]) -> Self {
        Segment { address, len: len as u32 }
    }
}
