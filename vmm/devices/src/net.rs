//! The network card behind every front end: frames to a link and from it.
//!
//! A frame is an Ethernet frame without its check sequence. A driver may leave a checksum to the card; the frame then travels
//! with a note saying where it goes ([`Checksum`]), and whoever needs it in the frame puts it there ([`Checksum::fill_in`]).
//! Between two VMs of one machine nobody does. It may also leave it to the card to cut a TCP segment into frames: such a long frame
//! ([`Long`]) travels whole to whoever takes it so, and is cut for others by [`crate::tso`].

use hypercall_abi::guest::channel::checksum;
pub use hypercall_abi::guest::channel::{IpVersion, IpVersions, Long};

/// Longest frame: 1500 bytes of payload behind Ethernet's header and one VLAN tag.
pub const MAX_FRAME: usize = 1518;
/// Shortest thing that is a frame: its header.
pub const MIN_FRAME: usize = 14;

/// A checksum that is missing in a frame: the Internet checksum (RFC 1071) of all bytes from `start` on belongs at
/// `start + offset`, where that of the pseudo header is already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksum {
    /// Offset in the frame of the first byte that is summed up.
    pub start: u16,
    /// Where the checksum goes, from `start` on.
    pub offset: u16,
}

impl Checksum {
    /// Whether it lies in a frame of this many bytes, behind Ethernet's header.
    pub fn fits(self, len: usize) -> bool {
        checksum::fits(self.start, self.offset, len)
    }

    /// Computes the checksum and writes it into the frame; does nothing if it does not [`Self::fits`].
    pub fn fill_in(self, frame: &mut [u8]) {
        checksum::fill_in(frame, self.start, self.offset);
    }
}

/// What a card is connected to.
pub trait Link {
    /// Sends a frame of [`MIN_FRAME`] to [`MAX_FRAME`] bytes; one that finds no room is lost, as on a wire. It may wait for the next
    /// [`Self::flush`].
    fn send(&mut self, frame: &[u8], missing: Option<Checksum>);

    /// As [`Self::send`], a long frame, which is cut if the other end takes none. Its headers were found to be such as it is said
    /// ([`crate::tso::header_bytes`]).
    fn send_long(&mut self, frame: &[u8], long: Long);

    /// Lets go what was sent.
    fn flush(&mut self) {}

    /// Whether something came since this was asked last, or the other end began anew.
    fn has_news(&mut self) -> bool {
        true
    }

    /// Begins anew: somebody else was the end of the link meanwhile.
    fn restart(&mut self) {}

    /// Takes the next frame, if there is one: its bytes are the first of `into`, whose length is [`MAX_FRAME`]. Returns how
    /// many, and the checksum that is missing. What comes from a stranger may be anything.
    fn receive(&mut self, into: &mut [u8]) -> Option<(usize, Option<Checksum>)>;

    /// Of which versions [`Self::receive_long`] is asked for long frames from now on: at first of none. If they are fewer than before, the
    /// link may begin anew.
    fn take_long(&mut self, _versions: IpVersions) {}

    /// Takes the next frame if it is a long one, for which [`Self::receive`] just had none: its bytes are the first of `into`, whose
    /// length is [`crate::tso::MAX_LONG`]. What comes from a stranger may be anything.
    fn receive_long(&mut self, _into: &mut [u8]) -> Option<Long> {
        None
    }
}

#[cfg(any(test, feature = "fake"))]
pub use fake::Cable;

#[cfg(any(test, feature = "fake"))]
mod fake {
    use super::{Checksum, IpVersions, Link, Long};
    use alloc::collections::VecDeque;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::{Cell, RefCell};

    /// What is said about a frame.
    #[derive(Clone, Copy, Debug)]
    enum Note {
        Missing(Option<Checksum>),
        Long(Long),
    }

    type Frames = Rc<RefCell<VecDeque<(Vec<u8>, Note)>>>;

