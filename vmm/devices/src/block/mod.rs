//! The block device behind every front end.
//!
//! A front end (virtio, the native ring) turns what its ring says into a [`Request`] and hands it to a [`Disk`] with a
//! token of its own. The disk checks the request against its geometry and gives it to a [`Backend`], which may finish at
//! once or later; what finishes later is asked for with [`Disk::take_completed`]. Data moves between the backend and guest
//! memory segment by segment; nothing here knows a ring, and no request borrows guest memory.
//!
//! A disk without volatile cache would honour [`Request::Flush`] by doing nothing; a backend that has one completes a flush
//! only when every request that was completed before the flush was submitted is on the medium.

mod memory;

pub use memory::MemoryDisk;

use crate::guest_mem::{GuestMemory, OutOfRange};
use crate::segment::{Segment, total_bytes};
use alloc::boxed::Box;
use core::fmt;
use core::task::Poll;

/// Bytes of a sector, the unit of every address and length here.
pub const SECTOR_BYTES: u64 = 512;

/// What a driver asks of a disk. Sectors count from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// Copies sectors into guest memory.
    Read {
        /// First sector.
        sector: u64,
        /// Where to; whole sectors in all.
        into: &'a [Segment],
    },
    /// Copies guest memory to sectors.
    Write {
        /// First sector.
        sector: u64,
        /// Where from; whole sectors in all.
        from: &'a [Segment],
    },
    /// Makes durable what was written.
    Flush,
    /// The content of these sectors is needed no more; what they read as afterwards is the backend's choice.
    Discard {
        /// First sector.
        sector: u64,
        /// How many.
        count: u64,
    },
    /// These sectors read as zeroes from now on.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// How many.
        count: u64,
        /// The backend may give their room back.
        may_discard: bool,
    },
}

/// Why a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockError {
    /// It reaches beyond the end of the disk, or is no whole number of sectors.
    OutOfRange,
    /// It would change a read-only disk.
    ReadOnly,
    /// The backend cannot do it.
    Unsupported,
    /// The medium failed.
    Io,
    /// A segment is not guest memory: the driver is broken, and a front end stops its device.
    Memory(OutOfRange),
}

impl From<OutOfRange> for BlockError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("no such sectors"),
            Self::ReadOnly => f.write_str("the disk is read-only"),
            Self::Unsupported => f.write_str("the disk cannot do that"),
            Self::Io => f.write_str("the medium failed"),
            Self::Memory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for BlockError {}

/// How a request ended.
pub type Completion = Result<(), BlockError>;

/// A front end's name for a request: what it likes, as long as no two requests of one disk that are not completed have the
/// same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// What a disk is, and what its backend can do. It does not change while the disk exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Sectors.
    pub sectors: u64,
    /// Only [`Request::Read`] and [`Request::Flush`] succeed.
    pub is_read_only: bool,
    /// [`Request::Discard`] gives room back.
    pub can_discard: bool,
    /// Writes wait in a volatile cache for [`Request::Flush`].
    pub has_cache: bool,
}

/// Where the sectors are.
pub trait Backend {
    /// What the disk is.
    fn geometry(&self) -> Geometry;

    /// Begins a request that fits the geometry. `Ready` if it is completed with that; `Pending` if its token comes out of
    /// [`Self::take_completed`] later.
    ///
    /// A backend copies its segments before it returns if it needs them later. Until the request is completed or
    /// [`Self::abandon`]ed it owns that memory as a DMA engine does: it reads and writes it when it likes. Nobody submits a request
    /// while it does not [`Self::has_room`].
    fn submit(
        &mut self,
        memory: &mut dyn GuestMemory,
        token: Token,
        request: &Request<'_>,
    ) -> Poll<Completion>;

    /// Whether it takes another request. A front end leaves requests in its ring until it does: what a backend holds is bounded,
    /// however long a guest's rings and requests are. A backend without room has a request pending that will be completed.
    fn has_room(&self) -> bool {
        true
    }

    /// A request that was completed since the last call, in any order. Data that was read is in guest memory by then.
    fn take_completed(&mut self, _memory: &mut dyn GuestMemory) -> Option<(Token, Completion)> {
        None
    }

