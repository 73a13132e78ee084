//! The channel between a network card and its switch, how its shared memory lies: frames each way (SPEC.md 11.6).
//!
//! One end is the card: a VMM's, a guest's, or the driver process of the uplink. The other is the switch. Both do the same, with
//! the directions exchanged.
//!
//! | Offset | Bytes | What | Written by |
//! |---|---|---|---|
//! | 0 | 8 | [`Session`] of the card | card |
//! | 8 | 4 | [`IpVersions`] of which the card takes long frames | card |
//! | 64 | 8 | [`Session`] of the switch | switch |
//! | 72 | 4 | [`IpVersions`] of which the switch takes long frames | switch |
//! | 128 | 4 | slots filled in the ring to the switch, modulo 2^32 | card |
//! | 192 | 8 | [`Taken`] from the ring to the switch | switch |
//! | 256 | 4 | slots filled in the ring to the card, modulo 2^32 | switch |
//! | 320 | 8 | [`Taken`] from the ring to the card | card |
//! | 4096 | 256 KiB | [`SLOTS`] slots of the ring to the switch | card |
//! | 266 240 | 256 KiB | [`SLOTS`] slots of the ring to the card | switch |
//!
//! 1. Slot n (from 0) of a ring is at n modulo [`SLOTS`]. It has a frame: a word of [`Header`], a reserved word, the bytes. A
//!    frame that finds the ring full is lost, as on a wire.
//! 2. Counts are written after what they announce, with release semantics, and read with acquire semantics.
//! 3. Who puts frames signals the other end if the count passes its [`Taken::threshold`], and decides so behind a full
//!    barrier after the store of the count. Who is about to wait sets the threshold to the count that it has reached,
//!    and looks again behind a full barrier.
//! 4. An end begins by writing zero into its counts, and then its [`Session`] with a new number of its own, which the peer has
//!    not seen, and the number that it finds at the peer. An end that finds a new number at its peer writes zero into its counts, and then its [`Session`] with
//!    that number as [`Session::seen`]. Each store of a session is followed by a signal. Rings are used while each end has seen the
//!    other's number. So either end can be replaced by a successor at any moment; what is in the rings then is lost.
//! 5. Either side may write anything anywhere: each word is read once and checked.
//! 6. A [`Long`] frame begins as another does, with a header of its own, and goes on in the following slots, of which all bytes are its;
//!    the slot behind the ring's last is its first. Its slots are shown at once, and given back at once. It goes only to an end that says
//!    that it takes such frames; whoever puts it looks at what is said for each. An end says [`IpVersions::NONE`] before it begins, more at
//!    any time, and less only with a new session.

pub mod checksum;

mod long;
mod rings;

pub use long::{IpVersion, IpVersions, Long, MAX_HEADERS, MAX_LONG, MIN_PAYLOAD, MIN_TCP};
pub use rings::{Rings, Wire};

/// Slots of a ring: frames that it holds, but for long ones.
pub const SLOTS: usize = 128;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 2048;
/// Offset in a slot of the frame's bytes.
pub const FRAME: usize = 16;
/// Longest frame: 1500 bytes of payload behind Ethernet's header and one VLAN tag.
pub const MAX_FRAME: usize = 1518;
/// Shortest frame: Ethernet's header.
pub const MIN_FRAME: usize = 14;
/// Offset of the first slot.
const DATA: usize = 4096;
/// Bytes of a ring.
const RING_BYTES: usize = SLOTS * SLOT_BYTES;
/// Bytes of it all.
pub const CHANNEL_BYTES: usize = DATA + 2 * RING_BYTES;

/// An end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The card: a VMM, a guest, or the driver process of an uplink.
    Card,
    /// The switch.
    Switch,
}

impl Side {
    /// The end that this one talks to.
    pub const fn peer(self) -> Self {
        match self {
            Side::Card => Side::Switch,
            Side::Switch => Side::Card,
        }
    }

    /// Offset of the 64-bit word with this end's [`Session`].
    pub const fn session(self) -> usize {
        self as usize * 64
    }

    /// Offset of the 32-bit word with the [`IpVersions`] of which this end takes long frames.
    pub const fn takes(self) -> usize {
        self.session() + 8
    }

    /// Offset of the 32-bit word that counts the slots this end has filled in its ring.
    pub const fn put(self) -> usize {
        128 + self as usize * 128
    }

    /// Offset of the 64-bit word with what the peer has [`Taken`] out of this end's ring.
    pub const fn taken(self) -> usize {
        192 + self as usize * 128
    }

    /// Offset of this end's slot number `index`.
    #[inline]
    pub const fn slot(self, index: u32) -> usize {
        DATA + (self as usize * SLOTS + index as usize % SLOTS) * SLOT_BYTES
    }

    /// Offset of byte `at` of the long frame that begins in the slot at this offset, and how many bytes there are from it to the end of
    /// the ring, whose beginning is where the frame goes on.
    pub const fn place(self, slot: usize, at: usize) -> (usize, usize) {
        let ring = self.slot(0);
        let offset = (slot - ring + FRAME + at) % RING_BYTES;
        (ring + offset, RING_BYTES - offset)
    }
}

