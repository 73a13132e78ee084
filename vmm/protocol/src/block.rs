//! The channel between the user of a disk, a VMM, and the driver process that serves it: how its shared memory lies.
//!
//! | Offset | Bytes | What | Written by |
//! |---|---|---|---|
//! | 0 | 8 | [`SERVED`]: which [`Served`] the driver is at | driver; root task, when one died or is to come |
//! | 8 | 8 | [`SECTORS`] of the disk | driver |
//! | 16 | 4 | [`FLAGS`]: [`DiskInfo`] | driver |
//! | 64 | 4 | [`EPOCH`]: changes when the user wants to begin with empty rings; never 0 | user |
//! | 128 | 4 | [`REQUEST_HEAD`]: requests so far in this epoch, modulo 2^32 | user |
//! | 192 | 4 | [`DRIVER_SLEEPS`]: not 0 if the driver wants a signal for the next request | both |
//! | 256 | 4 | [`COMPLETION_HEAD`]: completions so far in this epoch, modulo 2^32 | driver |
//! | 1024 | 512 | [`SLOTS`] requests of two 64-bit words | user |
//! | 2048 | 128 | [`SLOTS`] completions of one 32-bit word | driver |
//! | 4096 | 2 MiB | the data of each slot | both |
//!
//! 1. A request names one of [`SLOTS`] slots; its data is in that slot's part of the memory. The user takes no slot again
//!    before its request was completed, so that neither ring overflows and nobody need say how far they have read.
//! 2. The driver completes requests in any order. A flush covers what was completed before it was put into the ring.
//! 3. A user begins an epoch by setting [`REQUEST_HEAD`] to 0 and then [`EPOCH`] to another value. A driver that sees
//!    that drops, or finishes silently, what it was at, sets [`COMPLETION_HEAD`] to 0, and then [`SERVED`]. The user puts nothing
//!    into the ring before. So a driver that finds [`REQUEST_HEAD`] other than 0 when it begins an epoch has come too late for
//!    it: it serves nothing until the next.
//! 4. Heads are written after what they announce, with release semantics, and read with acquire semantics.
//! 5. Either side may write anything anywhere: each word is read once and checked.

/// Requests that can be in flight.
pub const SLOTS: usize = 32;
/// Bytes of data of a slot.
pub const SLOT_BYTES: usize = 64 << 10;
/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Most sectors of a request.
pub const SLOT_SECTORS: u32 = (SLOT_BYTES / SECTOR_BYTES) as u32;

/// Offset of a 64-bit word: [`Served`].
pub const SERVED: usize = 0;
/// Offset of a 64-bit word: sectors of the disk. Valid once [`SERVED`] names the user's epoch; 0 if there is no disk.
pub const SECTORS: usize = 8;
/// Offset of a 32-bit word: the rest of [`DiskInfo`].
pub const FLAGS: usize = 16;
/// Offset of a 32-bit word: the user's epoch.
pub const EPOCH: usize = 64;
/// Offset of a 32-bit word: requests so far.
pub const REQUEST_HEAD: usize = 128;
/// Offset of a 32-bit word: whether the driver sleeps.
pub const DRIVER_SLEEPS: usize = 192;
/// Offset of a 32-bit word: completions so far.
pub const COMPLETION_HEAD: usize = 256;
/// Offset of the requests.
pub const REQUESTS: usize = 1024;
/// Bytes of a request.
pub const REQUEST_BYTES: usize = 16;
/// Offset of the completions.
pub const COMPLETIONS: usize = 2048;
/// Bytes of a completion.
pub const COMPLETION_BYTES: usize = 4;
/// Offset of the data.
pub const DATA: usize = 4096;
/// Bytes of it all.
pub const CHANNEL_BYTES: usize = DATA + SLOTS * SLOT_BYTES;

/// Which driver serves which user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Number of the driver, which may be starting, from 1; 0 if there is none, and none comes. Each restart has a new one.
    pub session: u32,
    /// Epoch of the user that it serves; 0 if it serves none yet.
    pub epoch: u32,
}

impl Served {
    /// As a word.
    pub const fn encode(self) -> u64 {
        (self.session as u64) << 32 | self.epoch as u64
    }

    /// From a word.
    pub const fn decode(word: u64) -> Self {
        Served { session: (word >> 32) as u32, epoch: word as u32 }
    }
}

/// What the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Sectors; 0 if there is no disk.
    pub sectors: u64,
    /// Writes fail.
    pub is_read_only: bool,
    /// Writes wait in a volatile cache for a flush.
    pub has_cache: bool,
}

impl DiskInfo {
    const READ_ONLY: u32 = 1 << 0;
    const CACHE: u32 = 1 << 1;

    /// The word at [`FLAGS`].
    pub const fn flags(&self) -> u32 {
        (if self.is_read_only { Self::READ_ONLY } else { 0 }) | (if self.has_cache { Self::CACHE } else { 0 })
    }

    /// From the words at [`SECTORS`] and [`FLAGS`].
    pub const fn new(sectors: u64, flags: u32) -> Self {
        let is_read_only = flags & Self::READ_ONLY != 0;
        DiskInfo { sectors, is_read_only, has_cache: flags & Self::CACHE != 0 }
    }
}

/// What a driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sectors into the slot's data.
    Read = 0,
    /// Sectors from the slot's data.
    Write = 1,
    /// What was written becomes durable. It has no sectors.
    Flush = 2,
}

