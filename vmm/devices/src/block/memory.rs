//! A disk in this process's memory.

use super::{Backend, BlockError, Completion, Geometry, Request, SECTOR_BYTES, Token};
use crate::guest_mem::GuestMemory;
use crate::segment::{Cursor, total_bytes};
use core::ops::Range;
use core::task::Poll;

/// Sectors in memory: every request is completed at once, and nothing is cached.
///
/// Bytes behind the last whole sector are not part of the disk.
#[derive(Debug)]
pub struct MemoryDisk {
    content: Content,
}

#[derive(Debug)]
enum Content {
    Writable(&'static mut [u8]),
    ReadOnly(&'static [u8]),
}

impl MemoryDisk {
    /// A disk that keeps what is written to it as long as the memory lives.
    pub fn writable(bytes: &'static mut [u8]) -> Self {
        MemoryDisk { content: Content::Writable(bytes) }
    }

    /// A disk that nobody writes to.
    pub fn read_only(bytes: &'static [u8]) -> Self {
        MemoryDisk { content: Content::ReadOnly(bytes) }
    }

    fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Writable(bytes) => bytes,
            Content::ReadOnly(bytes) => bytes,
        }
    }

    fn readable(&self, sector: u64, bytes: u64) -> Result<&[u8], BlockError> {
        self.bytes().get(byte_range(sector, bytes)?).ok_or(BlockError::OutOfRange)
    }

    fn changeable(&mut self, sector: u64, bytes: u64) -> Result<&mut [u8], BlockError> {
        match &mut self.content {
            Content::Writable(content) => {
                content.get_mut(byte_range(sector, bytes)?).ok_or(BlockError::OutOfRange)
            }
            Content::ReadOnly(_) => Err(BlockError::ReadOnly),
        }
    }

    fn run(&mut self, memory: &mut dyn GuestMemory, request: &Request<'_>) -> Completion {
        match *request {
            Request::Read { sector, into } => {
                Cursor::new(into).write(memory, self.readable(sector, total_bytes(into))?)?;
            }
            Request::Write { sector, from } => {
                Cursor::new(from).read(memory, self.changeable(sector, total_bytes(from))?)?;
            }
            Request::Flush => {}
            Request::Discard { sector, count } | Request::WriteZeroes { sector, count, .. } => {
                let bytes = count.checked_mul(SECTOR_BYTES).ok_or(BlockError::OutOfRange)?;
                self.changeable(sector, bytes)?.fill(0);
            }
        }
        Ok(())
    }
}

fn byte_range(sector: u64, bytes: u64) -> Result<Range<usize>, BlockError> {
    let start = sector.checked_mul(SECTOR_BYTES).and_then(|start| usize::try_from(start).ok());
    let end = start.zip(usize::try_from(bytes).ok()).and_then(|(start, bytes)| start.checked_add(bytes));
    start.zip(end).map(|(start, end)| start..end).ok_or(BlockError::OutOfRange)
}

impl Backend for MemoryDisk {
    fn geometry(&self) -> Geometry {
        let is_read_only = matches!(self.content, Content::ReadOnly(_));
        Geometry {
            sectors: self.bytes().len() as u64 / SECTOR_BYTES,
            is_read_only,
            can_discard: !is_read_only,
            has_cache: false,
        }
    }

    fn submit(
        &mut self,
        memory: &mut dyn GuestMemory,
        _token: Token,
        request: &Request<'_>,
    ) -> Poll<Completion> {
        Poll::Ready(self.run(memory, request))
    }
}
