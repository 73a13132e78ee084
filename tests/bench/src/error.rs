//! Why something could not be measured.

use alloc::string::{String, ToString};
use core::fmt::{self, Display, Formatter};
use root_task::error::StartError;

/// Why something could not be measured.
#[derive(Clone, Debug)]
pub struct Failure(String);

/// The result of a measurement.
pub type Result<T> = core::result::Result<T, Failure>;

impl Failure {
    /// A sentence.
    pub fn new(why: impl Display) -> Self {
        Failure(why.to_string())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<usys::Error> for Failure {
    fn from(error: usys::Error) -> Self {
        Failure::new(error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Failure::new(error)
    }
}

impl From<usys::window::OutOfWindow> for Failure {
    fn from(error: usys::window::OutOfWindow) -> Self {
        Failure::new(error)
    }
}
