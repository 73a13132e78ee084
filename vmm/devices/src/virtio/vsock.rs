//! Socket device (5.10).

use super::chain::Chain;
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn, read_config_bytes};
use crate::guest_mem::GuestMemory;
use crate::segment::{Cursor, total_bytes};
use crate::vsock::packet::{HEADER, Header};
use crate::vsock::{MAX_DATA, MAX_PACKET, Room, Vsock, Way};
use alloc::boxed::Box;

/// The queues: packets for the driver, packets from it, events. Of those there are none: what ends is reset, connection by connection.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];
const TRANSMIT: usize = 1;
const EVENT: usize = 2;

/// Features (5.10.3).
mod feature {
    pub(super) const STREAM: u64 = 1 << 0;
    pub(super) const SEQPACKET: u64 = 1 << 1;
}

/// A packet of the driver's that is on its way out.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    header: Header,
    way: Way,
    /// Bytes of its data that were sent.
    done: u32,
}

/// The front end of a [`Vsock`].
#[derive(Debug)]
pub struct VsockDevice {
    core: Box<Vsock>,
    /// The chain of `outgoing`.
    chain: Chain,
    outgoing: Option<Outgoing>,
    /// A piece of it.
    piece: Box<[u8; MAX_PACKET]>,
    /// A chain for `incoming`.
    buffer: Chain,
    /// A packet for the driver.
    incoming: Box<[u8; MAX_PACKET]>,
    /// Its header, as it came.
    header: Header,
    /// Its bytes, 0 if there is none, and how many of its data the driver has.
    waiting: usize,
    delivered: usize,
}

impl VsockDevice {
    /// The device for these sockets.
    pub fn new(core: Vsock) -> Self {
        VsockDevice {
            core: Box::new(core),
            chain: Chain::new(),
            outgoing: None,
            piece: Box::new([0; MAX_PACKET]),
            buffer: Chain::new(),
            incoming: Box::new([0; MAX_PACKET]),
            header: Header::default(),
            waiting: 0,
            delivered: 0,
        }
    }

    /// The sockets.
    pub fn core(&self) -> &Vsock {
        &self.core
    }

    /// The sockets, to take something from.
    pub fn core_mut(&mut self) -> &mut Vsock {
        &mut self.core
    }