/// A request in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The slot.
    pub slot: u8,
    /// What to do.
    pub operation: Operation,
    /// First sector.
    pub sector: u64,
    /// Sectors, 1 to [`SLOT_SECTORS`]; 0 for a flush.
    pub count: u32,
}

impl Request {
    /// As words.
    pub const fn encode(&self) -> [u64; 2] {
        [self.slot as u64 | (self.operation as u64) << 8 | (self.count as u64) << 32, self.sector]
    }

    /// From words, if they are a request for a disk. Else the slot and why not.
    ///
    /// # Errors
    /// A request that this disk cannot do. The slot is as the request says, if there is such a slot.
    pub fn decode(words: [u64; 2], disk: &DiskInfo) -> Result<Self, (Option<u8>, Status)> {
        let [word, sector] = words;
        let (slot, count) = (word as u8, (word >> 32) as u32);
        if usize::from(slot) >= SLOTS {
            return Err((None, Status::Unsupported));
        }
        let refuse = |status| Err((Some(slot), status));
        let operation = match (word >> 8) as u8 {
            0 => Operation::Read,
            1 if disk.is_read_only => return refuse(Status::ReadOnly),
            1 => Operation::Write,
            2 => return Ok(Request { slot, operation: Operation::Flush, sector: 0, count: 0 }),
            _ => return refuse(Status::Unsupported),
        };
        if !(1..=SLOT_SECTORS).contains(&count)
            || sector.checked_add(count.into()).is_none_or(|end| end > disk.sectors)
        {
            return refuse(Status::OutOfRange);
        }
        Ok(Request { slot, operation, sector, count })
    }

    /// Bytes of data.
    pub const fn bytes(&self) -> usize {
        self.count as usize * SECTOR_BYTES
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Done = 0,
    /// There are no such sectors.
    OutOfRange = 1,
    /// The disk is read-only.
    ReadOnly = 2,
    /// There is no such operation.
    Unsupported = 3,
    /// The medium, or the drive, failed.
    Io = 4,
}

/// A completion in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The slot.
    pub slot: u8,
    /// How it ended.
    pub status: Status,
}

impl Completion {
    /// As a word.
    pub const fn encode(&self) -> u32 {
        self.slot as u32 | (self.status as u32) << 8
    }

    /// From a word; an unknown status is [`Status::Io`].
    pub const fn decode(word: u32) -> Self {
        let status = match (word >> 8) as u8 {
            0 => Status::Done,
            1 => Status::OutOfRange,
            2 => Status::ReadOnly,
            3 => Status::Unsupported,
            _ => Status::Io,
        };
        Completion { slot: word as u8, status }
    }
}

/// Offset of the request with this number.
pub const fn request_offset(index: u32) -> usize {
    REQUESTS + index as usize % SLOTS * REQUEST_BYTES
}

/// Offset of the completion with this number.
pub const fn completion_offset(index: u32) -> usize {
    COMPLETIONS + index as usize % SLOTS * COMPLETION_BYTES
}

/// Offset of the data of a slot.
pub const fn data_offset(slot: u8) -> usize {
    DATA + slot as usize * SLOT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskInfo = DiskInfo { sectors: 1000, is_read_only: false, has_cache: true };

    #[test]
    fn requests_and_completions_survive_encoding() {
        for operation in [Operation::Read, Operation::Write] {
            let request = Request { slot: 31, operation, sector: 872, count: 128 };
            assert_eq!(Request::decode(request.encode(), &DISK), Ok(request));
        }
        for status in [Status::Done, Status::OutOfRange, Status::ReadOnly, Status::Unsupported, Status::Io] {
            let completion = Completion { slot: 7, status };
            assert_eq!(Completion::decode(completion.encode()), completion);
        }
        assert_eq!(DiskInfo::new(1000, DISK.flags()), DISK);
        let served = Served { session: 3, epoch: u32::MAX };
        assert_eq!(Served::decode(served.encode()), served);
    }

    #[test]
    fn a_request_that_the_disk_cannot_do_is_refused() {
        let refused = |slot: u8, kind: u64, sector: u64, count: u64, disk: &DiskInfo| {
            Request::decode([u64::from(slot) | kind << 8 | count << 32, sector], disk)
        };
        assert_eq!(refused(32, 0, 0, 1, &DISK), Err((None, Status::Unsupported)));
        assert_eq!(refused(1, 3, 0, 1, &DISK), Err((Some(1), Status::Unsupported)));
        for (sector, count) in
            [(1000, 1), (999, 2), (u64::MAX, 1), (0, 0), (0, 129), (0, u64::from(u32::MAX))]
        {
            assert_eq!(refused(1, 0, sector, count, &DISK), Err((Some(1), Status::OutOfRange)));
        }
        let read_only = DiskInfo { is_read_only: true, ..DISK };
        assert_eq!(refused(1, 1, 0, 1, &read_only), Err((Some(1), Status::ReadOnly)));
    }

    #[test]
    fn nothing_overlaps() {
        const { assert!(COMPLETION_HEAD + 4 <= REQUESTS) };
        assert!(request_offset(SLOTS as u32 - 1) + REQUEST_BYTES <= COMPLETIONS);
        assert!(completion_offset(SLOTS as u32 - 1) + COMPLETION_BYTES <= DATA);
        assert_eq!(data_offset(SLOTS as u8 - 1) + SLOT_BYTES, CHANNEL_BYTES);
    }
}
