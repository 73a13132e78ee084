//! A guest that never exits of its own accord, with interrupts off.

use tproto::line::LAST_WORDS;
use trt::println;

/// The guest.
pub fn run() {
    println!("{LAST_WORDS}endless loop");
    loop {
        core::hint::spin_loop();
    }
}