    /// Whether no packet of the driver's waits for room on its way.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.outgoing.is_none()
    }

    /// Sends what the driver has, piece by piece, for one turn. Returns whether there may be more that can go.
    fn transmit<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<bool, DriverError> {
        for _ in 0..queue.size() {
            if self.core.is_congested() {
                return Ok(false);
            }
            let outgoing = match self.outgoing.take() {
                Some(outgoing) => outgoing,
                None if !pop(memory, queue, &mut self.chain)? => return Ok(false),
                None => self.begin(memory)?,
            };
            match self.core.room(outgoing.way, &outgoing.header) {
                Room::Full => {
                    self.outgoing = Some(outgoing);
                    return Ok(false);
                }
                Room::Free => self.outgoing = self.send_piece(memory, outgoing)?,
                Room::Down => {}
            }
            if self.outgoing.is_none() {
                push(memory, queue, &self.chain, 0)?;
            }
        }
        Ok(true)
    }

    /// Reads the header of the packet in the chain, once, and decides where it goes.
    fn begin<M: GuestMemory>(&mut self, memory: &M) -> Result<Outgoing, DriverError> {
        let mut bytes = [0; HEADER];
        self.chain.take(memory, &mut bytes)?;
        let header = Header::decode(&bytes);
        if u64::from(header.len) > total_bytes(self.chain.readable()) {
            return Err(DriverError::Request);
        }
        Ok(Outgoing { header, way: self.core.admit(&header), done: 0 })
    }

    /// Sends as much as one packet carries; returns what is left.
    fn send_piece<M: GuestMemory>(
        &mut self,
        memory: &M,
        outgoing: Outgoing,
    ) -> Result<Option<Outgoing>, DriverError> {
        let Outgoing { header, way, done } = outgoing;
        let left = header.len - done;
        let len = left.min(MAX_DATA as u32);
        let packet = &mut self.piece[..HEADER + len as usize];
        let mut cursor = Cursor::new(self.chain.readable());
        cursor.skip(done as usize);
        cursor.read(memory, &mut packet[HEADER..])?;
        // A message ends with its last piece.
        let flags = if len == left { header.flags } else { 0 };
        let header = Header { len, flags, ..header };
        packet[..HEADER].copy_from_slice(&header.encode());
        self.core.send(way, &header, packet);
        Ok((len < left).then_some(Outgoing { done: done + len, ..outgoing }))
    }

    /// Gives the driver packets while there are any and it has buffers, for one turn. Returns whether there may be more.
    fn receive<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<bool, DriverError> {
        for _ in 0..queue.size() {
            if self.waiting == 0 && !self.fetch() || !self.deliver(memory, queue)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the next packet for the driver, if there is one.
    fn fetch(&mut self) -> bool {
        let Some(len) = self.core.next(&mut self.incoming) else { return false };
        self.header = self.incoming.first_chunk().map(Header::decode).unwrap_or_default();
        (self.waiting, self.delivered) = (len, 0);
        true
    }

    /// Gives the driver as much of the packet that waits as its next buffer holds; `false` if it has none.
    fn deliver<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<bool, DriverError> {
        if !pop(memory, queue, &mut self.buffer)? {
            return Ok(false);
        }
        let left = self.waiting - HEADER - self.delivered;
        let room = total_bytes(self.buffer.writable()).checked_sub(HEADER as u64);
        let room = room.filter(|room| *room > 0 || left == 0).ok_or(DriverError::Request)?;
        let len = room.min(left as u64) as usize;
        let flags = if len == left { self.header.flags } else { 0 };
        let header = Header { len: len as u32, flags, ..self.header };
        // In front of what is left, over what the driver has already.
        let start = self.delivered;
        self.incoming[start..start + HEADER].copy_from_slice(&header.encode());
        let bytes = &self.incoming[start..start + HEADER + len];
        let written = self.buffer.write(memory, bytes)?;
        push(memory, queue, &self.buffer, written as u32)?;
        self.delivered += len;
        if len == left {
            self.waiting = 0;
        }
        Ok(true)
    }

    /// Both directions: what is sent can have an answer, and a driver that fetched its answers is listened to again.
    #[inline(never)]
    fn serve<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        self.core.open();
        let [receive, transmit, ..] = queues else { return Ok(Turn::NOTHING) };
        let sent = self.transmit(memory, transmit);
        self.core.flush();
        let can_send = sent?;
        let was_congested = self.core.is_congested();
        let can_receive = self.receive(memory, receive)?;
        let is_free = was_congested && !self.core.is_congested();
        let mut interrupt = false;
        for queue in [transmit, receive] {
            interrupt |= queue.wants_interrupt(memory)?;
        }
        Ok(Turn { interrupt, again: can_send || can_receive || is_free, later: false })
    }
}

/// [`Queue::pop_or_arm`], once in the program: it is long.
#[inline(never)]
fn pop<M: GuestMemory>(memory: &mut M, queue: &mut Queue, chain: &mut Chain) -> Result<bool, DriverError> {
    queue.pop_or_arm(memory, chain)
}

/// [`Queue::push`], as [`pop`].
#[inline(never)]
fn push<M: GuestMemory>(
    memory: &mut M,
    queue: &mut Queue,
    chain: &Chain,
    len: u32,
) -> Result<(), DriverError> {
    queue.push(memory, chain.head(), len)
}

impl Device for VsockDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Socket
    }

    fn features(&self) -> u64 {
        feature::STREAM | feature::SEQPACKET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_config_bytes(&u64::from(self.core.cid()).to_le_bytes(), offset, into);
    }

    fn reset(&mut self) {
        self.core.reset();
        self.outgoing = None;
        self.waiting = 0;
    }

    fn queue_stopped(&mut self, index: usize) {
        self.outgoing.take_if(|_| index == TRANSMIT);
    }

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        // The queue of events has buffers that nobody needs.
        if index >= EVENT { Ok(Turn::NOTHING) } else { self.serve(memory, queues) }
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        self.serve(memory, queues)
    }
}