    /// One end of a cable for tests. It carries long frames whether the other end takes them or not.
    #[derive(Clone, Debug)]
    pub struct Cable {
        to: Frames,
        from: Frames,
        takes: Rc<Cell<IpVersions>>,
        peer_takes: Rc<Cell<IpVersions>>,
    }

    impl Cable {
        /// Both ends of a cable.
        pub fn new() -> (Self, Self) {
            let (to, from, takes, peer_takes) = Default::default();
            let near = Cable { to, from, takes, peer_takes };
            let Cable { to, from, takes, peer_takes } = near.clone();
            (near, Cable { to: from, from: to, takes: peer_takes, peer_takes: takes })
        }

        /// Of which versions the other end takes long frames.
        pub fn peer_takes(&self) -> IpVersions {
            self.peer_takes.get()
        }
    }

    impl Link for Cable {
        fn send(&mut self, frame: &[u8], missing: Option<Checksum>) {
            self.to.borrow_mut().push_back((frame.to_vec(), Note::Missing(missing)));
        }

        fn send_long(&mut self, frame: &[u8], long: Long) {
            self.to.borrow_mut().push_back((frame.to_vec(), Note::Long(long)));
        }

        fn receive(&mut self, into: &mut [u8]) -> Option<(usize, Option<Checksum>)> {
            let mut frames = self.from.borrow_mut();
            let &(_, Note::Missing(missing)) = frames.front()? else { return None };
            let (frame, _) = frames.pop_front()?;
            into[..frame.len()].copy_from_slice(&frame);
            Some((frame.len(), missing))
        }

        fn take_long(&mut self, versions: IpVersions) {
            self.takes.set(versions);
        }

        fn receive_long(&mut self, into: &mut [u8]) -> Option<Long> {
            let mut frames = self.from.borrow_mut();
            let &(_, Note::Long(long)) = frames.front()? else { return None };
            let (frame, _) = frames.pop_front()?;
            into[..frame.len()].copy_from_slice(&frame);
            Some(long)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_checksum_is_that_of_rfc_1071() {
        let mut frame = [7; MIN_FRAME + 11];
        let bytes = [0, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0];
        frame[MIN_FRAME..].copy_from_slice(&bytes);
        Checksum { start: MIN_FRAME as u16 + 1, offset: 8 }.fill_in(&mut frame);
        assert_eq!(frame[MIN_FRAME + 9..], [0x22, 0x0d]);
    }

    #[test]
    fn a_checksum_never_gets_into_the_addresses() {
        for (start, offset) in [(0, 0), (10, 0), (12, 60), (13, 1)] {
            let mut frame = [7; 100];
            let missing = Checksum { start, offset };
            assert!(!missing.fits(frame.len()));
            missing.fill_in(&mut frame);
            assert_eq!(frame, [7; 100]);
        }
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_ones() {
        let mut frame = [0xff; MIN_FRAME + 4];
        frame[MIN_FRAME + 2..].fill(0);
        Checksum { start: MIN_FRAME as u16, offset: 2 }.fill_in(&mut frame);
        assert_eq!(frame[MIN_FRAME + 2..], [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn a_frame_with_its_checksum_sums_to_ones(
            mut frame in prop::collection::vec(any::<u8>(), 0..100), start in 0u8..80, offset in (0u16..60).prop_map(|word| word * 2),
        ) {
            let checksum = Checksum { start: start.into(), offset };
            let before = frame.clone();
            if !checksum.fits(frame.len()) {
                checksum.fill_in(&mut frame);
                prop_assert_eq!(frame, before);
                return Ok(());
            }
            let at = usize::from(checksum.start + checksum.offset);
            frame[at..at + 2].fill(0);
            checksum.fill_in(&mut frame);
            let words = frame[usize::from(checksum.start)..].chunks(2);
            let sum: u32 = words.map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            prop_assert_eq!((folded & 0xffff) + (folded >> 16), 0xffff);
        }
    }
}
