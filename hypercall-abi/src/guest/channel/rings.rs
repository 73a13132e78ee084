//! What one end does with a channel: rules 1 to 6 of [`super`], for whoever can reach its words.

use super::{Header, IpVersion, IpVersions, Long, SLOTS, Session, Side, Taken};
use core::sync::atomic::{Ordering, fence};

/// The words of a channel, by their offsets, and the way to wake the other end. Offsets are those of the layout: inside of the channel,
/// and multiples of what is accessed.
pub trait Wire {
    /// Loads 32 bits, with acquire semantics.
    fn load_u32(&self, offset: usize) -> u32;
    /// Stores 32 bits, with release semantics.
    fn store_u32(&self, offset: usize, value: u32);
    /// Loads 64 bits, with acquire semantics.
    fn load_u64(&self, offset: usize) -> u64;
    /// Stores 64 bits, with release semantics.
    fn store_u64(&self, offset: usize, value: u64);
    /// Makes the other end look at what is shared.
    fn signal(&self);
}

/// One end's view of the two rings. The bytes of frames are the caller's business.
#[derive(Debug)]
pub struct Rings<W> {
    wire: W,
    side: Side,
    /// What this end says of itself.
    session: Session,
    /// The peer's session when it was last looked at, as a word.
    peer_session: u64,
    /// Each end has seen the other.
    is_up: bool,
    /// Slots filled in this end's ring.
    put: u32,
    /// How many of them the peer knows of.
    shown: u32,
    /// Slots that the peer had taken when it was last looked at.
    peer_taken: u32,
    /// Slots taken out of the peer's ring.
    taken: Taken,
    /// Slots that were filled in the peer's ring, from the first one on, when it was last looked at.
    peer_put: u32,
    /// Of which long frames this end says that it takes them.
    takes: IpVersions,
    /// The oldest frame in the peer's ring, if it is a long one and was looked at.
    long: Option<(usize, Long)>,
}

impl<W: Wire> Rings<W> {
    /// Begins to use a channel. A predecessor may have used it.
    pub fn new(wire: W, side: Side) -> Self {
        let mut rings = Rings {
            wire,
            side,
            session: Session::default(),
            peer_session: 0,
            is_up: false,
            put: 0,
            shown: 0,
            peer_taken: 0,
            taken: Taken::default(),
            peer_put: 0,
            takes: IpVersions::NONE,
            long: None,
        };
        rings.begin();
        rings
    }

    /// What the channel is reached by.
    #[inline]
    pub fn wire(&self) -> &W {
        &self.wire
    }

    /// Which instances of the two ends talk. Another value: one of them began anew, and what was in the rings is lost.
    pub fn session(&self) -> Session {
        self.session
    }

    /// Free slots in this end's ring; none if nobody is there.
    pub fn room(&mut self) -> usize {
        if !self.is_up() {
            return 0;
        }
        self.peer_taken = self.peers_taken().count;
        SLOTS.saturating_sub(self.put.wrapping_sub(self.peer_taken) as usize)
    }

    /// Slots taken out of the peer's ring, modulo 2^32.
    pub fn taken(&self) -> u32 {
        self.taken.count
    }

    /// Begins with empty rings and a number that no predecessor had: as the first thing, after somebody else was this end, and when the
    /// peer broke the rules.
    #[cold]
    pub fn begin(&mut self) {
        let next = |own: u32| own.wrapping_add(1).max(1);
        self.peer_session = self.wire.load_u64(self.side.peer().session());
        let predecessor = Session::decode(self.wire.load_u64(self.side.session())).own;
        self.session.own = next(predecessor);
        // A predecessor that lied may have shown the peer this one already: then the peer would not notice that anybody began.
        if self.session.own == Session::decode(self.peer_session).seen {
            self.session.own = next(self.session.own);
        }
        self.is_up = false;
        self.show_session();
    }

    /// Empties the rings, and then shows the peer which instances talk.
    fn show_session(&mut self) {
        self.session.seen = Session::decode(self.peer_session).own;
        (self.put, self.shown, self.peer_taken, self.peer_put) = (0, 0, 0, 0);
        self.long = None;
        self.wire.store_u32(self.side.takes(), self.takes.encode());
        self.wire.store_u32(self.side.put(), 0);
        self.set_taken(Taken::default());
        self.wire.store_u64(self.side.session(), self.session.encode());
        self.wire.signal();
    }

    /// Notices what the peer put or that it began anew, for somebody else who is this end. Returns whether it did since the last call.
    pub fn notice(&mut self) -> bool {
        let peer = self.side.peer();
        let now = (self.wire.load_u64(peer.session()), self.wire.load_u32(peer.put()));
        let before = (self.peer_session, self.peer_put);
        (self.peer_session, self.peer_put) = now;
        now != before
    }

