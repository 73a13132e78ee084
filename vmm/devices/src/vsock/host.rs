//! The services of the VMM, at context id 2: what a guest can connect to where there is no host to speak of.
//!
//! | Port | Service |
//! |---|---|
//! | [`ECHO`] | what is sent comes back (RFC 862) |
//! | [`LOG`] | each line that is sent goes to the log |

use super::packet::{HEADER, HOST, Header, NO_RECEIVE, NO_SEND, kind, op};
use super::{MAX_DATA, MAX_PACKET};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// Port of the service that sends back what it gets.
pub const ECHO: u32 = 7;
/// Port of the service that writes lines to the log: syslog's.
pub const LOG: u32 = 514;

/// Most connections.
pub const MAX_STREAMS: usize = 16;
/// Bytes of a connection that wait to be sent back.
pub const BUFFER: usize = 4096;
/// Longest line that is logged; what is longer goes on in the next.
pub const MAX_LINE: usize = 200;
/// Most lines that wait to be fetched; more are dropped.
const MAX_LINES: usize = 64;

/// A connection of the guest's.
#[derive(Debug)]
struct Stream {
    /// The guest's port, and the service's.
    guest_port: u32,
    port: u32,
    /// What came and was not sent back, or is no whole line yet.
    buffer: VecDeque<u8>,
    /// The guest's credit: bytes that it has room for, and has taken.
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// Bytes of the guest's that were done with, modulo 2^32, and of which the guest knows.
    taken: u32,
    told: u32,
    /// What it is to be told at once.
    owed: Option<u16>,
    /// The guest sends no more.
    is_ending: bool,
    /// It was told that nothing more comes.
    is_ended: bool,
}

impl Stream {
    fn new(header: &Header) -> Self {
        Stream {
            guest_port: header.src_port,
            port: header.dst_port,
            buffer: VecDeque::new(),
            buf_alloc: header.buf_alloc,
            fwd_cnt: header.fwd_cnt,
            sent: 0,
            taken: 0,
            told: 0,
            owed: Some(op::RESPONSE),
            is_ending: false,
            is_ended: false,
        }
    }

    /// Bytes that the guest has room for. It may say anything.
    fn credit(&self) -> usize {
        self.buf_alloc.saturating_sub(self.sent.wrapping_sub(self.fwd_cnt)) as usize
    }

    /// Takes what the guest sent; `false` if that was more than it was given room for.
    fn put(&mut self, data: &[u8], lines: &mut Vec<String>) -> bool {
        // Of lines only the last, which has no end yet, stays: it is counted as done with.
        let waiting = if self.port == ECHO { self.buffer.len() } else { 0 };
        if self.is_ending || waiting + data.len() > BUFFER {
            return false;
        }
        self.buffer.extend(data);
        if self.port == LOG {
            self.taken = self.taken.wrapping_add(data.len() as u32);
            while let Some(line) = self.take_line() {
                push_line(line, lines);
            }
        }
        true
    }

    /// A whole line, or a piece of one that is too long.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.buffer.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        let len = match end {
            Some(end) => end + 1,
            None if self.buffer.len() >= MAX_LINE => MAX_LINE,
            None if self.is_ending && !self.buffer.is_empty() => self.buffer.len(),
            None => return None,
        };
        Some(self.buffer.drain(..len).collect())
    }

    /// What the guest is to be told now: an operation, its flags, and how many bytes from the buffer.
    fn next(&mut self) -> Option<(u16, u32, usize)> {
        if let Some(owed) = self.owed.take() {
            return Some((owed, 0, 0));
        }
        let len = if self.port == ECHO { self.buffer.len().min(self.credit()).min(MAX_DATA) } else { 0 };
        if len > 0 {
            return Some((op::RW, 0, len));
        }
        if self.is_ending && self.buffer.is_empty() && !self.is_ended {
            self.is_ended = true;
            return Some((op::SHUTDOWN, NO_RECEIVE | NO_SEND, 0));
        }
        let is_due = self.taken.wrapping_sub(self.told) as usize >= BUFFER / 2;
        is_due.then_some((op::CREDIT_UPDATE, 0, 0))
    }
}

/// The services and the guest's connections to them.
#[derive(Debug)]
pub struct Host {
    cid: u32,
    streams: VecDeque<Stream>,
    lines: Vec<String>,
}

