//! A ring of records between two processes, in shared memory: one producer, one consumer.
//!
//! 1. Indices run freely (modulo 2^32) and each side keeps its own; what it reads of the other's is input from a
//!    stranger. An index that cannot be makes the producer see a full ring and the consumer skip to the producer's end.
//! 2. A record is published whole, so a producer that dies leaves no half record, and its successor goes on where it was.
//! 3. The producer never waits here: [`Producer::push`] says that there is no room, and asks for a signal.
//!
//! Layout: `head` at 0, `tail` at 64, `starved` at 128, bytes from 4096 on, as many as the largest power of two that
//! fits. A record is stream, source, length (1 to 255), bytes.

use crate::window::{OutOfWindow, Window};
use core::sync::atomic::Ordering;

/// Longest payload of a record.
pub const MAX_RECORD: usize = 255;
/// Bytes before the payload.
const RECORD_HEADER: u32 = 3;
/// Offset of the bytes.
const DATA: usize = 4096;
/// Offset of the producer's index.
pub const HEAD: usize = 0;
/// Offset of the consumer's index.
const TAIL: usize = 64;
/// Offset of the word that the producer sets when it found no room.
const STARVED: usize = 128;

/// The parts of a ring that both sides use.
#[derive(Clone, Copy, Debug)]
struct Ring {
    window: Window,
    capacity: u32,
}

impl Ring {
    fn new(window: Window) -> Result<Self, OutOfWindow> {
        let room = window.len().checked_sub(DATA).filter(|&room| room > 0).ok_or(OutOfWindow)?;
        let capacity = 1u32 << room.ilog2().min(30);
        if (capacity as usize) < MAX_RECORD + RECORD_HEADER as usize {
            return Err(OutOfWindow);
        }
        Ok(Ring { window, capacity })
    }

    fn load(&self, offset: usize) -> u32 {
        self.window.atomic_u32(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Ok(word) = self.window.atomic_u32(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Splits `len` bytes from `index` where the ring wraps.
    fn split(&self, index: u32, len: usize) -> (usize, usize) {
        let offset = (index & (self.capacity - 1)) as usize;
        (DATA + offset, len.min(self.capacity as usize - offset))
    }

    fn write(&self, index: u32, bytes: &[u8]) {
        let (offset, first) = self.split(index, bytes.len());
        // Both ranges are inside the window by construction.
        let _ = self.window.write(offset, &bytes[..first]);
        let _ = self.window.write(DATA, &bytes[first..]);
    }

    fn read(&self, index: u32, bytes: &mut [u8]) {
        let (offset, first) = self.split(index, bytes.len());
        let (before, after) = bytes.split_at_mut(first);
        let _ = self.window.read(offset, before);
        let _ = self.window.read(DATA, after);
    }
}

/// The side that writes records.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    head: u32,
}

impl Producer {
    /// Takes the producer's side, where its predecessor left it. Fresh memory is zero.
    pub fn attach(window: Window) -> Result<Self, OutOfWindow> {
        let ring = Ring::new(window)?;
        Ok(Producer { ring, head: ring.load(HEAD) })
    }

    /// Appends a record of 1 to [`MAX_RECORD`] bytes. `false` if there is no room: then the consumer's next
    /// [`Consumer::take_starved`] is true.
    pub fn push(&mut self, stream: u8, source: u8, bytes: &[u8]) -> bool {
        if bytes.is_empty() || bytes.len() > MAX_RECORD {
            return false;
        }
        let len = RECORD_HEADER + bytes.len() as u32;
        if self.room() < len {
            self.ring.store(STARVED, 1);
            // The consumer may have made room before it could see the word.
            core::sync::atomic::fence(Ordering::SeqCst);
            if self.room() < len {
                return false;
            }
        }
        self.ring.write(self.head, &[stream, source, bytes.len() as u8]);
        self.ring.write(self.head.wrapping_add(RECORD_HEADER), bytes);
        self.head = self.head.wrapping_add(len);
        self.ring.store(HEAD, self.head);
        true
    }

    /// Bytes that the consumer has taken so far, modulo 2^32: it changes while the consumer lives.
    pub fn consumed(&self) -> u32 {
        self.ring.load(TAIL)
    }

    fn room(&self) -> u32 {
        let used = self.head.wrapping_sub(self.ring.load(TAIL));
        self.ring.capacity.saturating_sub(used)
    }
}

/// A record that was taken out.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// What it carries.
    pub stream: u8,
    /// Whom it concerns, as the producer says.
    pub source: u8,
    bytes: [u8; MAX_RECORD],
    len: u8,
}

impl Record {
    /// The payload: 1 to [`MAX_RECORD`] bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The side that reads records.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    tail: u32,
}

impl Consumer {
    /// Takes the consumer's side, where its predecessor left it. Fresh memory is zero.
    pub fn attach(window: Window) -> Result<Self, OutOfWindow> {
        let ring = Ring::new(window)?;
        Ok(Consumer { ring, tail: ring.load(TAIL) })
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.ring.load(HEAD) == self.tail
    }

