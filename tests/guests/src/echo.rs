//! Sends back what is typed on the console, by interrupts alone, until a `q`.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use tproto::line;
use trt::lapic::Lapic;
use trt::serial::{COM1, IER, LSR, LSR_DATA_READY};
use trt::trap::{self, Frame};
use trt::{check, cpu, ioapic, port, println, serial};

const VECTOR: u8 = 0x44;
const LINE: u32 = 4;
const RECEIVED_DATA: u8 = 1;

static ECHOED: AtomicU32 = AtomicU32::new(0);
static QUIT: AtomicBool = AtomicBool::new(false);

fn receive(_: &mut Frame) {
    while port::inb(COM1 + LSR) & LSR_DATA_READY != 0 {
        let byte = port::inb(COM1);
        serial::write(&[byte]);
        ECHOED.fetch_add(1, Relaxed);
        if byte == b'q' {
            QUIT.store(true, Relaxed);
        }
    }
    Lapic::current().eoi();
}

/// The guest.
pub fn run() {
    Lapic::enable_best();
    trap::set_handler(VECTOR, Some(receive));
    ioapic::set_entry(LINE, u64::from(VECTOR));
    println!("{}", line::READY);
    port::outb(COM1 + IER, RECEIVED_DATA);
    while !QUIT.load(Relaxed) {
        cpu::sti_hlt_cli();
    }
    port::outb(COM1 + IER, 0);
    println!();
    check!(ECHOED.load(Relaxed) > 0, "{} bytes were sent back", ECHOED.load(Relaxed));
}
