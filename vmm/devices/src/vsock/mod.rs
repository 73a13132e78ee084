//! Sockets without a network (AF_VSOCK): where a guest's packets go, and whose packets it gets.
//!
//! A VM is known by its context id, a number from [`packet::FIRST`] on. Packets for [`packet::HOST`] are for services of the VMM
//! ([`host`]); packets for another VM go over a [`Link`]. The two guests of a connection account for each other's buffers
//! (virtio 1.2, 5.10.6.3): the way between them loses nothing and holds packets back where there is no room.
//!
//! 1. A guest sends from its own context id alone; what claims another is dropped.
//! 2. What can have no receiver, and what belongs to no connection, is answered by a reset.
//! 3. When a VM at the other end is gone, or something was lost on the way, each connection that it concerns is reset.
//! 4. A guest that does not fetch its answers is not listened to.

pub mod host;
pub mod packet;

mod connections;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use connections::Connections;
use core::fmt;
use host::Host;
use packet::{FIRST, HEADER, HOST, Header, LAST, op};

/// Most bytes of data that one packet carries over a link.
pub const MAX_DATA: usize = 1472;
/// Most bytes of a packet there.
pub const MAX_PACKET: usize = HEADER + MAX_DATA;
/// Answers that wait for the guest when it is not listened to any more.
const MOST_ANSWERS: usize = 64;

/// Whether a link takes a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// It does.
    Free,
    /// Not now. Its owner says when ([`crate::virtio::Device::poll`]).
    Full,
    /// Nobody is there.
    Down,
}

/// What comes from a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// A packet of so many bytes.
    Packet(usize),
    /// Every connection with this context id is gone.
    Gone(u32),
    /// Every connection is gone.
    Interrupted,
}

/// The way to other VMs. Packets arrive in order, and all of them or [`Arrival::Gone`].
pub trait Link {
    /// The guest takes packets from now on.
    fn open(&mut self);

    /// It takes none any more, and has forgotten its connections: the others are told.
    fn close(&mut self);

    /// Whether there is room for a packet.
    fn room(&mut self) -> Room;

    /// Sends a packet of [`HEADER`] to [`MAX_PACKET`] bytes; only after [`Self::room`] said that there is. It may wait for the next
    /// [`Self::flush`].
    fn send(&mut self, packet: &[u8]);

    /// Lets go what was sent.
    fn flush(&mut self) {}

    /// Takes what came next. The bytes of a packet are the first of `into`. What comes from a stranger may be anything.
    fn receive(&mut self, into: &mut [u8; MAX_PACKET]) -> Option<Arrival>;
}

/// Where a packet of the guest's goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Nowhere: it is dropped, and answered if need be.
    Nowhere,
    /// To the services of the VMM.
    Host,
    /// To another VM.
    Link,
}

/// A VM's sockets.
pub struct Vsock {
    cid: u32,
    link: Option<Box<dyn Link>>,
    is_open: bool,
    connections: Connections,
    host: Host,
    /// Packets for the guest.
    answers: VecDeque<Header>,
    /// A packet for the link, which had no room for it.
    refusal: Option<Header>,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock").field("cid", &self.cid).finish_non_exhaustive()
    }
}

impl Vsock {
    /// The sockets of the VM with this context id, and the way to others if there is one.
    pub fn new(cid: u32, link: Option<Box<dyn Link>>) -> Self {
        Vsock {
            cid,
            link,
            is_open: false,
            connections: Connections::default(),
            host: Host::new(cid),
            answers: VecDeque::new(),
            refusal: None,
        }
    }

    /// The VM's context id.
    pub fn cid(&self) -> u32 {
        self.cid
    }

    /// The services of the VMM.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The services of the VMM, to take something from.
    pub fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    /// The guest takes packets from now on.
    pub fn open(&mut self) {
        if let Some(link) = self.link.as_mut().filter(|_| !self.is_open) {
            link.open();
        }
        self.is_open = true;
    }