    /// The guest reset the device: no request that is pending touches guest memory or is reported any more. Writes among
    /// them may or may not be done.
    fn abandon(&mut self) {}

    /// As [`Self::abandon`], for one request: the guest took its ring back.
    fn abandon_one(&mut self, _token: Token) {}
}

/// A block device, as its front end sees it.
pub struct Disk {
    backend: Box<dyn Backend>,
    geometry: Geometry,
    /// As its backend says, since it was last asked for something that can change it.
    has_room: bool,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}

impl Disk {
    /// A disk on this backend.
    pub fn new(backend: Box<dyn Backend>) -> Self {
        let geometry = backend.geometry();
        let has_room = backend.has_room();
        Disk { backend, geometry, has_room }
    }

    /// What it is.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether it takes another request; if not, one that is pending has to be completed first.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.has_room
    }

    /// Checks a request and begins it, as [`Backend::submit`] does.
    pub fn submit(
        &mut self,
        memory: &mut dyn GuestMemory,
        token: Token,
        request: &Request<'_>,
    ) -> Poll<Completion> {
        if let Err(error) = self.check(request) {
            return Poll::Ready(Err(error));
        }
        let completion = self.backend.submit(memory, token, request);
        if completion.is_pending() {
            self.has_room = self.backend.has_room();
        }
        completion
    }

    /// A request that was completed since the last call.
    pub fn take_completed(&mut self, memory: &mut dyn GuestMemory) -> Option<(Token, Completion)> {
        let completed = self.backend.take_completed(memory);
        self.has_room = self.backend.has_room();
        completed
    }

    /// Forgets what is pending, when the guest resets the device.
    pub fn abandon(&mut self) {
        self.backend.abandon();
        self.has_room = self.backend.has_room();
    }

    /// Forgets one request, when the guest takes its ring back.
    pub fn abandon_one(&mut self, token: Token) {
        self.backend.abandon_one(token);
        self.has_room = self.backend.has_room();
    }

    fn check(&self, request: &Request<'_>) -> Completion {
        let (sector, count, changes) = match *request {
            Request::Flush => return Ok(()),
            Request::Read { sector, into } => (sector, whole_sectors(into)?, false),
            Request::Write { sector, from } => (sector, whole_sectors(from)?, true),
            Request::Discard { sector, count } | Request::WriteZeroes { sector, count, .. } => {
                (sector, count, true)
            }
        };
        if sector.checked_add(count).is_none_or(|end| end > self.geometry.sectors) {
            return Err(BlockError::OutOfRange);
        }
        if changes && self.geometry.is_read_only {
            return Err(BlockError::ReadOnly);
        }
        Ok(())
    }
}

