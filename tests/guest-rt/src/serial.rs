//! The first 16550 serial port, polled, as the guest's console.

use crate::port::{inb, outb};
use core::fmt;

/// I/O port of COM1's first register.
pub const COM1: u16 = 0x3f8;

/// Interrupt enable register, from the first register.
pub const IER: u16 = 1;
/// Interrupt identification register when read, FIFO control register when written.
pub const IIR_FCR: u16 = 2;
/// Line control register.
pub const LCR: u16 = 3;
/// Modem control register.
pub const MCR: u16 = 4;
/// Line status register.
pub const LSR: u16 = 5;

/// Line status: a received byte is waiting.
pub const LSR_DATA_READY: u8 = 1 << 0;
/// Line status: the transmitter takes a full FIFO of bytes.
pub const LSR_THR_EMPTY: u8 = 1 << 5;

/// Bytes that an empty transmitter FIFO takes without another look at the line status.
const FIFO_BYTES: usize = 16;

/// Sets the console to 115200 baud, 8N1, FIFOs on, interrupts off.
pub(crate) fn init() {
    outb(COM1 + IER, 0);
    outb(COM1 + LCR, 0x80);
    outb(COM1, 1);
    outb(COM1 + IER, 0);
    outb(COM1 + LCR, 0x03);
    outb(COM1 + IIR_FCR, 0x07);
    // DTR, RTS and OUT2, which gates the interrupt line on a PC.
    outb(COM1 + MCR, 0x0b);
}

/// Writes bytes as they are.
pub fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO_BYTES) {
        while inb(COM1 + LSR) & LSR_THR_EMPTY == 0 {
            core::hint::spin_loop();
        }
        for &byte in chunk {
            outb(COM1, byte);
        }
    }
}

/// The console as a target of `write!`; line ends are sent as CR LF.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    write(line.as_bytes());
                    write(b"\r\n");
                }
                None => write(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Prints a line on the guest's console.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // The console cannot fail.
        let _ = writeln!($crate::serial::Console, $($arg)*);
    }};
}
