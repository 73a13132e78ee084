//! The kernel log's way out: port E9 of test machines, or the first serial port.
//!
//! Neither waits: E9 is instantaneous, and the serial port drops what its FIFO cannot take.

use crate::cpu::port;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

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

/// Writes bytes to the sink.
pub fn write(bytes: &[u8]) {
    match SINK.load(Ordering::Relaxed) {
        1 => bytes.iter().for_each(|&byte| port::write8(0xe9, byte)),
        2 => bytes.iter().for_each(|&byte| {
            // A bounded wait: 16 characters at 115200 baud are 1.4 ms; give up long before a human notices.
            for _ in 0..20_000 {
                if port::read8(COM1 + 5) & 0x20 != 0 {
                    port::write8(COM1, byte);
                    break;
                }
            }
        }),
        _ => {}
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
