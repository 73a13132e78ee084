//! One end of a channel.

use crate::Signal;
use core::sync::atomic::Ordering;
use usys::Window;
use usys::window::OutOfWindow;
use vmm_protocol::net::{CHANNEL_BYTES, FRAME, Header, Rings, Session, Side, Wire};
use vmm_protocol::vsock::HALF;

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
pub struct End<S>(pub(crate) Rings<Channel<S>>);

/// A channel in a window, which end of it this is, and whom to wake at the other.
#[derive(Debug)]
pub(crate) struct Channel<S> {
    pub(crate) memory: Window,
    pub(crate) side: Side,
    peer: S,
}

impl<S: Signal> End<S> {
    /// Begins to use a channel. A predecessor may have used it.
    ///
    /// # Errors
    /// The memory is too short for a channel.
    pub fn new(memory: Window, side: Side, peer: S) -> Result<Self, OutOfWindow> {
        if memory.len() < CHANNEL_BYTES {
            return Err(OutOfWindow);
        }
        Ok(End(Rings::new(Channel { memory, side, peer }, side)))
    }

    /// As [`Rings::begin`].
    pub fn begin(&mut self) {
        self.0.begin();
    }

    /// As [`Rings::notice`].
    pub(crate) fn notice(&mut self) -> bool {
        self.0.notice()
    }

    /// Notices that the peer began anew. Returns whether frames can pass.
    #[inline]
    pub fn is_up(&mut self) -> bool {
        self.0.is_up()
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
        let Some(slot) = self.0.free_slot() else { return false };
        if copy(&self.0.wire().memory, slot + FRAME).is_err() {
            return false;
        }
        self.0.put(slot, header);
        true
    }

    /// Shows the peer the frames that were put, and wakes it if it waits.
    #[inline]
    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// The oldest frame in the peer's ring. It is there until [`Self::release`]. `None` also if it is a long one, which
    /// [`Self::peek_long`] has then.
    #[inline]
    pub fn peek(&mut self) -> Option<Frame> {
        let (slot, header) = self.0.peek()?;
        Some(Frame { header, offset: slot + FRAME, channel: self.0.wire().memory })
    }

    /// Gives the slot of the oldest frame back. Only after [`Self::peek`] showed one.
    #[inline]
    pub fn release(&mut self) {
        self.0.release();
    }

    /// As [`Self::release`], for a channel where a full ring is waited for: signals the peer with each half of a ring.
    #[inline]
    pub fn release_by_halves(&mut self) {
        self.release();
        if self.0.taken().is_multiple_of(HALF as u32) {
            self.0.wire().signal();
        }
    }

    /// As [`Rings::room`].
    #[inline]
    pub fn room(&mut self) -> usize {
        self.0.room()
    }

    /// As [`Rings::session`].
    #[inline]
    pub fn session(&self) -> Session {
        self.0.session()
    }

    /// Asks for a signal with the next frame. `false` if there is one already: then take it, and do not wait.
    #[inline]
    pub fn prepare_to_wait(&mut self) -> bool {
        self.0.prepare_to_wait()
    }
}

// The offsets are inside, as `End::new` checked the length.
impl<S: Signal> Wire for Channel<S> {
    #[inline]
    fn load_u32(&self, offset: usize) -> u32 {
        self.memory.atomic_u32(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store_u32(&self, offset: usize, value: u32) {
        if let Ok(word) = self.memory.atomic_u32(offset) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn load_u64(&self, offset: usize) -> u64 {
        self.memory.atomic_u64(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store_u64(&self, offset: usize, value: u64) {
        if let Ok(word) = self.memory.atomic_u64(offset) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn signal(&self) {
        self.peer.signal();
    }
}
