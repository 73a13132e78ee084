//! Block device (5.2).

use super::chain::{Chain, Head};
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn, read_config_bytes};
use crate::block::{BlockError, Completion, Disk, Request, SECTOR_BYTES, Token};
use crate::guest_mem::GuestMemory;
use crate::segment::total_bytes;
use alloc::vec::Vec;
use core::task::Poll;

/// Descriptors of a queue.
const QUEUE_SIZE: u16 = 256;
/// Most queues that a device can have.
pub const MAX_QUEUES: usize = 16;
/// Bytes of the name that GET_ID gives.
pub const ID_BYTES: usize = 20;

/// Features (5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// How a request ended (5.2.6).
mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const IOERR: u8 = 1;
    pub(super) const UNSUPP: u8 = 2;
}

/// Flag of a discard or write-zeroes segment: its sectors may be given back.
const UNMAP: u32 = 1 << 0;
/// Most sectors of a discard or write-zeroes request.
const MAX_ZERO_SECTORS: u32 = 1 << 22;
/// Bytes of the configuration space (5.2.4), as far as it is used.
const CONFIG_BYTES: usize = 60;

/// A request that the disk has not completed.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    queue: u16,
    head: Head,
    /// Where its status goes.
    status: u64,
    /// Bytes that were written before the status if it succeeded.
    written: u32,
    /// It is complete only when a flush behind it is.
    needs_flush: bool,
}

/// The front end of a [`Disk`].
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    id: [u8; ID_BYTES],
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_BYTES],
    chain: Chain,
    /// By token.
    in_flight: Vec<Option<InFlight>>,
    in_flight_count: usize,
    /// The driver cannot flush, so that what it wrote must be durable once it sees that it was written (5.2.6.2).
    is_write_through: bool,
    /// A queue was left because the disk had no room.
    is_behind: bool,
}

impl Block {
    /// A disk with `queues` queues, at least one, whose name is `id`, padded with zeroes.
    pub fn new(disk: Disk, id: [u8; ID_BYTES], queues: usize) -> Self {
        let queues = queues.clamp(1, MAX_QUEUES);
        Block {
            config: config(&disk, queues as u16),
            disk,
            id,
            queue_sizes: alloc::vec![QUEUE_SIZE; queues],
            chain: Chain::new(),
            in_flight: Vec::new(),
            in_flight_count: 0,
            is_write_through: false,
            is_behind: false,
        }
    }

    /// Begins the request in the chain, or does all of it.
    fn begin<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queue: &mut Queue,
        index: u16,
    ) -> Result<(), DriverError> {
        let [kind, sector] = self.chain.take_words(memory)?;
        // The other half of the word is reserved.
        let kind = kind as u32;
        let status = self.chain.take_last()?;
        let head = self.chain.head();
        let needs_flush = self.is_write_through && matches!(kind, kind::OUT | kind::WRITE_ZEROES);
        let mut flight = InFlight { queue: index, head, status, written: 0, needs_flush };
        let completion = match kind {
            kind::IN => {
                flight.written = u32::try_from(total_bytes(self.chain.writable())).unwrap_or(u32::MAX);
                self.submit(memory, flight, |chain| Request::Read { sector, into: chain.writable() })?
            }
            kind::OUT => {
                self.submit(memory, flight, |chain| Request::Write { sector, from: chain.readable() })?
            }
            kind::FLUSH => self.submit(memory, flight, |_| Request::Flush)?,
            kind::DISCARD | kind::WRITE_ZEROES => match self.zeroes(memory, kind)? {
                Ok(request) => self.submit(memory, flight, |_| request)?,
                Err(error) => Poll::Ready(Err(error)),
            },
            kind::GET_ID => {
                flight.written = self.chain.write(memory, &self.id)? as u32;
                Poll::Ready(Ok(()))
            }
            _ => Poll::Ready(Err(BlockError::Unsupported)),
        };
        match completion {
            Poll::Ready(completion) => end(memory, queue, &flight, completion),
            Poll::Pending => Ok(()),
        }
    }

    /// Hands a request to the disk under a token that leads back to `flight`.
    fn submit<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        flight: InFlight,
        request: impl for<'a> FnOnce(&'a Chain) -> Request<'a>,
    ) -> Result<Poll<Completion>, DriverError> {
        let slot = self.free_slot()?;
        let completion = self.disk.submit(memory, Token(slot as u64), &request(&self.chain));
        Ok(self.follow(memory, slot, flight, completion))
    }

    /// Notes a request that is pending, or that needs a flush, which is submitted under its token.
    #[inline]
    fn follow<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        slot: usize,
        mut flight: InFlight,
        mut completion: Poll<Completion>,
    ) -> Poll<Completion> {
        if flight.needs_flush && completion == Poll::Ready(Ok(())) {
            flight.needs_flush = false;
            completion = self.disk.submit(memory, Token(slot as u64), &Request::Flush);
        }
        if completion.is_pending() {
            self.in_flight[slot] = Some(flight);
            self.in_flight_count += 1;
        }
        completion
    }

    /// A slot for a request. A driver that offers a descriptor again before it got it back could fill any number of them.
    fn free_slot(&mut self) -> Result<usize, DriverError> {
        if self.in_flight_count == self.in_flight.len() {
            if self.in_flight_count >= self.queue_sizes.len() * usize::from(QUEUE_SIZE) {
                return Err(DriverError::InFlight);
            }
            self.in_flight.push(None);
            return Ok(self.in_flight_count);
        }
        self.in_flight.iter().position(Option::is_none).ok_or(DriverError::InFlight)
    }

    /// Reads the one segment of a discard or write-zeroes request.
    fn zeroes<M: GuestMemory>(
        &mut self,
        memory: &M,
        kind: u32,
    ) -> Result<Result<Request<'static>, BlockError>, DriverError> {
        let [sector, rest] = self.chain.take_words(memory)?;
        let (count, flags) = (rest as u32, (rest >> 32) as u32);
        let known = if kind == kind::WRITE_ZEROES { UNMAP } else { 0 };
        if count > MAX_ZERO_SECTORS || flags & !known != 0 || total_bytes(self.chain.readable()) != 0 {
            return Ok(Err(BlockError::Unsupported));
        }
        let count = count.into();
        Ok(Ok(match kind {
            kind::DISCARD => Request::Discard { sector, count },
            _ => Request::WriteZeroes { sector, count, may_discard: flags & UNMAP != 0 },
        }))
    }
}