    /// Notices that the peer began anew. Returns whether frames can pass.
    #[inline]
    pub fn is_up(&mut self) -> bool {
        let peer_session = self.wire.load_u64(self.side.peer().session());
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
    pub fn free_slot(&mut self) -> Option<usize> {
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

    /// Puts the frame whose bytes are in this slot into the ring. Only after [`Self::free_slot`] gave the slot; the peer sees the frame
    /// with the next [`Self::flush`].
    #[inline]
    pub fn put(&mut self, slot: usize, header: Header) {
        self.wire.store_u64(slot, header.encode());
        self.put = self.put.wrapping_add(1);
    }

    /// Shows the peer the frames that were put, and wakes it if it waits.
    #[inline]
    pub fn flush(&mut self) {
        if self.put == self.shown {
            return;
        }
        self.wire.store_u32(self.side.put(), self.put);
        // Pairs with the fence in `prepare_to_wait`.
        fence(Ordering::SeqCst);
        let taken = self.peers_taken();
        self.peer_taken = taken.count;
        if taken.wants_signal(self.shown, self.put) {
            self.wire.signal();
        }
        self.shown = self.put;
    }

    /// Whether the peer has taken all frames that were put, or is not there.
    pub fn is_drained(&mut self) -> bool {
        !self.is_up() || self.peers_taken().count == self.put
    }

    /// The slot of the oldest frame in the peer's ring, and what is said of the frame: read once, and checked. It is there until
    /// [`Self::release`]. `None` also if it is a long one, which [`Self::peek_long`] has then.
    #[inline]
    pub fn peek(&mut self) -> Option<(usize, Header)> {
        if self.peer_put == self.taken.count && !self.look() {
            return None;
        }
        let slot = self.side.peer().slot(self.taken.count);
        let word = self.wire.load_u64(slot);
        let header = Header::decode(word);
        if header.is_none() {
            self.peek_unusual(slot, word);
        }
        Some((slot, header?))
    }

    /// Looks whether the oldest frame, whose header is this, is a long one that this end takes. A peer that says nonsense has to begin
    /// again.
    #[cold]
    fn peek_unusual(&mut self, slot: usize, word: u64) {
        let there = self.peer_put.wrapping_sub(self.taken.count);
        let is_good = |long: &Long| self.takes.has(long.version()) && long.slots() <= there;
        match Long::decode(word).filter(is_good) {
            Some(long) => self.long = Some((slot, long)),
            None => self.begin(),
        }
    }

    /// Gives the slot of the oldest frame back. Only after [`Self::peek`] showed one.
    #[inline]
    pub fn release(&mut self) {
        self.set_taken(Taken { count: self.taken.count.wrapping_add(1), ..self.taken });
    }

    /// Says of which versions this end takes long frames: at first of none. If they are fewer than before, this end begins anew, and what
    /// is in the rings is lost.
    pub fn take_long(&mut self, versions: IpVersions) {
        let before = core::mem::replace(&mut self.takes, versions);
        if versions.has_all(before) {
            self.wire.store_u32(self.side.takes(), versions.encode());
        } else {
            self.begin();
        }
    }

    /// Whether the peer takes long frames of this version.
    pub fn peer_takes(&self, version: IpVersion) -> bool {
        IpVersions::decode(self.wire.load_u32(self.side.peer().takes())).has(version)
    }

    /// The first of as many slots as this long frame takes, if so many are free. Only for a peer that takes such frames.
    pub fn free_slots(&mut self, long: Long) -> Option<usize> {
        (self.room() >= long.slots() as usize).then(|| self.side.slot(self.put))
    }

    /// As [`Self::put`], after [`Self::free_slots`].
    pub fn put_long(&mut self, slot: usize, long: Long) {
        self.wire.store_u64(slot, long.encode());
        self.put = self.put.wrapping_add(long.slots());
    }

    /// The first slot of the oldest frame in the peer's ring, if [`Self::peek`] found there that it is a long one: one of a version that
    /// this end takes, whose slots are all there until [`Self::release_long`].
    #[inline]
    pub fn peek_long(&self) -> Option<(usize, Long)> {
        self.long
    }

    /// Gives the slots of the long frame back that [`Self::peek_long`] showed.
    pub fn release_long(&mut self) {
        if let Some((_, long)) = self.long.take() {
            self.set_taken(Taken { count: self.taken.count.wrapping_add(long.slots()), ..self.taken });
        }
    }

    /// Looks whether there are more frames.
    fn look(&mut self) -> bool {
        if !self.is_up() {
            return false;
        }
        let put = self.wire.load_u32(self.side.peer().put());
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
        Taken::decode(self.wire.load_u64(self.side.taken()))
    }

    fn set_taken(&mut self, taken: Taken) {
        self.taken = taken;
        self.wire.store_u64(self.side.peer().taken(), taken.encode());
    }
}
