//! A processor that nothing can wake.

use tproto::line::LAST_WORDS;
use trt::{cpu, println};

/// The guest.
pub fn run() {
    println!("{LAST_WORDS}halt with interrupts off");
    cpu::stop();
}
