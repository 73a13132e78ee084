//! The processor shuts down: an exception with no IDT to take it.

use tproto::line::LAST_WORDS;
use trt::{debug, desc, println};

/// The guest.
pub fn run() {
    println!("{LAST_WORDS}triple fault");
    // SAFETY: that nothing can be delivered any more is the point.
    unsafe { desc::lidt(&desc::TablePointer { limit: 0, base: 0 }) };
    debug::int3();
}