/// How many sectors the segments are.
fn whole_sectors(segments: &[Segment]) -> Result<u64, BlockError> {
    let bytes = total_bytes(segments);
    if bytes.is_multiple_of(SECTOR_BYTES) { Ok(bytes / SECTOR_BYTES) } else { Err(BlockError::OutOfRange) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_mem::VecMemory;
    use alloc::vec;
    use proptest::prelude::*;

    const TOKEN: Token = Token(7);

    fn disk(is_read_only: bool) -> (Disk, VecMemory) {
        let mut bytes = vec![0; 4096];
        bytes[512..1024].fill(0x11);
        bytes[1024..1536].fill(0x22);
        let bytes = bytes.leak();
        let backend = if is_read_only { MemoryDisk::read_only(bytes) } else { MemoryDisk::writable(bytes) };
        (Disk::new(Box::new(backend)), VecMemory::new(0x1_0000))
    }

    fn done(disk: &mut Disk, memory: &mut VecMemory, request: Request<'_>) -> Completion {
        match disk.submit(memory, TOKEN, &request) {
            Poll::Ready(completion) => completion,
            Poll::Pending => panic!("a disk in memory needs no time"),
        }
    }

    #[test]
    fn sectors_are_read_into_scattered_memory_and_written_from_it() {
        let (mut disk, mut memory) = disk(false);
        let halves = [Segment { gpa: 0x100, len: 700 }, Segment { gpa: 0x1000, len: 324 }];
        assert_eq!(done(&mut disk, &mut memory, Request::Read { sector: 1, into: &halves }), Ok(()));
        assert_eq!((memory.read_u8(0x100), memory.read_u8(0x100 + 511)), (Ok(0x11), Ok(0x11)));
        assert_eq!((memory.read_u8(0x100 + 512), memory.read_u8(0x1000 + 323)), (Ok(0x22), Ok(0x22)));
        assert_eq!(done(&mut disk, &mut memory, Request::Write { sector: 6, from: &halves }), Ok(()));
        let back = [Segment { gpa: 0x8000, len: 512 }];
        assert_eq!(done(&mut disk, &mut memory, Request::Read { sector: 7, into: &back }), Ok(()));
        assert_eq!(memory.read_u64(0x8000), Ok(0x2222_2222_2222_2222));
    }

    #[test]
    fn discarded_and_zeroed_sectors_read_as_zeroes() {
        let (mut disk, mut memory) = disk(false);
        memory.write_u64(0, u64::MAX).unwrap();
        let zeroes = Request::WriteZeroes { sector: 1, count: 1, may_discard: false };
        assert_eq!(done(&mut disk, &mut memory, zeroes), Ok(()));
        assert_eq!(done(&mut disk, &mut memory, Request::Discard { sector: 2, count: 1 }), Ok(()));
        for sector in [1, 2] {
            let into = [Segment { gpa: 0, len: 512 }];
            assert_eq!(done(&mut disk, &mut memory, Request::Read { sector, into: &into }), Ok(()));
            assert_eq!(memory.read_u64(0), Ok(0));
        }
    }

    #[test]
    fn what_does_not_fit_the_disk_is_refused() {
        let (mut disk, mut memory) = disk(true);
        let sector = [Segment { gpa: 0, len: 512 }];
        let odd = [Segment { gpa: 0, len: 100 }];
        let cases = [
            (Request::Read { sector: 8, into: &sector }, BlockError::OutOfRange),
            (Request::Read { sector: u64::MAX, into: &sector }, BlockError::OutOfRange),
            (Request::Read { sector: 0, into: &odd }, BlockError::OutOfRange),
            (Request::Discard { sector: 7, count: 2 }, BlockError::OutOfRange),
            (Request::Discard { sector: 7, count: u64::MAX }, BlockError::OutOfRange),
            (Request::Write { sector: 0, from: &sector }, BlockError::ReadOnly),
            (Request::WriteZeroes { sector: 0, count: 1, may_discard: true }, BlockError::ReadOnly),
        ];
        for (request, error) in cases {
            assert_eq!(done(&mut disk, &mut memory, request), Err(error), "{request:?}");
        }
        assert_eq!(done(&mut disk, &mut memory, Request::Flush), Ok(()));
        let nowhere = [Segment { gpa: 0xff00, len: 512 }];
        let refused = done(&mut disk, &mut memory, Request::Read { sector: 0, into: &nowhere });
        assert!(matches!(refused, Err(BlockError::Memory(_))));
    }

    proptest! {
        #[test]
        fn any_request_is_survived(
            kind in 0..5u8, sector in prop_oneof![0u64..10, any::<u64>()], count in prop_oneof![0u64..10, any::<u64>()],
            segments in prop::collection::vec((prop_oneof![0u64..0x1_0000, any::<u64>()], prop_oneof![0u32..1024, any::<u32>()]), 0..5),
        ) {
            let (mut disk, mut memory) = disk(false);
            let segments: vec::Vec<Segment> =
                segments.into_iter().map(|(gpa, len)| Segment { gpa, len }).collect();
            let request = match kind {
                0 => Request::Read { sector, into: &segments },
                1 => Request::Write { sector, from: &segments },
                2 => Request::Discard { sector, count },
                3 => Request::WriteZeroes { sector, count, may_discard: true },
                _ => Request::Flush,
            };
            let _ = disk.submit(&mut memory, TOKEN, &request);
        }
    }
}
