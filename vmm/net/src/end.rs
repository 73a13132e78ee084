//! One end of a channel.

use crate::Signal;
use core::sync::atomic::{Ordering, fence};
use usys::Window;
use usys::window::OutOfWindow;
use vmm_protocol::net::{CHANNEL_BYTES, FRAME, Header, SLOTS, Session, Side, Taken};

/// A frame in the peer's ring. The peer can change its bytes at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// What was said about it: read once, and checked.
    pub header: Header,
    /// Where its bytes are in the channel.
    offset: usize,
    channel: Window,
}

impl Frame {
    /// The first 16 bytes, as little-endian words: the addresses, the type, and what follows. Behind a shorter frame they are
    /// anything.
    #[inline]
    pub fn start(&self) -> [u64; 2] {
        // Both are inside the slot, as a slot's frame is.
        [0, 8].map(|at| self.channel.read_u64(self.offset + at).unwrap_or(0))
    }

    /// Copies the frame to the beginning of `into`, as far as there is room.
    #[inline]
    pub fn read(&self, into: &mut [u8]) {
        let len = into.len().min(self.header.len.into());
        let _ = self.channel.read(self.offset, &mut into[..len]);
    }
}

/// One end of a channel.
#[derive(Debug)]
pub struct End<S> {
    channel: Window,
    side: Side,
    peer: S,
    /// What this end says of itself.
    session: Session,
    /// The peer's session when it was last looked at, as a word.
    peer_session: u64,
    /// Each end has seen the other.
    is_up: bool,
    /// Frames put into this end's ring.
    put: u32,
    /// How many of them the peer knows of.
    shown: u32,
    /// Frames that the peer had taken when it was last looked at.
    peer_taken: u32,
    /// Frames taken out of the peer's ring.
    taken: Taken,
    /// Frames that were in the peer's ring, from the first one on, when it was last looked at.
    peer_put: u32,
}

impl<S: Signal> End<S> {
    /// Begins to use a channel. A predecessor may have used it.
    ///
    /// # Errors
    /// The memory is too short for a channel.
    pub fn new(channel: Window, side: Side, peer: S) -> Result<Self, OutOfWindow> {
        if channel.len() < CHANNEL_BYTES {
            return Err(OutOfWindow);
        }
        let mut end = End {
            channel,
            side,
            peer,
            session: Session::default(),
            peer_session: 0,
            is_up: false,
            put: 0,
            shown: 0,
            peer_taken: 0,
            taken: Taken::default(),
            peer_put: 0,
        };
        end.begin();
        Ok(end)
    }

    /// Begins with empty rings and a number that no predecessor had: as the first thing, after somebody else was this end, and when the
    /// peer broke the rules.
    #[cold]
    pub(crate) fn begin(&mut self) {
        let predecessor = Session::decode(self.load_u64(self.side.session())).own;
        self.session.own = predecessor.wrapping_add(1).max(1);
        self.peer_session = self.load_u64(self.side.peer().session());
        self.is_up = false;
        self.show_session();
    }

    /// Empties the rings, and then shows the peer which instances talk.
    fn show_session(&mut self) {
        self.session.seen = Session::decode(self.peer_session).own;
        (self.put, self.shown, self.peer_taken, self.peer_put) = (0, 0, 0, 0);
        self.store(self.side.put(), 0);
        self.set_taken(Taken::default());
        self.store_u64(self.side.session(), self.session.encode());
        self.peer.signal();
    }

    /// Notices what the peer put or that it began anew, for somebody else who is this end. Returns whether it did since the last call.
    pub(crate) fn notice(&mut self) -> bool {
        let now = (self.load_u64(self.side.peer().session()), self.load(self.side.peer().put()));
        let before = (self.peer_session, self.peer_put);
        (self.peer_session, self.peer_put) = now;
        now != before
    }

    /// Notices that the peer began anew. Returns whether frames can pass.
    #[inline]
    pub fn is_up(&mut self) -> bool {
        let peer_session = self.load_u64(self.side.peer().session());
        if peer_session != self.peer_session {
            self.follow_peer(peer_session);
        }
        self.is_up
    }

    #[cold]
    fn follow_peer(&mut self, word: u64) {
        self.peer_session = word;
        let peer = Session::decode(word);
        if peer.own != self.session.seen {
            self.show_session();
        }
        self.is_up = peer.own != 0 && peer.seen == self.session.own;
    }

