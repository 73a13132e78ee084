//! Frames on the serial line (COM1) between the console server and `cargo nacre`.
//!
//! A frame is [`SYNC`], stream, VM number, length (1 to 255), then that many bytes. A reader that finds another byte where
//! [`SYNC`] should be skips to the next one. The line is 8-bit clean; emulated lines lose nothing.

/// First byte of every frame.
pub const SYNC: u8 = 0xa5;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 4;
/// Longest payload.
pub const MAX_PAYLOAD: usize = 255;
/// VM number of frames that concern no VM.
pub const NO_VM: u8 = 0xff;

/// What a frame carries.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The VM's first serial port (ttyS0), both ways.
    Console = 0,
    /// Second serial port (ttyS1): what `--exec` writes to stdout.
    Stdout = 1,
    /// Third serial port (ttyS2): what `--exec` writes to stderr.
    Stderr = 2,
    /// Fourth serial port (ttyS3): lines of the agent in the guest, `exit N`.
    Agent = 3,
    /// A line of a process's log, UTF-8 text.
    Log = 4,
    /// An [`crate::outcome::Outcome`], postcard.
    Outcome = 5,
    /// The system is up (target to host), once, no VM; payload: protocol version, one byte.
    Hello = 6,
    /// The root task is done and the machine goes off (target to host).
    Bye = 7,
    /// gdb's remote protocol, both ways. The VM sends an acknowledgement, `+`, first: it waits for gdb from then on.
    Gdb = 8,
    /// Of the terminal that the VM's console is shown on. The VM asks with any byte; what it gets, then and whenever it changes, is a
    /// [`TerminalSize`]. Nobody answers where there is no terminal.
    Size = 9,
}

/// Version in [`Stream::Hello`].
pub const VERSION: u8 = 1;

impl Stream {
    /// The stream with this value, if there is one.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Stream::Console,
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            3 => Stream::Agent,
            4 => Stream::Log,
            5 => Stream::Outcome,
            6 => Stream::Hello,
            7 => Stream::Bye,
            8 => Stream::Gdb,
            9 => Stream::Size,
            _ => return None,
        })
    }
}

/// The size of a terminal in characters; 0 by 0 if nobody knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    /// Bytes that it takes.
    pub const BYTES: usize = 4;

    /// As it goes over the line.
    pub const fn encode(self) -> [u8; Self::BYTES] {
        let ([c0, c1], [r0, r1]) = (self.columns.to_le_bytes(), self.rows.to_le_bytes());
        [c0, c1, r0, r1]
    }

    /// What these bytes say; `None` if they are fewer or more.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let &[c0, c1, r0, r1] = bytes else { return None };
        Some(TerminalSize { columns: u16::from_le_bytes([c0, c1]), rows: u16::from_le_bytes([r0, r1]) })
    }
}

/// The header of a frame with `len` bytes of payload (1 to 255).
pub const fn header(stream: Stream, vm: u8, len: u8) -> [u8; HEADER_LEN] {
    [SYNC, stream as u8, vm, len]
}

/// Takes frames out of a byte stream.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LEN],
    have: usize,
    payload: alloc::vec::Vec<u8>,
}

/// A decoded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub stream: Stream,
    /// Which VM.
    pub vm: u8,
    /// The bytes.
    pub payload: alloc::vec::Vec<u8>,
}

impl Decoder {
    /// Takes one byte; returns a frame when that was its last. Frames of unknown streams and bytes between frames
    /// are dropped.
    pub fn push(&mut self, byte: u8) -> Option<Frame> {
        if self.have < HEADER_LEN {
            if self.have == 0 && byte != SYNC {
                return None;
            }
            self.header[self.have] = byte;
            self.have += 1;
            if self.have == HEADER_LEN && self.header[3] == 0 {
                self.have = 0;
            }
            return None;
        }
        self.payload.push(byte);
        if self.payload.len() < self.header[3] as usize {
            return None;
        }
        self.have = 0;
        let payload = core::mem::take(&mut self.payload);
        Some(Frame { stream: Stream::from_raw(self.header[1])?, vm: self.header[2], payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_whole_or_none() {
        let size = TerminalSize { columns: 132, rows: 0x1234 };
        let mut bytes = size.encode().to_vec();
        assert_eq!(TerminalSize::decode(&bytes), Some(size));
        bytes.push(0);
        assert_eq!((TerminalSize::decode(&bytes), TerminalSize::decode(&bytes[..3])), (None, None));
    }

    #[test]
    fn a_frame_survives_noise_before_it() {
        let mut decoder = Decoder::default();
        let mut bytes = alloc::vec![0u8, 1, 2];
        bytes.extend(header(Stream::Stdout, 3, 2));
        bytes.extend(b"hi");
        let frames: alloc::vec::Vec<_> = bytes.into_iter().filter_map(|byte| decoder.push(byte)).collect();
        assert_eq!(frames, [Frame { stream: Stream::Stdout, vm: 3, payload: b"hi".to_vec() }]);
    }
}
