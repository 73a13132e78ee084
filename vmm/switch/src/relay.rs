//! How packets of sockets go ([`vmm_protocol::vsock`]): from VM to VM by context id, and none is lost.
//!
//! 1. A device sends from its own context id alone; else the packet is dropped.
//! 2. A packet for a VM that is not there is answered by [`Notice::Gone`].
//! 3. A packet for a VM whose ring is full stays where it is, and what its sender sent behind it. A VM that then does not take
//!    half a ring in [`PATIENCE_MS`] is cut off, so that it delays nobody for longer: its session ends.
//! 4. When a VM's session ends, all others are told.

use crate::forward::BATCH;
use alloc::vec::Vec;
use net_channel::{End, Frame, Signal};
use vmm_protocol::net::{Header, Session};
use vmm_protocol::vsock::{HALF, HEADER_BYTES, NOTICE_BYTES, Notice};

/// How long a VM may keep others waiting, in ms.
pub const PATIENCE_MS: u64 = 1000;

/// A port.
#[derive(Debug)]
struct Port<S> {
    end: End<S>,
    cid: u32,
    /// The session that the ends are in.
    session: Session,
    /// The guest takes packets.
    is_open: bool,
    /// Ports, as bits, whose sessions ended, and this one was not told.
    owed: u64,
    /// It was given packets that it was not told of.
    is_owed_flush: bool,
    /// Since when it does not take half a ring, others having waited; and whether some wait.
    full_since: Option<u64>,
    is_awaited: bool,
}

/// The sockets' part of a switch.
#[derive(Debug)]
pub struct Relay<S> {
    ports: Vec<Port<S>>,
    /// Ports, as bits, whose next packet waits for room.
    blocked: u64,
    /// Ticks that a VM may keep others waiting.
    patience: u64,
}

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Passed {
    Done,
    /// It waits for room.
    Waits,
}

impl<S: Signal> Relay<S> {
    /// A relay between these context ids, at most 64.
    pub fn new(ports: Vec<(u32, End<S>)>, ticks_per_second: u64) -> Self {
        let port = |(cid, end): (u32, End<S>)| Port {
            session: end.session(),
            end,
            cid,
            is_open: false,
            owed: 0,
            is_owed_flush: false,
            full_since: None,
            is_awaited: false,
        };
        let patience = (ticks_per_second / 1000).saturating_mul(PATIENCE_MS).max(1);
        Relay { ports: ports.into_iter().map(port).collect(), blocked: 0, patience }
    }

    /// Gives each of these ports, which are bits, a turn, and those that wait for room; at time `now` in ticks. Returns those that
    /// have more to send; the others will signal.
    pub fn round(&mut self, pending: u64, now: u64) -> u64 {
        for index in 0..self.ports.len() {
            self.follow(index);
            self.ports[index].is_awaited = false;
        }
        let turns = pending | core::mem::take(&mut self.blocked);
        let mut rest = 0;
        for index in (0..self.ports.len()).filter(|index| turns & 1 << index != 0) {
            if self.turn(index, now) {
                rest |= 1 << index;
            }
        }
        for index in 0..self.ports.len() {
            self.tell(index);
            let port = &mut self.ports[index];
            if core::mem::take(&mut port.is_owed_flush) {
                port.end.flush();
            }
        }
        rest
    }

    /// When [`Self::round`] is due without a signal; `None` if never.
    pub fn deadline(&self) -> Option<u64> {
        let awaited = self.ports.iter().filter(|port| port.is_awaited);
        let since = awaited.filter_map(|port| port.full_since).min()?;
        Some(since.saturating_add(self.patience))
    }

    /// Notices that a session ended. Returns whether it did.
    fn follow(&mut self, index: usize) -> bool {
        let port = &mut self.ports[index];
        port.end.is_up();
        if port.end.session() == port.session {
            return false;
        }
        port.session = port.end.session();
        port.full_since = None;
        port.owed = 0;
        if core::mem::take(&mut port.is_open) {
            let others = self.ports.iter_mut().enumerate().filter(|(other, _)| *other != index);
            others.for_each(|(_, other)| other.owed |= 1 << index);
        }
        true
    }

    /// Tells a port whose sessions ended, as far as there is room. Returns whether it knows all of it.
    fn tell(&mut self, index: usize) -> bool {
        while self.ports[index].owed != 0 {
            let gone = self.ports[index].owed.trailing_zeros() as usize;
            let cid = self.ports[gone].cid;
            let port = &mut self.ports[index];
            if port.is_open && !port.say_gone(cid) {
                return false;
            }
            port.owed &= port.owed - 1;
        }
        true
    }

    /// One port's turn. Returns whether it has more to send that can go.
    fn turn(&mut self, from: usize, now: u64) -> bool {
        for _ in 0..BATCH {
            let frame = self.ports[from].end.peek();
            // It may be of a session that has ended.
            if self.follow(from) {
                continue;
            }
            let Some(frame) = frame else { return !self.ports[from].end.prepare_to_wait() };
            if self.pass(from, &frame, now) == Passed::Waits {
                self.blocked |= 1 << from;
                return false;
            }
            self.ports[from].end.release_by_halves();
        }
        true
    }

    /// Passes on what a port sent.
    fn pass(&mut self, from: usize, frame: &Frame, now: u64) -> Passed {
        let len = usize::from(frame.header.len);
        // What is checked is what goes on: the sender can change the packet at any moment.
        let start = frame.start();
        let sender = &mut self.ports[from];
        if len == NOTICE_BYTES {
            sender.is_open |= Notice::decode(start) == Some(Notice::Open);
            return Passed::Done;
        }
        let [source, to] = start;
        if len < HEADER_BYTES || source != u64::from(sender.cid) || !sender.is_open || to == source {
            return Passed::Done;
        }
        match self.ports.iter().position(|port| u64::from(port.cid) == to && port.is_open) {
            Some(port) if self.send(port, frame, start, now) => Passed::Done,
            Some(port) if self.ports[port].is_open => Passed::Waits,
            _ => self.ports[from].answer_gone(to),
        }
    }

    /// Sends a packet. Returns whether there was room; cuts off who had none for too long.
    fn send(&mut self, to: usize, frame: &Frame, start: [u64; 2], now: u64) -> bool {
        // What it is told is about the packets before.
        let is_told = self.tell(to);
        let port = &mut self.ports[to];
        let room = port.end.room();
        if !is_told || room == 0 {
            port.is_awaited = true;
            let since = *port.full_since.get_or_insert(now);
            if now.saturating_sub(since) >= self.patience {
                log::warn!("the VM with vsock cid {} takes no packets: its connections end", port.cid);
                port.end.begin();
                self.follow(to);
            }
            return false;
        }
        if room >= HALF {
            port.full_since = None;
        }
        port.is_owed_flush = true;
        let _ = port.end.forward(frame, start);
        true
    }
}

impl<S: Signal> Port<S> {
    /// Says that a context id is gone, if there is room.
    fn say_gone(&mut self, cid: u32) -> bool {
        self.is_owed_flush = true;
        self.end.put(Header { len: NOTICE_BYTES as u16, missing: None }, &Notice::Gone(cid).encode())
    }

    /// Answers a packet for a VM that is not there.
    fn answer_gone(&mut self, cid: u64) -> Passed {
        match u32::try_from(cid) {
            Ok(cid) if !self.say_gone(cid) && self.end.is_up() => Passed::Waits,
            _ => Passed::Done,
        }
    }
}
