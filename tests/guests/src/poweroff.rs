//! Power off, as ACPI's S5 does it.

use tproto::line::LAST_WORDS;
use trt::{check, clock, is_nacre, port, println};

/// Sleep control register of the hardware-reduced board, and SLP_TYP 5 with SLP_EN.
const SLEEP_CONTROL: (u16, u8) = (0x600, 5 << 2 | 1 << 5);
/// PM1a control of QEMU's q35, and SLP_TYP 0 with SLP_EN.
const PM1A_CONTROL: (u16, u16) = (0x604, 1 << 13);

/// The guest.
pub fn run() {
    println!("{LAST_WORDS}power off");
    if is_nacre() {
        port::outb(SLEEP_CONTROL.0, SLEEP_CONTROL.1);
    } else {
        port::outw(PM1A_CONTROL.0, PM1A_CONTROL.1);
    }
    clock::wait(100);
    check!(false, "power is off 100 ms after it was switched off");
}
