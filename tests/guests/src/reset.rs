//! Reset, in each way a guest can ask for it: `how=acpi`, `i8042`, `cf9` or `port92`.

use tproto::line::LAST_WORDS;
use trt::{check, clock, port, println, pvh};

/// The guest.
pub fn run() {
    let how = pvh::option("how").unwrap_or("acpi");
    println!("{LAST_WORDS}reset by {how}");
    match how {
        // The FADT's reset register and value on the hardware-reduced board.
        "acpi" => port::outb(0x600, 1),
        "i8042" => port::outb(0x64, 0xfe),
        "cf9" => {
            // Full reset, announced first, as Linux does it.
            port::outb(0xcf9, 0x02);
            port::outb(0xcf9, 0x06);
        }
        "port92" => {
            let value = port::inb(0x92);
            port::outb(0x92, value & !1);
            port::outb(0x92, value | 1);
        }
        _ => check!(false, "how={how} names a way to reset"),
    }
    clock::wait(100);
    check!(false, "the machine is reset 100 ms after {how} was asked to");
}
