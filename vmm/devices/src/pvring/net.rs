//! A network card on native rings.

use super::queue::{End, Queue, Turn};
use crate::guest_mem::GuestMemory;
use crate::net::{Link, MAX_FRAME, MIN_FRAME};
use crate::segment::{Cursor, Segment, total_bytes};
use alloc::boxed::Box;
use core::fmt;
use hypercall_abi::guest::device::{Fault, feature};
use hypercall_abi::guest::op::{self, Status};

/// Payload that a frame can carry.
pub(super) const MTU: u64 = 1500;

/// The front end of a [`Link`].
pub struct Net {
    link: Box<dyn Link>,
    address: u64,
    /// A frame of the driver's.
    outgoing: Box<[u8; MAX_FRAME]>,
    /// A frame for the driver.
    incoming: Box<[u8; MAX_FRAME]>,
    /// Bytes of the frame that came and waits for a buffer; 0 if there is none.
    waiting: usize,
    /// Guest-physical address of the link's channel; 0 if the guest does not get it.
    channel: u64,
    /// Who is at the link's other end can interrupt a driver that is its end by this line of the vCPU.
    line: Option<usize>,
    /// The driver is the end of the link.
    is_direct: bool,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Net {
    /// A card with this address on a link.
    pub fn new(link: Box<dyn Link>, [a, b, c, d, e, f]: [u8; 6]) -> Self {
        Net {
            link,
            address: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            outgoing: Box::new([0; MAX_FRAME]),
            incoming: Box::new([0; MAX_FRAME]),
            waiting: 0,
            channel: 0,
            line: None,
            is_direct: false,
        }
    }

    /// The same, whose link is a channel that the guest has at this address. Whoever binds the doorbell call rings it, and
    /// `line` of the vCPU, if there is one, is the link's.
    pub fn with_channel(self, address: u64, line: Option<usize>) -> Self {
        Net { channel: address, line, ..self }
    }

    /// The address of the channel.
    pub(super) fn channel(&self) -> u64 {
        self.channel
    }

    pub(super) fn features(&self) -> u64 {
        if self.channel != 0 { feature::NET_DIRECT } else { 0 }
    }

    /// The driver starts with these features, all of them offered.
    pub(super) fn start(&mut self, accepted: u64) {
        self.is_direct = accepted & feature::NET_DIRECT != 0;
    }

    /// Whether the driver is the end of the link. Then all there is to do is to tell it of news.
    pub(super) fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// The line of the vCPU that interrupts the driver, if there is one now.
    pub(super) fn line(&self) -> Option<usize> {
        self.line.filter(|_| self.is_direct)
    }

    /// Whether there are news for a driver that is the end of the link.
    pub(super) fn has_news(&mut self) -> bool {
        self.link.has_news()
    }

    /// The Ethernet address, first byte lowest.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn reset(&mut self) {
        self.waiting = 0;
        if core::mem::take(&mut self.is_direct) {
            self.link.restart();
        }
    }

    /// Gives the driver what came, as far as it has buffers.
    pub(super) fn receive<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queue: &mut Queue,
    ) -> Result<Turn, Fault> {
        queue.look(memory)?;
        while self.waiting > 0 || self.fetch() {
            let Some(request) = queue.take(memory)? else {
                // A frame waits and there is no buffer: the next one is worth a doorbell.
                return queue.settle(memory);
            };
            let count = queue.load_segments(memory, &request)?;
            let end = match request.op {
                op::READ => self.deliver(memory, queue.segments(count))?,
                _ => (Status::Unsupported, 0),
            };
            queue.complete(memory, request.id, end)?;
        }
        queue.settle_silently(memory)
    }

    /// Takes a frame from the link, whole. What is no frame is dropped.
    fn fetch(&mut self) -> bool {
        while let Some((len, missing)) = self.link.receive(&mut self.incoming[..]) {
            if (MIN_FRAME..=MAX_FRAME).contains(&len) {
                if let Some(missing) = missing {
                    missing.fill_in(&mut self.incoming[..len]);
                }
                self.waiting = len;
                return true;
            }
        }
        false
    }

    fn deliver(&mut self, memory: &mut impl GuestMemory, buffer: &[Segment]) -> Result<End, Fault> {
        let len = core::mem::take(&mut self.waiting);
        if total_bytes(buffer) < len as u64 {
            return Ok((Status::OutOfRange, 0));
        }
        Cursor::new(buffer).write(memory, &self.incoming[..len]).map_err(|_| Fault::Address)?;
        Ok((Status::Done, len as u32))
    }

    /// Sends what the driver has.
    pub(super) fn send<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<Turn, Fault> {
        let turn = queue.serve(memory, |memory, request, segments| {
            let bytes = total_bytes(segments);
            if request.op != op::WRITE {
                return Ok((Status::Unsupported, 0));
            }
            let Some(len) = usize::try_from(bytes).ok().filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len))
            else {
                return Ok((Status::OutOfRange, 0));
            };
            let frame = &mut self.outgoing[..len];
            Cursor::new(segments).read(memory, frame).map_err(|_| Fault::Address)?;
            self.link.send(frame, None);
            Ok((Status::Done, len as u32))
        });
        self.link.flush();
        turn
    }
}
