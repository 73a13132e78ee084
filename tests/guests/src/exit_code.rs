//! Ends with the exit value of the command line: `value=N`, decimal.

use trt::{check, port, pvh};

/// The guest.
pub fn run() {
    match pvh::option("value").and_then(|value| value.parse().ok()) {
        Some(value) => port::exit(value),
        None => check!(false, "the command line {:?} has a value=N", pvh::cmdline()),
    }
}