    /// The slot for the next frame of this end, if there is one free.
    #[inline]
    fn free_slot(&mut self) -> Option<usize> {
        if !self.is_up && !self.is_up() {
            return None;
        }
        if self.put.wrapping_sub(self.peer_taken) >= SLOTS as u32 {
            self.peer_taken = self.peers_taken().count;
            // More than all is nonsense of the peer's, and its loss.
            if self.put.wrapping_sub(self.peer_taken) >= SLOTS as u32 {
                return None;
            }
        }
        Some(self.side.slot(self.put))
    }

    /// Puts a frame of `header.len` bytes into the ring; the peer sees it with the next [`Self::flush`]. `false` if it is lost, because
    /// the ring is full or nobody is there.
    #[inline]
    pub fn put(&mut self, header: Header, frame: &[u8]) -> bool {
        self.put_with(header, |channel, at| channel.write(at, frame))
    }

    /// Forwards a frame of another channel, but for its first bytes, which are these. As [`Self::put`].
    #[inline]
    pub fn forward(&mut self, frame: &Frame, start: [u64; 2]) -> bool {
        self.put_with(frame.header, |channel, at| {
            channel.write(at, &start[0].to_le_bytes())?;
            channel.write(at + 8, &start[1].to_le_bytes())?;
            let rest = usize::from(frame.header.len).saturating_sub(16);
            channel.copy_from(at + 16, &frame.channel, frame.offset + 16, rest)
        })
    }

    #[inline]
    fn put_with(
        &mut self,
        header: Header,
        copy: impl FnOnce(&Window, usize) -> Result<(), OutOfWindow>,
    ) -> bool {
        let Some(slot) = self.free_slot() else { return false };
        if copy(&self.channel, slot + FRAME).is_err() {
            return false;
        }
        self.store_u64(slot, header.encode());
        self.put = self.put.wrapping_add(1);
        true
    }

    /// Shows the peer the frames that were put, and wakes it if it waits.
    #[inline]
    pub fn flush(&mut self) {
        if self.put == self.shown {
            return;
        }
        self.store(self.side.put(), self.put);
        // Pairs with the fence in `prepare_to_wait`.
        fence(Ordering::SeqCst);
        let taken = self.peers_taken();
        self.peer_taken = taken.count;
        if taken.wants_signal(self.shown, self.put) {
            self.peer.signal();
        }
        self.shown = self.put;
    }

    /// The oldest frame in the peer's ring. It is there until [`Self::release`].
    #[inline]
    pub fn peek(&mut self) -> Option<Frame> {
        if self.peer_put == self.taken.count && !self.look() {
            return None;
        }
        let slot = self.side.peer().slot(self.taken.count);
        let Some(header) = Header::decode(self.load_u64(slot)) else {
            self.begin();
            return None;
        };
        Some(Frame { header, offset: slot + FRAME, channel: self.channel })
    }

    /// Gives the slot of the oldest frame back. Only after [`Self::peek`] showed one.
    #[inline]
    pub fn release(&mut self) {
        self.set_taken(Taken { count: self.taken.count.wrapping_add(1), ..self.taken });
    }

    /// Looks whether there are more frames.
    fn look(&mut self) -> bool {
        if !self.is_up() {
            return false;
        }
        let put = self.load(self.side.peer().put());
        let count = put.wrapping_sub(self.taken.count);
        if count > SLOTS as u32 {
            self.begin();
            return false;
        }
        self.peer_put = put;
        count > 0
    }

    /// Asks for a signal with the next frame. `false` if there is one already: then take it, and do not wait.
    #[inline]
    pub fn prepare_to_wait(&mut self) -> bool {
        self.set_taken(Taken { threshold: self.taken.count, ..self.taken });
        // Pairs with the fence in `flush`: either this sees the frame, or the peer sees the threshold.
        fence(Ordering::SeqCst);
        !self.look()
    }

    fn peers_taken(&self) -> Taken {
        Taken::decode(self.load_u64(self.side.taken()))
    }

    fn set_taken(&mut self, taken: Taken) {
        self.taken = taken;
        self.store_u64(self.side.peer().taken(), taken.encode());
    }

    // The offsets are inside, as `new` checked the length.

    #[inline]
    fn load(&self, offset: usize) -> u32 {
        self.channel.atomic_u32(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store(&self, offset: usize, value: u32) {
        if let Ok(word) = self.channel.atomic_u32(offset) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn load_u64(&self, offset: usize) -> u64 {
        self.channel.atomic_u64(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store_u64(&self, offset: usize, value: u64) {
        if let Ok(word) = self.channel.atomic_u64(offset) {
            word.store(value, Ordering::Release);
        }
    }
}