/// Gives a request back to the driver, which sees it when the queue is published.
fn end<M: GuestMemory>(
    memory: &mut M,
    queue: &mut Queue,
    flight: &InFlight,
    completion: Completion,
) -> Result<(), DriverError> {
    let (status, written) = match completion {
        // What was written begins at the first writable byte; without data that is the status.
        Ok(()) => (status::OK, flight.written.saturating_add(1)),
        Err(BlockError::Memory(error)) => return Err(error.into()),
        Err(BlockError::Unsupported) => (status::UNSUPP, 0),
        Err(BlockError::OutOfRange | BlockError::ReadOnly | BlockError::Io) => (status::IOERR, 0),
    };
    memory.write_u8(flight.status, status)?;
    queue.put(memory, flight.head, written)
}

impl Device for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let geometry = self.disk.geometry();
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        if self.queue_sizes.len() > 1 {
            features |= feature::MQ;
        }
        if geometry.is_read_only {
            return features | feature::RO;
        }
        if geometry.can_discard {
            features |= feature::DISCARD;
        }
        features | feature::WRITE_ZEROES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_config_bytes(&self.config, offset, into);
    }

    fn set_features(&mut self, features: u64) {
        self.is_write_through = features & feature::FLUSH == 0 && self.disk.geometry().has_cache;
    }

    fn reset(&mut self) {
        self.disk.abandon();
        self.in_flight.clear();
        self.in_flight_count = 0;
        (self.is_write_through, self.is_behind) = (false, false);
    }

    fn queue_stopped(&mut self, index: usize) {
        for (slot, flight) in self.in_flight.iter_mut().enumerate() {
            if flight.take_if(|flight| usize::from(flight.queue) == index).is_some() {
                self.in_flight_count -= 1;
                self.disk.abandon_one(Token(slot as u64));
            }
        }
    }

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(Turn::NOTHING);
        };
        let mut left = queue.size();
        while left > 0 && self.disk.has_room() && queue.pop_or_arm(memory, &mut self.chain)? {
            self.begin(memory, queue, index as u16)?;
            left -= 1;
        }
        self.is_behind |= !self.disk.has_room();
        queue.publish(memory)?;
        queue.end_turn(memory, left == 0)
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        let mut has_news = false;
        // Asked even if nothing is in flight: so the disk notices that its driver process is another one.
        while let Some((Token(slot), completion)) = self.disk.take_completed(memory) {
            let slot = slot as usize;
            let Some(flight) = self.in_flight.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            self.in_flight_count -= 1;
            if let Poll::Ready(completion) = self.follow(memory, slot, flight, Poll::Ready(completion))
                && let Some(queue) = queues.get_mut(usize::from(flight.queue))
            {
                end(memory, queue, &flight, completion)?;
                has_news = true;
            }
        }
        let again = self.disk.has_room() && core::mem::take(&mut self.is_behind);
        if !has_news {
            return Ok(Turn { again, ..Turn::NOTHING });
        }
        let mut interrupt = false;
        for queue in queues {
            queue.publish(memory)?;
            interrupt |= queue.wants_interrupt(memory)?;
        }
        Ok(Turn { interrupt, again, later: false })
    }
}

/// The configuration space (5.2.4).
fn config(disk: &Disk, queues: u16) -> [u8; CONFIG_BYTES] {
    let geometry = disk.geometry();
    // Header and status have descriptors of their own.
    let seg_max = u32::from(QUEUE_SIZE) - 2;
    let zero_sectors = if geometry.is_read_only { 0 } else { MAX_ZERO_SECTORS };
    let zero_segments = u32::from(!geometry.is_read_only);
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &geometry.sectors.to_le_bytes());
    put(12, &seg_max.to_le_bytes());
    put(20, &(SECTOR_BYTES as u32).to_le_bytes());
    put(34, &queues.to_le_bytes());
    put(36, &zero_sectors.to_le_bytes());
    put(40, &zero_segments.to_le_bytes());
    // Discards need no alignment but that of a sector.
    put(44, &1u32.to_le_bytes());
    put(48, &zero_sectors.to_le_bytes());
    put(52, &zero_segments.to_le_bytes());
    put(56, &[geometry.can_discard.into()]);
    config
}