    /// The guest has forgotten its connections.
    pub fn reset(&mut self) {
        if let Some(link) = self.link.as_mut().filter(|_| self.is_open) {
            link.close();
        }
        self.is_open = false;
        self.connections.clear();
        self.host.reset();
        self.answers.clear();
        self.refusal = None;
    }

    /// Whether the guest is to fetch answers before it is listened to again.
    pub fn is_congested(&self) -> bool {
        self.answers.len() >= MOST_ANSWERS
    }

    /// Where the packet of the guest's with this header goes. It is noted what that does to connections.
    pub fn admit(&mut self, header: &Header) -> Way {
        if header.src_cid != u64::from(self.cid) {
            return Way::Nowhere;
        }
        match u32::try_from(header.dst_cid) {
            Ok(cid) if header.is_sound() && self.link.is_some() && is_vm(cid) && cid != self.cid => {
                match self.connections.admit(header.src_port, (cid, header.dst_port), header) {
                    true => Way::Link,
                    false => self.refuse(header),
                }
            }
            _ if header.is_sound() && header.dst_cid == HOST => Way::Host,
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) -> Way {
        if header.op != op::RST {
            self.answers.push_back(header.answer(op::RST));
        }
        Way::Nowhere
    }

    /// Whether a packet with this header can go its way now. If it never can, that is answered.
    pub fn room(&mut self, way: Way, header: &Header) -> Room {
        let room = match (way, &mut self.link) {
            (Way::Link, Some(link)) => link.room(),
            (Way::Host, _) => Room::Free,
            _ => Room::Down,
        };
        if room == Room::Down && way == Way::Link {
            self.connections.remove(header.src_port, (header.dst_cid as u32, header.dst_port));
            self.refuse(header);
        }
        room
    }

    /// Sends a packet, or a piece of one: `header`, which is that of `packet`, and data. Only after [`Self::room`] said that there is.
    pub fn send(&mut self, way: Way, header: &Header, packet: &[u8]) {
        match (way, &mut self.link) {
            (Way::Link, Some(link)) => link.send(packet),
            (Way::Host, _) => self.host.take(header, &packet[HEADER..], &mut self.answers),
            _ => {}
        }
    }

    /// Lets go what was sent.
    pub fn flush(&mut self) {
        if let Some(link) = &mut self.link {
            link.flush();
        }
    }

    /// Takes the next packet for the guest, if there is one: its bytes are the first of `into`.
    pub fn next(&mut self, into: &mut [u8; MAX_PACKET]) -> Option<usize> {
        if let Some(answer) = self.answers.pop_front() {
            into[..HEADER].copy_from_slice(&answer.encode());
            return Some(HEADER);
        }
        self.host.next(into).or_else(|| self.next_of_link(into))
    }

    fn next_of_link(&mut self, into: &mut [u8; MAX_PACKET]) -> Option<usize> {
        loop {
            self.send_refusal()?;
            match self.link.as_mut()?.receive(into)? {
                Arrival::Packet(len) => {
                    if self.accept(into, len) {
                        return Some(len);
                    }
                }
                Arrival::Gone(cid) => self.connections.end_with(cid, self.cid, &mut self.answers),
                Arrival::Interrupted => self.connections.end_all(self.cid, &mut self.answers),
            }
            if let Some(answer) = self.answers.pop_front() {
                into[..HEADER].copy_from_slice(&answer.encode());
                return Some(HEADER);
            }
        }
    }

    /// Sends the answer that the link had no room for; `None` if there is none yet.
    fn send_refusal(&mut self) -> Option<()> {
        if let (Some(refusal), Some(link)) = (&self.refusal, &mut self.link) {
            match link.room() {
                Room::Full => return None,
                Room::Down => {}
                Room::Free => {
                    link.send(&refusal.encode());
                    link.flush();
                }
            }
            self.refusal = None;
        }
        Some(())
    }

    /// Whether the guest gets this packet of another VM.
    fn accept(&mut self, packet: &[u8; MAX_PACKET], len: usize) -> bool {
        let Some(header) = packet.first_chunk().map(Header::decode) else { return false };
        let sender = u32::try_from(header.src_cid).ok().filter(|cid| is_vm(*cid) && *cid != self.cid);
        let is_whole = len.checked_sub(HEADER) == Some(header.len as usize) && len <= MAX_PACKET;
        let (Some(sender), true) = (sender, is_whole && header.is_sound()) else { return false };
        if header.dst_cid != u64::from(self.cid) {
            return false;
        }
        // What belongs to no connection is for the guest to answer.
        let is_admitted = self.connections.admit(header.dst_port, (sender, header.src_port), &header);
        if header.op == op::REQUEST && !is_admitted {
            self.refusal = Some(header.answer(op::RST));
            return false;
        }
        true
    }
}

/// Whether a VM can have this context id.
fn is_vm(cid: u32) -> bool {
    (FIRST..=LAST).contains(&cid)
}

#[cfg(any(test, feature = "fake"))]
pub use fake::Wire;

#[cfg(any(test, feature = "fake"))]
mod fake {
    use super::{Arrival, HEADER, Link, MAX_PACKET, Room};
    use alloc::collections::VecDeque;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    type Queue = Rc<RefCell<VecDeque<Result<Vec<u8>, Arrival>>>>;

