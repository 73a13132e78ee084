//! What the guest writes to its serial ports and debug consoles, on its way to the console server.
//!
//! A guest writes byte by byte, each with an exit; the line carries records. Bytes are gathered until a line ends, a record
//! is full, the guest goes to sleep, or 2 ms have passed.

use crate::console::Channel;
use alloc::vec::Vec;
use usys::ring::MAX_RECORD;
use vmm_protocol::link::Stream;

/// Serial ports of the guest.
pub const SERIAL_PORTS: usize = 4;
/// The port that stands for the debug consoles (0xe9 and 0x402).
pub const DEBUG_PORT: usize = SERIAL_PORTS;
/// The streams of the serial ports and the debug consoles, by port.
pub const STREAMS: [Stream; SERIAL_PORTS + 1] =
    [Stream::Console, Stream::Stdout, Stream::Stderr, Stream::Agent, Stream::Log];

/// How long a byte may wait for company, in µs.
const GATHER_US: u64 = 2000;

/// Where records go: the console server, or a test.
pub trait Sink {
    /// Sends a record of 1 to [`MAX_RECORD`] bytes.
    fn send(&mut self, stream: Stream, bytes: &[u8]);
}

impl Sink for Channel {
    fn send(&mut self, stream: Stream, bytes: &[u8]) {
        Channel::send(self, stream, bytes);
    }
}

/// The gathered bytes.
#[derive(Debug)]
pub struct Output {
    ports: [Vec<u8>; STREAMS.len()],
    /// TSC at which what was gathered goes out.
    deadline: u64,
    gather_ticks: u64,
}

impl Output {
    /// Nothing gathered, on a machine with `tsc_hz` TSC ticks a second.
    pub const fn new(tsc_hz: u64) -> Self {
        Output {
            ports: [const { Vec::new() }; STREAMS.len()],
            deadline: u64::MAX,
            gather_ticks: tsc_hz / 1_000_000 * GATHER_US,
        }
    }

    /// Takes bytes that the guest wrote to `port` at TSC `now`.
    pub fn put(&mut self, port: usize, bytes: impl IntoIterator<Item = u8>, now: u64, sink: &mut impl Sink) {
        let Some((buffer, &stream)) = self.ports.get_mut(port).zip(STREAMS.get(port)) else {
            return;
        };
        for byte in bytes {
            buffer.push(byte);
            if byte == b'\n' || buffer.len() == MAX_RECORD {
                send(stream, buffer, sink);
            } else if self.deadline == u64::MAX {
                self.deadline = now.saturating_add(self.gather_ticks);
            }
        }
    }

    /// TSC at which [`Self::flush_if_due`] has something to do; `u64::MAX` if never.
    #[inline]
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Sends what waited long enough at TSC `now`.
    #[inline]
    pub fn flush_if_due(&mut self, now: u64, sink: &mut impl Sink) {
        if now >= self.deadline {
            self.flush(sink);
        }
    }

    /// Sends everything.
    #[inline(never)]
    pub fn flush(&mut self, sink: &mut impl Sink) {
        self.deadline = u64::MAX;
        for (buffer, &stream) in self.ports.iter_mut().zip(&STREAMS) {
            send(stream, buffer, sink);
        }
    }
}

fn send(stream: Stream, buffer: &mut Vec<u8>, sink: &mut impl Sink) {
    // A record of the log is a line by itself.
    if stream == Stream::Log {
        buffer.retain(|&byte| byte != b'\n' && byte != b'\r');
    }
    if !buffer.is_empty() {
        sink.send(stream, buffer);
        buffer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Records(Vec<(Stream, Vec<u8>)>);

    impl Sink for Records {
        fn send(&mut self, stream: Stream, bytes: &[u8]) {
            self.0.push((stream, bytes.to_vec()));
        }
    }

    #[test]
    fn a_line_is_one_record_and_a_prompt_waits_for_its_deadline() {
        let (mut output, mut sink) = (Output::new(1_000_000_000), Records::default());
        output.put(0, *b"one line\n# ", 1000, &mut sink);
        assert_eq!(sink.0, [(Stream::Console, b"one line\n".to_vec())]);
        output.flush_if_due(output.deadline() - 1, &mut sink);
        assert_eq!(sink.0.len(), 1);
        output.flush_if_due(1000 + 2_000_000, &mut sink);
        assert_eq!(sink.0[1], (Stream::Console, b"# ".to_vec()));
        assert_eq!(output.deadline(), u64::MAX);
    }

    #[test]
    fn ports_keep_apart_and_lose_nothing() {
        let (mut output, mut sink) = (Output::new(1_000_000_000), Records::default());
        for _ in 0..300 {
            output.put(1, *b"o", 0, &mut sink);
            output.put(2, *b"e", 0, &mut sink);
        }
        output.put(9, *b"?", 0, &mut sink);
        output.put(DEBUG_PORT, *b"debug\r\n", 0, &mut sink);
        output.flush(&mut sink);
        let of = |stream| {
            let records = sink.0.iter().filter(move |record| record.0 == stream);
            records.flat_map(|record| record.1.clone()).collect::<Vec<_>>()
        };
        assert_eq!((of(Stream::Stdout), of(Stream::Stderr)), (b"o".repeat(300), b"e".repeat(300)));
        assert_eq!(of(Stream::Log), b"debug");
        assert!(sink.0.iter().all(|record| record.1.len() <= MAX_RECORD));
    }
}