impl Host {
    /// Services for the guest with this context id.
    pub(super) fn new(cid: u32) -> Self {
        Host { cid, streams: VecDeque::new(), lines: Vec::new() }
    }

    /// Whether the guest said something to the log.
    pub fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Takes what the guest said to the log: text without control characters.
    pub fn take_lines(&mut self) -> Vec<String> {
        core::mem::take(&mut self.lines)
    }

    /// The guest has forgotten its connections.
    pub(super) fn reset(&mut self) {
        self.streams.clear();
    }

    /// Takes a packet of the guest's, or a piece of one, whose header is sound. What it is told at once goes to `answers`.
    pub(super) fn take(&mut self, header: &Header, data: &[u8], answers: &mut VecDeque<Header>) {
        let is_it = |stream: &Stream| (stream.guest_port, stream.port) == (header.src_port, header.dst_port);
        let at = self.streams.iter().position(is_it).filter(|_| header.kind == kind::STREAM);
        let goes_on = match (at, header.op) {
            (None, op::REQUEST) => self.accept(header),
            (None, op::RST) => return,
            (None, _) => false,
            (Some(at), _) => {
                let goes_on = self.follow(at, header, data);
                if !goes_on {
                    self.streams.remove(at);
                }
                goes_on || header.op == op::RST
            }
        };
        if !goes_on {
            answers.push_back(header.answer(op::RST));
        }
    }

    fn accept(&mut self, header: &Header) -> bool {
        let is_served = header.kind == kind::STREAM && matches!(header.dst_port, ECHO | LOG);
        let is_accepted = is_served && self.streams.len() < MAX_STREAMS;
        if is_accepted {
            self.streams.push_back(Stream::new(header));
        }
        is_accepted
    }

    /// Does what a packet says about connection `at`; whether that goes on.
    fn follow(&mut self, at: usize, header: &Header, data: &[u8]) -> bool {
        let Some(stream) = self.streams.get_mut(at) else { return false };
        (stream.buf_alloc, stream.fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        match header.op {
            op::RW => return stream.put(data, &mut self.lines),
            op::CREDIT_REQUEST => stream.owed = stream.owed.or(Some(op::CREDIT_UPDATE)),
            op::CREDIT_UPDATE => {}
            op::SHUTDOWN if header.flags & NO_RECEIVE == 0 => {
                stream.is_ending |= header.flags & NO_SEND != 0;
                // What is left is a line without its end.
                if stream.is_ending && stream.port == LOG {
                    stream.take_line().into_iter().for_each(|line| push_line(line, &mut self.lines));
                }
            }
            // The guest closed: a reset confirms it (virtio 1.2, 5.10.6.4). Or it broke the rules.
            _ => {
                let rest = if stream.port == LOG { stream.buffer.drain(..).collect() } else { Vec::new() };
                push_line(rest, &mut self.lines);
                return false;
            }
        }
        true
    }

    /// Takes the next packet for the guest, if there is one: its bytes are the first of `into`. Connections take turns.
    pub(super) fn next(&mut self, into: &mut [u8; MAX_PACKET]) -> Option<usize> {
        for _ in 0..self.streams.len() {
            self.streams.rotate_left(1);
            let stream = self.streams.back_mut()?;
            let Some((op, flags, len)) = stream.next() else { continue };
            for (place, byte) in into[HEADER..].iter_mut().zip(stream.buffer.drain(..len)) {
                *place = byte;
            }
            stream.sent = stream.sent.wrapping_add(len as u32);
            stream.taken = stream.taken.wrapping_add(len as u32);
            stream.told = stream.taken;
            let header = Header {
                src_cid: HOST,
                dst_cid: self.cid.into(),
                src_port: stream.port,
                dst_port: stream.guest_port,
                len: len as u32,
                kind: kind::STREAM,
                op,
                flags,
                buf_alloc: BUFFER as u32,
                fwd_cnt: stream.taken,
            };
            into[..HEADER].copy_from_slice(&header.encode());
            return Some(HEADER + len);
        }
        None
    }
}

/// Notes a line for the log, without what would break the log's own.
fn push_line(bytes: Vec<u8>, lines: &mut Vec<String>) {
    let text = String::from_utf8_lossy(&bytes);
    let text: String = text.chars().filter(|character| !character.is_control()).collect();
    if !text.is_empty() && lines.len() < MAX_LINES {
        lines.push(text);
    }
}