    /// One end of a link for tests, between two VMs.
    #[derive(Clone, Debug)]
    pub struct Wire {
        to: Queue,
        from: Queue,
        /// Packets that there is room for in either direction.
        room: Rc<Cell<usize>>,
        /// Whether the two ends are open, this one first.
        is_open: [Rc<Cell<bool>>; 2],
        /// The context id at this end.
        cid: u32,
    }

    impl Wire {
        /// Both ends of a link, at VMs with these context ids.
        pub fn new(cids: [u32; 2]) -> [Self; 2] {
            let (one, other, room) = (Queue::default(), Queue::default(), Rc::new(Cell::new(usize::MAX)));
            let [here, there] = [Rc::new(Cell::new(false)), Rc::new(Cell::new(false))];
            [
                Wire {
                    to: one.clone(),
                    from: other.clone(),
                    room: room.clone(),
                    is_open: [here.clone(), there.clone()],
                    cid: cids[0],
                },
                Wire { to: other, from: one, room, is_open: [there, here], cid: cids[1] },
            ]
        }

        /// Limits the packets that there is room for.
        pub fn limit(&self, packets: usize) {
            self.room.set(packets);
        }

        /// Whether this end is open.
        pub fn is_open(&self) -> bool {
            self.is_open[0].get()
        }

        /// Has something arrive at the other end that is no packet.
        pub fn say(&self, arrival: Arrival) {
            self.to.borrow_mut().push_back(Err(arrival));
        }
    }

    impl Link for Wire {
        fn open(&mut self) {
            self.from.borrow_mut().clear();
            self.is_open[0].set(true);
        }

        fn close(&mut self) {
            self.is_open[0].set(false);
            self.say(Arrival::Gone(self.cid));
        }

        fn room(&mut self) -> Room {
            match self.to.borrow().len() {
                _ if !self.is_open[1].get() => Room::Down,
                len if len < self.room.get() => Room::Free,
                _ => Room::Full,
            }
        }

        fn send(&mut self, packet: &[u8]) {
            assert!((HEADER..=MAX_PACKET).contains(&packet.len()) && self.room() == Room::Free);
            self.to.borrow_mut().push_back(Ok(packet.to_vec()));
        }

        fn receive(&mut self, into: &mut [u8; MAX_PACKET]) -> Option<Arrival> {
            Some(match self.from.borrow_mut().pop_front()? {
                Ok(packet) => {
                    into[..packet.len()].copy_from_slice(&packet);
                    Arrival::Packet(packet.len())
                }
                Err(arrival) => arrival,
            })
        }
    }
}
