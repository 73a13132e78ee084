//! Network device (5.1).

mod control;
mod long;
mod steering;

use super::chain::{Chain, Head};
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn, read_config_bytes};
use crate::guest_mem::GuestMemory;
use crate::net::{Checksum, Link, MAX_FRAME, MIN_FRAME};
use crate::segment::{Cursor, total_bytes};
use crate::tso::MAX_LONG;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use steering::Steering;

/// Most pairs of queues.
pub const MAX_PAIRS: u16 = 16;
/// Descriptors of the queues of a pair: frames for the driver, frames from it.
const QUEUE_SIZE: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Descriptors of the control queue.
const CONTROL_SIZE: u16 = 64;

/// Features (5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;
}

/// Bytes of the header before each frame (5.1.6).
const HEADER: usize = 12;
/// Header flag: a checksum is missing.
const NEEDS_CSUM: u8 = 1 << 0;
/// Kinds of long frames (5.1.6).
mod gso {
    pub(super) const NONE: u8 = 0;
    pub(super) const TCPV4: u8 = 1;
    pub(super) const TCPV6: u8 = 4;
}
/// Status: the link is up.
const LINK_UP: u16 = 1;
/// Payload that a frame can carry.
const MTU: u16 = 1500;

/// The front end of a [`Link`].
pub struct Net {
    link: Box<dyn Link>,
    config: [u8; 12],
    features: u64,
    /// Pairs of queues that there are.
    pairs: u16,
    /// Of all pairs; then the control queue, where there are several.
    queue_sizes: Vec<u16>,
    steering: Steering,
    chain: Chain,
    /// The first of the chains that a frame for the driver goes into.
    first: Chain,
    /// The names of all of them, and what is in each. Only that is kept: a driver's buffers may have any number of pieces.
    filled: Vec<(Head, u32)>,
    /// A frame of the driver's: room for a long one.
    outgoing: Box<[u8]>,
    /// A frame for the driver, behind its header: room for a long one.
    incoming: Box<[u8]>,
    /// Bytes of the frame that came and waits for a buffer; 0 if there is none.
    waiting: usize,
    /// The pair that it goes to.
    pair: usize,
    /// Pieces of the frames that the driver got back and may have to be told of.
    untold: usize,
    /// The driver seemed to wait for that, and has got no frames since.
    is_waiting: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Net {
    /// A card with this address on a link, and with so many pairs of queues: 1 to [`MAX_PAIRS`].
    pub fn new(link: Box<dyn Link>, mac: [u8; 6], pairs: u16) -> Self {
        let pairs = pairs.clamp(1, MAX_PAIRS);
        let mut queue_sizes = alloc::vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        if pairs > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&MTU.to_le_bytes());
        Net {
            link,
            config,
            features: 0,
            pairs,
            queue_sizes,
            steering: Steering::new(),
            chain: Chain::new(),
            first: Chain::new(),
            filled: Vec::new(),
            outgoing: alloc::vec![0; MAX_LONG].into(),
            incoming: alloc::vec![0; HEADER + MAX_LONG].into(),
            waiting: 0,
            pair: 0,
            untold: 0,
            is_waiting: false,
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Sends the frame in the chain, of a pair. One of a length that no frame has is lost.
    fn send<M: GuestMemory>(&mut self, memory: &M, pair: usize) -> Result<(), DriverError> {
        let mut header = [0; HEADER];
        self.chain.take(memory, &mut header)?;
        let [flags, kind, _, _, size_low, size_high, start_low, start_high, offset_low, offset_high, ..] =
            header;
        let start = u16::from_le_bytes([start_low, start_high]);
        if kind != gso::NONE {
            return self.send_long(memory, pair, kind, u16::from_le_bytes([size_low, size_high]), start);
        }
        let len = total_bytes(self.chain.readable());
        let Some(len) = usize::try_from(len).ok().filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len)) else {
            return Ok(());
        };
        let frame = &mut self.outgoing[..len];
        Cursor::new(self.chain.readable()).read(memory, frame)?;
        self.steering.sent(frame, pair);
        let missing = Checksum { start, offset: u16::from_le_bytes([offset_low, offset_high]) };
        let missing = (flags & NEEDS_CSUM != 0).then_some(missing);
        if missing.is_none_or(|missing| self.features & feature::CSUM != 0 && missing.fits(len)) {
            self.link.send(frame, missing);
        }
        Ok(())
    }

