//! Disks on a native ring.

use super::queue::{End, Queue, Step, Turn};
use crate::block::{BlockError, Completion, Disk, Request, Token};
use crate::guest_mem::GuestMemory;
use crate::segment::{Segment, total_bytes};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::task::Poll;
use hypercall_abi::guest::device::{Fault, feature};
use hypercall_abi::guest::op::{self, Status};
use hypercall_abi::guest::ring;

/// A disk.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// Makes tokens unlike each other, whatever names the driver gives.
    submitted: u64,
    /// Requests that will end later, and the bytes they move.
    pending: Vec<(Token, u32)>,
}

impl Block {
    /// This disk, for a driver.
    pub fn new(disk: Disk) -> Self {
        Block { disk, submitted: 0, pending: Vec::new() }
    }

    pub(super) fn features(&self) -> u64 {
        let geometry = self.disk.geometry();
        [
            (geometry.is_read_only, feature::BLOCK_READ_ONLY),
            (geometry.has_cache, feature::BLOCK_FLUSH),
            (geometry.can_discard, feature::BLOCK_DISCARD),
        ]
        .into_iter()
        .fold(0, |features, (is_so, bit)| if is_so { features | bit } else { features })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.disk.geometry().sectors
    }

    pub(super) fn reset(&mut self) {
        self.disk.abandon();
        self.pending.clear();
    }

    /// Carries out what a queue has, as far as the disk has room. It is looked at again when a request ends.
    #[inline]
    pub(super) fn serve<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        index: usize,
        queue: &mut Queue,
    ) -> Result<Turn, Fault> {
        if !self.disk.has_room() {
            return queue.settle_silently(memory);
        }
        queue.serve_some(memory, |memory, request, segments| {
            self.submitted = self.submitted.wrapping_add(1);
            let token = Token(self.submitted << 24 | (index as u64) << 16 | u64::from(request.id));
            let Some(wanted) = decode(request, segments) else {
                return Ok(Step::Ended((Status::Unsupported, 0)));
            };
            match self.disk.submit(memory, token, &wanted) {
                Poll::Ready(completion) => end(completion, moved(&wanted)).map(Step::Ended),
                Poll::Pending => {
                    self.pending.push((token, moved(&wanted)));
                    Ok(if self.disk.has_room() { Step::Pending } else { Step::Full })
                }
            }
        })
    }

    /// Ends requests that have become ready. Returns in which queues, as bits.
    pub(super) fn collect<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Option<Box<Queue>>],
    ) -> Result<u8, Fault> {
        let mut touched = 0;
        while let Some((token, completion)) = self.disk.take_completed(memory) {
            let Some(at) = self.pending.iter().position(|pending| pending.0 == token) else {
                continue;
            };
            let (Token(name), bytes) = self.pending.swap_remove(at);
            let index = usize::from((name >> 16) as u8);
            if let Some(Some(queue)) = queues.get_mut(index) {
                queue.complete(memory, name as u16, end(completion, bytes)?)?;
                touched |= 1 << index;
            }
        }
        Ok(touched)
    }
}

fn decode<'a>(request: &ring::Request, segments: &'a [Segment]) -> Option<Request<'a>> {
    let (sector, count) = (request.offset, request.argument);
    Some(match request.op {
        op::READ => Request::Read { sector, into: segments },
        op::WRITE => Request::Write { sector, from: segments },
        op::FLUSH => Request::Flush,
        op::DISCARD => Request::Discard { sector, count },
        op::WRITE_ZEROES => Request::WriteZeroes { sector, count, may_discard: true },
        _ => return None,
    })
}

/// Bytes that a request moves if it succeeds.
fn moved(request: &Request<'_>) -> u32 {
    match request {
        Request::Read { into: segments, .. } | Request::Write { from: segments, .. } => {
            u32::try_from(total_bytes(segments)).unwrap_or(u32::MAX)
        }
        _ => 0,
    }
}

fn end(completion: Completion, bytes: u32) -> Result<End, Fault> {
    Ok(match completion {
        Ok(()) => (Status::Done, bytes),
        Err(BlockError::OutOfRange) => (Status::OutOfRange, 0),
        Err(BlockError::ReadOnly) => (Status::ReadOnly, 0),
        Err(BlockError::Unsupported) => (Status::Unsupported, 0),
        Err(BlockError::Io) => (Status::Io, 0),
        Err(BlockError::Memory(_)) => return Err(Fault::Address),
    })
}
