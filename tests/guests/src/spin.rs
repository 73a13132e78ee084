//! A guest that never exits of its own accord, with interrupts off.

use tproto::line::LAST_WORDS;
use trt::println;

/// The guest.
pub fn run() {
    println!("{LAST_WORDS}endless loop");
    loop {
        // No PAUSE: a hypervisor may have it exit, and in QEMU each costs the host as much as thousands of instructions.
        core::hint::black_box(());
    }
}