/// Which instances of the two ends talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Number of this end, from 1; another one each time that it begins. 0 if it never began.
    pub own: u32,
    /// Number of the peer that this end has made room for.
    pub seen: u32,
}

impl Session {
    /// As a word.
    pub const fn encode(self) -> u64 {
        self.own as u64 | (self.seen as u64) << 32
    }

    /// From a word.
    pub const fn decode(word: u64) -> Self {
        Session { own: word as u32, seen: (word >> 32) as u32 }
    }
}

/// How far a ring was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Slots of frames taken, modulo 2^32.
    pub count: u32,
    /// Signal when the count of slots passes from this to the next.
    pub threshold: u32,
}

impl Taken {
    /// As a word.
    pub const fn encode(self) -> u64 {
        self.count as u64 | (self.threshold as u64) << 32
    }

    /// From a word.
    pub const fn decode(word: u64) -> Self {
        Taken { count: word as u32, threshold: (word >> 32) as u32 }
    }

    /// Whether who moves the count of slots from `old` to `new` has to signal.
    pub const fn wants_signal(self, old: u32, new: u32) -> bool {
        new.wrapping_sub(self.threshold).wrapping_sub(1) < new.wrapping_sub(old)
    }
}

/// What is before a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the frame.
    pub len: u16,
    /// A checksum is missing: the Internet checksum of all bytes from the first of these on belongs so many bytes behind it as the
    /// second says, where that of the pseudo header is already.
    pub missing: Option<(u16, u16)>,
}

impl Header {
    const MISSING: u64 = 1 << 16;

    /// As a word.
    #[inline]
    pub const fn encode(self) -> u64 {
        let len = self.len as u64;
        match self.missing {
            Some((start, offset)) => len | Self::MISSING | (start as u64) << 32 | (offset as u64) << 48,
            None => len,
        }
    }

    /// From a word, if that is the header of a frame, and a checksum that is missing has its place in it, behind Ethernet's header.
    #[inline]
    pub const fn decode(word: u64) -> Option<Self> {
        let len = word as u16;
        if (len as usize) < MIN_FRAME || len as usize > MAX_FRAME {
            return None;
        }
        if word & Self::MISSING == 0 {
            return Some(Header { len, missing: None });
        }
        let (start, offset) = ((word >> 32) as u16, (word >> 48) as u16);
        if checksum::fits(start, offset, len as usize) {
            Some(Header { len, missing: Some((start, offset)) })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        for side in [Side::Card, Side::Switch] {
            assert!(side.put() + 64 <= side.taken() && side.taken() + 8 <= DATA);
            assert!(side.session() + 8 <= side.takes() && side.takes() + 4 <= Side::Card.put());
            assert!(side.slot(0).is_multiple_of(8));
            assert_eq!(side.slot(SLOTS as u32), side.slot(0));
        }
        assert!(Side::Card.taken() < Side::Switch.put());
        assert_eq!(Side::Card.slot(SLOTS as u32 - 1) + SLOT_BYTES, Side::Switch.slot(0));
        assert_eq!(Side::Switch.slot(u32::MAX) + SLOT_BYTES, CHANNEL_BYTES);
        assert!(Side::Card.takes() + 4 <= Side::Switch.session());
        const { assert!(FRAME + MAX_FRAME <= SLOT_BYTES) };
    }

    #[test]
    fn a_long_frame_goes_on_at_the_beginning_of_its_ring() {
        for side in [Side::Card, Side::Switch] {
            let last = side.slot(SLOTS as u32 - 1);
            assert_eq!(side.place(last, 0), (last + FRAME, SLOT_BYTES - FRAME));
            assert_eq!(side.place(last, SLOT_BYTES - FRAME), (side.slot(0), RING_BYTES));
            assert_eq!(side.place(side.slot(3), SLOT_BYTES - FRAME).0, side.slot(4));
        }
    }

    #[test]
    fn words_survive_encoding() {
        for missing in [None, Some((34, 16)), Some((14, 0))] {
            let header = Header { len: 1514, missing };
            assert_eq!(Header::decode(header.encode()), Some(header));
        }
        let taken = Taken { count: u32::MAX, threshold: 7 };
        assert_eq!(Taken::decode(taken.encode()), taken);
        let session = Session { own: 1, seen: u32::MAX };
        assert_eq!(Session::decode(session.encode()), session);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for header in [
            Header { len: 13, missing: None },
            Header { len: 1519, missing: None },
            Header { len: 60, missing: Some((50, 9)) },
            // Who fills it in does so behind the switch, which has looked at the addresses.
            Header { len: 60, missing: Some((10, 0)) },
            Header { len: 60, missing: Some((13, 16)) },
            Header { len: 60, missing: Some((u16::MAX, u16::MAX)) },
        ] {
            assert_eq!(Header::decode(header.encode()), None);
        }
    }

    #[test]
    fn a_signal_is_due_when_the_count_passes_the_threshold() {
        let at = |threshold| Taken { count: 0, threshold };
        assert!(
            at(0).wants_signal(0, 1) && at(2).wants_signal(0, 3) && at(u32::MAX).wants_signal(u32::MAX, 0)
        );
        assert!(!at(3).wants_signal(0, 3) && !at(0).wants_signal(1, 5) && !at(0).wants_signal(5, 5));
    }
}
