//! How frames go.
//!
//! 1. A frame for an address that is known goes there; for one that is not, or for a group, to every port but its own.
//! 2. A card sends from its own address alone, unless it is a bridge's; nobody sends from the address of another's card. Else the
//!    frame is dropped.
//! 3. Each port has its turn: [`BATCH`] frames, and then the next one's. A port that has no room loses its frames, and delays nobody.
//! 4. A checksum that is missing is filled in where a frame leaves for the uplink: a driver's device may not be able to. Between VMs of
//!    one machine nobody needs it.
//! 5. A long frame goes whole to each VM that takes such, and is cut for the others and for the uplink.

use crate::table::{Address, Table};
use alloc::boxed::Box;
use alloc::vec::Vec;
use net_channel::{End, Frame, LongFrame, Signal};
use vdev::net::Checksum;
use vmm_protocol::manifest::MacAddress;
use vmm_protocol::net::{Header, IpVersions, MAX_FRAME};
use vmm_protocol::process::PortConfig;

/// Frames that a port may send before it is another's turn; a long one counts as its slots do.
pub const BATCH: usize = 32;

/// A port.
#[derive(Debug)]
struct Port<S> {
    end: End<S>,
    /// The only address that it may send from.
    only: Option<Address>,
    is_uplink: bool,
    /// It was given frames that it was not told of.
    is_owed_flush: bool,
}

/// A switch with its ports.
#[derive(Debug)]
pub struct Switch<S> {
    ports: Vec<Port<S>>,
    table: Table,
    /// A frame whose checksum is filled in, or a piece of one that is cut.
    scratch: Box<[u8; MAX_FRAME]>,
}

impl<S: Signal> Switch<S> {
    /// A switch with these ports, at most 64.
    pub fn new(ports: Vec<(PortConfig, End<S>)>, ticks_per_second: u64) -> Self {
        let own = |(index, (config, _)): (usize, &(PortConfig, End<S>))| match config {
            PortConfig::Card { address, .. } => Some((Address::from(*address), index)),
            PortConfig::Uplink | PortConfig::Vsock { .. } => None,
        };
        let table = Table::new(ports.iter().enumerate().filter_map(own), ticks_per_second);
        let port = |(config, mut end): (PortConfig, End<S>)| {
            end.take_long(IpVersions::ALL);
            let (only, is_uplink) = match config {
                PortConfig::Card { address, is_bridge: false } => (Some(address.into()), false),
                PortConfig::Card { is_bridge: true, .. } => (None, false),
                PortConfig::Uplink | PortConfig::Vsock { .. } => (None, true),
            };
            Port { end, only, is_uplink, is_owed_flush: false }
        };
        let ports = ports.into_iter().map(port).collect();
        Switch { ports, table, scratch: Box::new([0; MAX_FRAME]) }
    }

    /// Gives each of these ports, which are bits, a turn, at time `now` in ticks. Returns those that have more to send; the others
    /// will signal.
    pub fn round(&mut self, pending: u64, now: u64) -> u64 {
        let mut rest = 0;
        for index in (0..self.ports.len()).filter(|index| pending & 1 << index != 0) {
            if self.turn(index, now) {
                rest |= 1 << index;
            }
        }
        for port in self.ports.iter_mut().filter(|port| port.is_owed_flush) {
            port.end.flush();
            port.is_owed_flush = false;
        }
        rest
    }

    /// One port's turn. Returns whether it has more to send.
    fn turn(&mut self, from: usize, now: u64) -> bool {
        let mut left = BATCH;
        while left > 0 {
            let end = &mut self.ports[from].end;
            let Some(frame) = end.peek() else {
                if end.peek_long().is_none() {
                    return !end.prepare_to_wait();
                }
                left = left.saturating_sub(self.pass_long(from, now));
                continue;
            };
            self.pass(from, &frame, now);
            self.ports[from].end.release();
            left -= 1;
        }
        true
    }

    /// Passes on a long frame, which is next. Returns the slots that it took.
    #[cold]
    fn pass_long(&mut self, from: usize, now: u64) -> usize {
        let Some(frame) = self.ports[from].end.peek_long() else { return 0 };
        self.pass(from, &frame, now);
        self.ports[from].end.release_long();
        frame.long.slots() as usize
    }

    /// Passes a frame on.
    fn pass(&mut self, from: usize, frame: &impl Passing, now: u64) {
        // What is checked is what goes on: the sender can change the frame at any moment.
        let start = frame.start();
        let (to, source) = addresses(start);
        let may_send = !source.is_group()
            && match self.ports[from].only {
                Some(only) => source == only,
                None => self.table.learn(source, from, now),
            };
        if !may_send {
            return;
        }
        let known = if to.is_group() { None } else { self.table.find(to, now) };
        match known {
            Some(to) if to == from => {}
            Some(to) => self.send(to, frame, start),
            None => (0..self.ports.len()).filter(|to| *to != from).for_each(|to| self.send(to, frame, start)),
        }
    }

    fn send(&mut self, to: usize, frame: &impl Passing, start: [u64; 2]) {
        let Some(port) = self.ports.get_mut(to) else { return };
        port.is_owed_flush = true;
        // A port without room loses the frame.
        frame.send(port, start, &mut self.scratch);
    }
}

/// A frame that is passed on.
trait Passing {
    /// Its first bytes.
    fn start(&self) -> [u64; 2];

    /// Gives it to a port, but with these first bytes.
    fn send<S: Signal>(&self, port: &mut Port<S>, start: [u64; 2], scratch: &mut [u8; MAX_FRAME]);
}

impl Passing for Frame {
    #[inline]
    fn start(&self) -> [u64; 2] {
        Frame::start(self)
    }

    #[inline]
    fn send<S: Signal>(&self, port: &mut Port<S>, start: [u64; 2], scratch: &mut [u8; MAX_FRAME]) {
        let header = self.header;
        if let Some((first, offset)) = header.missing.filter(|_| port.is_uplink) {
            self.read(&mut scratch[..]);
            for (word, bytes) in start.iter().zip(scratch.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let bytes = &mut scratch[..header.len.into()];
            Checksum { start: first, offset }.fill_in(bytes);
            let _ = port.end.put(Header { missing: None, ..header }, bytes);
        } else {
            let _ = port.end.forward(self, start);
        }
    }
}

impl Passing for LongFrame {
    fn start(&self) -> [u64; 2] {
        LongFrame::start(self)
    }

    fn send<S: Signal>(
        &self,
        Port { end, is_uplink, .. }: &mut Port<S>,
        start: [u64; 2],
        scratch: &mut [u8; MAX_FRAME],
    ) {
        // Whatever a driver says: no wire carries it.
        if !*is_uplink && end.peer_takes(self.long.version()) {
            let _ = end.forward_long(self, start);
            return;
        }
        self.cut(start, scratch, |piece, missing| {
            let missing = if *is_uplink {
                missing.fill_in(piece);
                None
            } else {
                Some((missing.start, missing.offset))
            };
            let _ = end.put(Header { len: piece.len() as u16, missing }, piece);
        });
    }
}

/// The destination and the source of a frame with these first bytes.
fn addresses([low, high]: [u64; 2]) -> (Address, Address) {
    (Address(low & 0xffff_ffff_ffff), Address(low >> 48 | (high & 0xffff_ffff) << 16))
}

impl From<MacAddress> for Address {
    fn from(MacAddress([a, b, c, d, e, f]): MacAddress) -> Self {
        Address(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }
}