    /// Sends what the driver has in the queue of a pair, for one turn. Most drivers take back what was sent when they send again, or when
    /// they get frames, so that an interrupt for that alone can wait. It cannot for more than half of a queue, of which a driver may have
    /// no more, or if one seemed to wait for it.
    fn transmit<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(Turn::NOTHING);
        };
        let mut turn = Turn { again: true, ..Turn::NOTHING };
        for _ in 0..queue.size() {
            if !queue.pop_or_arm(memory, &mut self.chain)? {
                turn.again = false;
                break;
            }
            self.untold += self.chain.readable().len();
            self.send(memory, index / 2)?;
            queue.push(memory, self.chain.head(), 0)?;
        }
        let most = if self.is_waiting { 0 } else { usize::from(queue.size()) / 2 };
        if self.untold > most {
            turn.interrupt = self.wants_to_know_sent(memory, queues)?;
        }
        turn.later = self.untold > 0;
        Ok(turn)
    }

    /// Takes a frame from the link, with the header that the driver wants before it. Returns whether there was one: what is no frame
    /// is dropped.
    fn fetch(&mut self) -> bool {
        let (header, frame) = self.incoming.split_at_mut(HEADER);
        let Some((len, missing)) = self.link.receive(&mut frame[..MAX_FRAME]) else {
            return self.fetch_long();
        };
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) || missing.is_some_and(|missing| !missing.fits(len)) {
            return true;
        }
        header.fill(0);
        if let Some(missing) = missing {
            if self.features & feature::GUEST_CSUM == 0 {
                missing.fill_in(&mut frame[..len]);
            } else {
                header[0] = NEEDS_CSUM;
                header[6..8].copy_from_slice(&missing.start.to_le_bytes());
                header[8..10].copy_from_slice(&missing.offset.to_le_bytes());
            }
        }
        self.waiting = len;
        self.pair = self.steering.pair(&frame[..len]);
        true
    }

    /// Gives the driver frames while there are any and it has buffers, for one turn.
    fn receive<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        let mut turn = Turn { again: true, ..Turn::NOTHING };
        for _ in 0..QUEUE_SIZE {
            let is_there = self.waiting > 0 || self.fetch();
            if !is_there || self.waiting > 0 && !self.deliver_to_pair(memory, queues)? {
                turn.again = false;
                break;
            }
        }
        for queue in queues.iter_mut().step_by(2).take(self.steering.pairs().into()) {
            turn.interrupt |= queue.wants_interrupt(memory)?;
        }
        if turn.interrupt {
            self.is_waiting = false;
            if self.untold > 0 {
                // By the same interrupt the driver looks at what it sent.
                let _ = self.wants_to_know_sent(memory, queues)?;
            }
        }
        Ok(turn)
    }

    /// Whether the driver wants an interrupt for what it sent.
    fn wants_to_know_sent<M: GuestMemory>(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
    ) -> Result<bool, DriverError> {
        self.untold = 0;
        let mut interrupt = false;
        // Those of pairs that the driver no longer uses, too. Behind them is the control queue, whose number is even.
        for queue in queues.iter_mut().skip(TRANSMIT).step_by(2) {
            interrupt |= queue.wants_interrupt(memory)?;
        }
        Ok(interrupt)
    }

    /// Gives the driver the frame that waits in the queue of its pair, or, where the driver does not use that, in the first; `false` if it
    /// has no room for it yet.
    fn deliver_to_pair<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
    ) -> Result<bool, DriverError> {
        let own = 2 * self.pair + RECEIVE;
        let index = if queues.get(own).is_some_and(Queue::is_ready) { own } else { RECEIVE };
        match queues.get_mut(index) {
            Some(queue) => self.deliver(memory, queue),
            None => Ok(false),
        }
    }

    /// Gives the driver the frame that waits; `false` if it has no room for it yet. A frame for which its buffers are too small is lost:
    /// they need not hold one with a VLAN tag (5.1.6.3.1).
    fn deliver<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<bool, DriverError> {
        let bytes = HEADER + self.waiting;
        let most = if self.has(feature::MRG_RXBUF) { queue.size() } else { 1 };
        self.incoming[10..HEADER].copy_from_slice(&1u16.to_le_bytes());
        self.filled.clear();
        let mut done = 0;
        while done < bytes {
            let is_first = self.filled.is_empty();
            let is_lost = self.filled.len() == usize::from(most);
            let chain = if is_first { &mut self.first } else { &mut self.chain };
            if is_lost || !queue.pop_or_arm(memory, chain)? {
                queue.unpop(self.filled.iter().map(|filled| filled.0));
                self.waiting = if is_lost { 0 } else { self.waiting };
                return Ok(is_lost);
            }
            // Each holds the header at least (5.1.6.3.1).
            if total_bytes(chain.writable()) < HEADER as u64 {
                return Err(DriverError::Request);
            }
            let written = chain.write(memory, &self.incoming[done..bytes])?;
            self.filled.push((chain.head(), written as u32));
            done += written;
        }
        if self.filled.len() > 1 {
            let mut count = Cursor::new(self.first.writable());
            count.skip(10);
            count.write(memory, &(self.filled.len() as u16).to_le_bytes())?;
        }
        for &(head, written) in &self.filled {
            queue.put(memory, head, written)?;
        }
        // A driver looks for all buffers of a frame once it sees the first.
        queue.publish(memory)?;
        self.waiting = 0;
        Ok(true)
    }
}

impl Device for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }

    fn features(&self) -> u64 {
        let of_several = if self.pairs > 1 { feature::CTRL_VQ | feature::MQ } else { 0 };
        of_several
            | feature::CSUM
            | feature::GUEST_CSUM
            | feature::MTU
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::MRG_RXBUF
            | feature::STATUS
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        read_config_bytes(&self.config, offset, into);
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        self.link.take_long(self.takes_long());
    }

    fn reset(&mut self) {
        self.set_features(0);
        self.waiting = 0;
        (self.untold, self.is_waiting) = (0, false);
        self.steering.set_pairs(1);
    }

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        let control = self.control_queue();
        if control != Some(index) && index % 2 == RECEIVE {
            return self.receive(memory, queues);
        }
        if control == Some(index)
            && let Some(queue) = queues.get_mut(index)
        {
            return self.control(memory, queue);
        }
        let turn = self.transmit(memory, queues, index);
        self.link.flush();
        turn
    }

    fn settle<M: GuestMemory>(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        is_silent: bool,
    ) -> Result<bool, DriverError> {
        let interrupt = self.wants_to_know_sent(memory, queues)?;
        // Linux 6.11, with its limits of bytes in a queue, may send nothing more before it knows.
        self.is_waiting = interrupt && is_silent;
        Ok(interrupt)
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        self.receive(memory, queues)
    }
}
