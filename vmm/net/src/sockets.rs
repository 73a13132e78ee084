//! A VMM's socket device on the channel to its switch ([`vmm_protocol::vsock`]).

use crate::{End, Signal};
use vdev::vsock::{Arrival, Link, MAX_PACKET, Room, packet};
use vmm_protocol::net::{Header, MAX_FRAME, Session};
use vmm_protocol::vsock::{HEADER_BYTES, NOTICE_BYTES, Notice};

const _: () = assert!(MAX_PACKET <= MAX_FRAME && packet::HEADER == HEADER_BYTES);

/// The device's end.
#[derive(Debug)]
pub struct Sockets<S> {
    end: End<S>,
    /// The guest takes packets.
    is_open: bool,
    /// The session in which the link is, and whether the switch was told in it that the guest takes packets.
    session: Session,
    is_announced: bool,
    /// The session before ended, and the device does not know.
    is_interrupted: bool,
}

impl<S: Signal> Sockets<S> {
    /// A device at this end, whose guest takes no packets yet.
    pub fn new(end: End<S>) -> Self {
        let session = end.session();
        Sockets { end, is_open: false, session, is_announced: false, is_interrupted: false }
    }

    /// Notices that the session ended. Returns whether the switch is there.
    fn follow(&mut self) -> bool {
        let is_up = self.end.is_up();
        if self.end.session() != self.session {
            self.session = self.end.session();
            self.is_announced = false;
            self.is_interrupted = true;
        }
        if is_up && self.is_open && !self.is_announced {
            let header = Header { len: NOTICE_BYTES as u16, missing: None };
            self.is_announced = self.end.put(header, &Notice::Open.encode());
            self.end.flush();
        }
        is_up
    }
}

impl<S: Signal> Link for Sockets<S> {
    fn open(&mut self) {
        self.is_open = true;
        self.follow();
        // There is no connection that could have been interrupted.
        self.is_interrupted = false;
    }

    fn close(&mut self) {
        self.is_open = false;
        self.end.begin();
    }

    fn room(&mut self) -> Room {
        match self.follow() {
            false => Room::Down,
            true if self.end.room() > 0 => Room::Free,
            true => Room::Full,
        }
    }

    fn send(&mut self, packet: &[u8]) {
        // There was room; if the switch began anew since, the session has ended.
        let _ = self.end.put(Header { len: packet.len() as u16, missing: None }, packet);
    }

    fn flush(&mut self) {
        self.end.flush();
    }

    fn receive(&mut self, into: &mut [u8; MAX_PACKET]) -> Option<Arrival> {
        loop {
            let frame = self.end.peek();
            self.follow();
            if core::mem::take(&mut self.is_interrupted) {
                return Some(Arrival::Interrupted);
            }
            let Some(frame) = frame else {
                if self.end.prepare_to_wait() {
                    return None;
                }
                continue;
            };
            let len = usize::from(frame.header.len);
            let arrival = if len == NOTICE_BYTES {
                match Notice::decode(frame.start()) {
                    Some(Notice::Gone(cid)) => Some(Arrival::Gone(cid)),
                    _ => None,
                }
            } else {
                frame.read(into);
                (len <= MAX_PACKET).then_some(Arrival::Packet(len))
            };
            self.end.release_by_halves();
            if arrival.is_some() {
                return arrival;
            }
        }
    }
}
