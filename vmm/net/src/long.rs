//! Long frames on a channel: whole between ends that take them so, and cut for those that do not.

use crate::end::Channel;
use crate::{End, Signal};
use usys::Window;
use usys::window::OutOfWindow;
use vdev::net::Checksum;
use vdev::tso::Cut;
use vmm_protocol::net::{FRAME, IpVersion, IpVersions, Long, MAX_FRAME, MAX_HEADERS, Side};

/// A long frame in the peer's ring. The peer can change its bytes at any moment.
#[derive(Clone, Copy, Debug)]
pub struct LongFrame {
    /// What was said about it: read once, and checked.
    pub long: Long,
    /// Whose ring it is in, and the slot where it begins.
    side: Side,
    slot: usize,
    channel: Window,
}

impl LongFrame {
    /// As [`crate::Frame::start`].
    pub fn start(&self) -> [u64; 2] {
        // Both are inside the slot, behind its header.
        [0, 8].map(|at| self.channel.read_u64(self.slot + FRAME + at).unwrap_or(0))
    }

    /// Copies the bytes from offset `at` of the frame on to the beginning of `into`, as far as there is room.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        let len = into.len().min(self.long.bytes().saturating_sub(at));
        let mut done = 0;
        while done < len {
            let (offset, left) = self.side.place(self.slot, at + done);
            let end = len.min(done + left);
            // A place is inside of its ring.
            let _ = self.channel.read(offset, &mut into[done..end]);
            done = end;
        }
    }

    /// Cuts the frame, but with these first bytes; `each` gets each piece, at the beginning of `scratch`, and what is missing in it. One
    /// that cannot be cut is lost.
    pub fn cut(&self, start: [u64; 2], scratch: &mut [u8; MAX_FRAME], each: impl FnMut(&mut [u8], Checksum)) {
        let mut first = [0; MAX_HEADERS];
        self.read(0, &mut first);
        for (word, bytes) in start.iter().zip(first.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        if let Some(cut) = Cut::new(&first[..MAX_HEADERS.min(self.long.bytes())], self.long) {
            cut.pieces(scratch, |at, into| self.read(at, into), each);
        }
    }
}

impl<S: Signal> End<S> {
    /// As [`vmm_protocol::net::Rings::take_long`].
    pub fn take_long(&mut self, versions: IpVersions) {
        self.0.take_long(versions);
    }

    /// As [`vmm_protocol::net::Rings::peer_takes`].
    pub fn peer_takes(&self, version: IpVersion) -> bool {
        self.0.peer_takes(version)
    }

    /// Puts a long frame into the ring of a peer that takes such. As [`Self::put`].
    pub fn put_long(&mut self, long: Long, frame: &[u8]) -> bool {
        self.put_long_with(long, |Channel { memory, side, .. }, slot| {
            let mut rest = frame;
            while !rest.is_empty() {
                let (offset, left) = side.place(slot, frame.len() - rest.len());
                let (now, later) = rest.split_at(left.min(rest.len()));
                memory.write(offset, now)?;
                rest = later;
            }
            Ok(())
        })
    }

    /// Forwards a long frame of another channel, but for its first bytes, which are these, to a peer that takes such. As [`Self::put`].
    pub fn forward_long(&mut self, frame: &LongFrame, start: [u64; 2]) -> bool {
        self.put_long_with(frame.long, |Channel { memory, side, .. }, slot| {
            memory.write(slot + FRAME, &start[0].to_le_bytes())?;
            memory.write(slot + FRAME + 8, &start[1].to_le_bytes())?;
            let mut at = 16;
            while at < frame.long.bytes() {
                let (to, left) = side.place(slot, at);
                let (from, there) = frame.side.place(frame.slot, at);
                let len = left.min(there).min(frame.long.bytes() - at);
                memory.copy_from(to, &frame.channel, from, len)?;
                at += len;
            }
            Ok(())
        })
    }

    fn put_long_with(
        &mut self,
        long: Long,
        copy: impl FnOnce(&Channel<S>, usize) -> Result<(), OutOfWindow>,
    ) -> bool {
        let Some(slot) = self.0.free_slots(long) else { return false };
        if copy(self.0.wire(), slot).is_err() {
            return false;
        }
        self.0.put_long(slot, long);
        true
    }

    /// The oldest frame in the peer's ring, if it is a long one and [`Self::peek`] just found none for that. It is there until
    /// [`Self::release_long`].
    #[inline]
    pub fn peek_long(&self) -> Option<LongFrame> {
        let (slot, long) = self.0.peek_long()?;
        let Channel { memory, side, .. } = self.0.wire();
        Some(LongFrame { long, side: side.peer(), slot, channel: *memory })
    }

    /// Gives the slots of the long frame back that [`Self::peek_long`] showed.
    pub fn release_long(&mut self) {
        self.0.release_long();
    }
}
