//! Checks and their tally.

use crate::println;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use tproto::{exit, line};

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Prints and counts the outcome of a check; `check!` is the way to call it.
pub fn report(holds: bool, sentence: fmt::Arguments<'_>, seen: fmt::Arguments<'_>) {
    if holds {
        PASSED.fetch_add(1, Relaxed);
        println!("{}{sentence}", line::OK);
    } else {
        FAILED.fetch_add(1, Relaxed);
        println!("{}{sentence} ({seen})", line::FAIL);
    }
}

/// Says why a check is not made on this machine.
pub fn skip(reason: fmt::Arguments<'_>) {
    println!("{}{reason}", line::SKIP);
}

/// Prints the tally and ends the guest: passed if no check failed.
pub fn finish() -> ! {
    let (passed, failed) = (PASSED.load(Relaxed), FAILED.load(Relaxed));
    println!("{}{passed} passed, {failed} failed", line::DONE);
    crate::port::exit(if failed == 0 { exit::PASS } else { exit::FAIL })
}

/// `check!(condition, "sentence", …)`: prints `ok: sentence` or `FAIL: sentence (…)` and counts it.
///
/// `check!(eq a, b, "sentence", …)` also prints both sides when they differ.
#[macro_export]
macro_rules! check {
    (eq $left:expr, $right:expr, $($sentence:tt)+) => {{
        let (left, right) = ($left, $right);
        $crate::check::report(
            left == right,
            format_args!($($sentence)+),
            format_args!("{left:#x?}, expected {right:#x?}"),
        );
    }};
    ($holds:expr, $($sentence:tt)+) => {
        $crate::check::report($holds, format_args!($($sentence)+), format_args!("{}", stringify!($holds)))
    };
}

/// `skip!("reason", …)`: says that a check is not made on this machine.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => { $crate::check::skip(format_args!($($reason)+)) };
}
