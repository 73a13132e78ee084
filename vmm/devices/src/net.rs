//! The network card behind every front end: frames to a link and from it.
//!
//! A frame is an Ethernet frame without its check sequence. A driver may leave a checksum to the card; the frame then travels
//! with a note saying where it goes ([`Checksum`]), and whoever needs it in the frame puts it there ([`Checksum::fill_in`]).
//! Between two VMs of one machine nobody does.

use hypercall_abi::guest::channel::checksum;

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
}

#[cfg(any(test, feature = "fake"))]
pub use fake::Cable;

#[cfg(any(test, feature = "fake"))]
mod fake {
    use super::{Checksum, Link};
    use alloc::collections::VecDeque;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    type Frames = Rc<RefCell<VecDeque<(Vec<u8>, Option<Checksum>)>>>;

    /// One end of a cable for tests.
    #[derive(Clone, Debug)]
    pub struct Cable {
        to: Frames,
        from: Frames,
    }

    impl Cable {
        /// Both ends of a cable.
        pub fn new() -> (Self, Self) {
            let (one, other) = (Frames::default(), Frames::default());
            (Cable { to: one.clone(), from: other.clone() }, Cable { to: other, from: one })
        }
    }

    impl Link for Cable {
        fn send(&mut self, frame: &[u8], missing: Option<Checksum>) {
            self.to.borrow_mut().push_back((frame.to_vec(), missing));
        }

        fn receive(&mut self, into: &mut [u8]) -> Option<(usize, Option<Checksum>)> {
            let (frame, missing) = self.from.borrow_mut().pop_front()?;
            into[..frame.len()].copy_from_slice(&frame);
            Some((frame.len(), missing))
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
