//! What a test returns.

use alloc::format;
use alloc::string::String;
use core::fmt::Debug;
use core::panic::Location;

/// What a test saw instead of what it had to see.
#[derive(Debug)]
pub struct Failure(pub String);

/// What a test, or a step of it, came to.
pub type Check = Result<(), Failure>;

/// A step that has a result.
pub type Seen<T> = Result<T, Failure>;

impl Failure {
    /// Says what was seen, and where in the source.
    #[track_caller]
    pub fn new(what: &str, got: impl Debug, expected: impl Debug) -> Self {
        let place = Location::caller();
        let file = place.file().rsplit('/').next().unwrap_or_default();
        Failure(format!("{what} ({file}:{}): got {got:x?} expected {expected:x?}", place.line()))
    }
}

/// Compares.
#[track_caller]
pub fn equal<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Check {
    if got == expected { Ok(()) } else { Err(Failure::new(what, got, expected)) }
}

/// A condition.
#[track_caller]
pub fn holds(what: &str, is_so: bool) -> Check {
    equal(what, is_so, true)
}