    /// Whether at least half of the ring is free.
    pub fn is_half_empty(&self) -> bool {
        self.ring.load(HEAD).wrapping_sub(self.tail) <= self.ring.capacity / 2
    }

    /// The next record, which stays in the ring.
    pub fn peek(&mut self) -> Option<Record> {
        let head = self.ring.load(HEAD);
        let available = head.wrapping_sub(self.tail);
        if available == 0 {
            return None;
        }
        if let Some(record) = self.record(available) {
            return Some(record);
        }
        // The producer is broken: what it wrote so far means nothing.
        self.move_to(head);
        None
    }

    /// Takes the next record out.
    pub fn pop(&mut self) -> Option<Record> {
        let record = self.peek()?;
        self.move_to(self.tail.wrapping_add(RECORD_HEADER + u32::from(record.len)));
        Some(record)
    }

    /// Whether the producer found no room since the last call: it waits for a signal.
    pub fn take_starved(&mut self) -> bool {
        // Pairs with the fence in `push`: either this sees the word, or the producer sees the new tail.
        core::sync::atomic::fence(Ordering::SeqCst);
        let word = self.ring.window.atomic_u32(STARVED);
        word.is_ok_and(|word| word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::AcqRel) != 0)
    }

    fn record(&self, available: u32) -> Option<Record> {
        if available > self.ring.capacity || available <= RECORD_HEADER {
            return None;
        }
        let mut header = [0; RECORD_HEADER as usize];
        self.ring.read(self.tail, &mut header);
        let [stream, source, len] = header;
        if len == 0 || available < RECORD_HEADER + u32::from(len) {
            return None;
        }
        let mut record = Record { stream, source, bytes: [0; MAX_RECORD], len };
        self.ring.read(self.tail.wrapping_add(RECORD_HEADER), &mut record.bytes[..usize::from(len)]);
        Some(record)
    }

    fn move_to(&mut self, tail: u32) {
        self.tail = tail;
        self.ring.store(TAIL, tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Producer, Consumer, Window) {
        let window = Window::leak(DATA + 1024);
        (Producer::attach(window).unwrap(), Consumer::attach(window).unwrap(), window)
    }

    #[test]
    fn records_arrive_whole_and_in_order_across_the_wrap() {
        let (mut producer, mut consumer, _) = pair();
        for round in 0..1000usize {
            let payload = alloc::vec![round as u8; 1 + round % 255];
            assert!(producer.push(1, 2, &payload));
            let record = consumer.pop().unwrap();
            assert_eq!((record.stream, record.source, record.bytes()), (1, 2, payload.as_slice()));
        }
        assert!(consumer.is_empty());
    }

    #[test]
    fn a_full_ring_refuses_and_asks_for_a_signal() {
        let (mut producer, mut consumer, _) = pair();
        while producer.push(0, 0, &[7; 200]) {}
        assert!(consumer.take_starved());
        assert!(!consumer.take_starved());
        assert!(consumer.pop().is_some());
        assert!(producer.push(0, 0, &[7; 200]));
    }

    #[test]
    fn a_successor_goes_on_where_a_dead_producer_stopped() {
        let (mut producer, mut consumer, window) = pair();
        producer.push(0, 0, b"first");
        Producer::attach(window).unwrap().push(0, 0, b"second");
        assert_eq!(consumer.pop().unwrap().bytes(), b"first");
        assert_eq!(consumer.pop().unwrap().bytes(), b"second");
    }

    #[test]
    fn a_lying_producer_costs_its_own_records_only() {
        for head in [1, 2, 3, 4, 1025, 0x8000_0000, u32::MAX] {
            let (_, mut consumer, window) = pair();
            window.atomic_u32(HEAD).unwrap().store(head, Ordering::Relaxed);
            while consumer.pop().is_some() {}
            assert!(consumer.is_empty());
            Producer::attach(window).unwrap().push(0, 0, b"sane again");
            assert_eq!(consumer.pop().unwrap().bytes(), b"sane again");
        }
    }

    #[test]
    fn a_lying_consumer_makes_the_ring_look_full() {
        let (mut producer, _, window) = pair();
        window.atomic_u32(TAIL).unwrap().store(5, Ordering::Relaxed);
        assert!(!producer.push(0, 0, b"x"));
    }

    #[test]
    fn a_window_too_small_for_a_record_is_no_ring() {
        assert!(Producer::attach(Window::leak(DATA)).is_err());
        assert!(Consumer::attach(Window::leak(DATA + 128)).is_err());
    }
}
