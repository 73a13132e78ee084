//! The character device behind every front end: bytes from the guest, and bytes for it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Bytes for the guest that wait until its driver has room. More stays where it comes from.
pub const INPUT_BYTES: usize = 4 << 10;

/// Bytes from the guest that wait for the host. A front end leaves more in the guest's memory.
pub const OUTPUT_BYTES: usize = 8 << 10;

/// A console.
#[derive(Clone, Debug, Default)]
pub struct Console {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Console {
    /// A console with nothing typed and nothing shown.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues bytes for the guest; returns how many there was room for.
    pub fn queue_input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_BYTES.saturating_sub(self.input.len()));
        self.input.extend(&bytes[..taken]);
        taken
    }

    /// Whether bytes wait for the guest.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Takes bytes for the guest; returns how many there were.
    pub fn take_input(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.input.len());
        for (place, byte) in into.iter_mut().zip(self.input.drain(..len)) {
            *place = byte;
        }
        len
    }

    /// How many bytes from the guest there is room for.
    pub fn room(&self) -> usize {
        OUTPUT_BYTES.saturating_sub(self.output.len())
    }

    /// Takes bytes from the guest in. That there is [`Self::room`] for them is the front end's to see.
    pub fn put_output(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Whether the guest has said something.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes what the guest has said.
    pub fn take_output(&mut self) -> impl Iterator<Item = u8> + '_ {
        self.output.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_finds_no_room_is_not_taken() {
        let mut console = Console::new();
        assert_eq!(console.queue_input(&[b'a'; INPUT_BYTES - 2]), INPUT_BYTES - 2);
        assert_eq!(console.queue_input(b"bcd"), 2);
        let mut bytes = [0; INPUT_BYTES + 1];
        assert_eq!(console.take_input(&mut bytes), INPUT_BYTES);
        assert_eq!(&bytes[INPUT_BYTES - 3..], b"abc\0");
        assert!(!console.has_input());
    }
}
