//! The kernel log's way out: port E9 of test machines, or the first serial port.
//!
//! E9 is instantaneous. The serial port is waited for only while the kernel boots and when it ends; otherwise it drops
//! what its FIFO cannot take.

use crate::cpu::port;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Where log text goes.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere.
    None = 0,
    /// Port E9 (QEMU's debugcon, Bochs' port_e9_hack).
    E9 = 1,
    /// COM1, 115200 8n1, until user space takes the port.
    Serial = 2,
}

static SINK: AtomicU8 = AtomicU8::new(Sink::E9 as u8);
const COM1: u16 = 0x3f8;
const FIFO_BYTES: usize = 16;

/// Chooses the sink; sets up the serial port if it is that.
pub fn select(sink: Sink) {
    if sink == Sink::Serial {
        // 16550: divisor 1, 8n1, FIFO on, DTR and RTS and OUT2 set, no interrupts.
        for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0xb)] {
            port::write8(COM1 + offset, value);
        }
    }
    SINK.store(sink as u8, Ordering::Relaxed);
}

/// Whether the serial port may be waited for: while the kernel boots, and for its last words.
static MAY_WAIT: AtomicBool = AtomicBool::new(true);

/// From now on, what a slow port cannot take at once is dropped: the kernel has better things to do than to wait.
pub fn stop_waiting() {
    MAY_WAIT.store(false, Ordering::Relaxed);
}

/// The kernel ends: what it says now is worth waiting for.
pub fn last_words() {
    MAY_WAIT.store(true, Ordering::Relaxed);
}

/// User space takes the serial port: the kernel no longer writes to it.
pub fn give_up_serial() {
    let _ = SINK.compare_exchange(Sink::Serial as u8, Sink::None as u8, Ordering::Relaxed, Ordering::Relaxed);
}

/// Writes bytes to the sink.
pub fn write(bytes: &[u8]) {
    match SINK.load(Ordering::Relaxed) {
        1 => bytes.iter().for_each(|&byte| port::write8(0xe9, byte)),
        2 => bytes.chunks(FIFO_BYTES).for_each(write_serial),
        _ => {}
    }
}

/// Writes as much as the port's FIFO holds, once that is empty.
fn write_serial(bytes: &[u8]) {
    // A full FIFO takes 1.4 ms at 115200 baud; a port that takes ten times as long is broken.
    let looks = if MAY_WAIT.load(Ordering::Relaxed) { 20_000 } else { 1 };
    if (0..looks).any(|_| port::read8(COM1 + 5) & 0x20 != 0) {
        bytes.iter().for_each(|&byte| port::write8(COM1, byte));
    }
}

/// Formats to the sink.
#[derive(Debug)]
pub struct Writer;

impl fmt::Write for Writer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}
