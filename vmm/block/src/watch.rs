//! What somebody sees who looks on: whether the driver gets anywhere.

use crate::Words;
use usys::Window;
use usys::window::OutOfWindow;
use vmm_protocol::block::{COMPLETION_HEAD, DATA, EPOCH, REQUEST_HEAD, SERVED, Served};

/// What a driver has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    served: Served,
    completions: u32,
}

/// Looks at a channel from time to time.
///
/// A driver that completes, or begins, something between any two looks gets somewhere, whatever it is: the user notices what it did
/// not ask for.
#[derive(Debug)]
pub struct Watch {
    words: Words,
    /// What the driver had done when it was looked at last, if it had something to do.
    owing: Option<Progress>,
}

impl Watch {
    /// An onlooker of a channel, of which `window` is at least what is before the data.
    ///
    /// # Errors
    /// It is less.
    pub fn new(window: Window) -> Result<Self, OutOfWindow> {
        Ok(Watch { words: Words(window.slice(0, DATA)?), owing: None })
    }

    /// Whether the driver had something to do at the last look, and has done nothing since.
    pub fn is_stuck(&mut self) -> bool {
        let now = Progress {
            served: Served::decode(self.words.load_u64(SERVED)),
            completions: self.words.load(COMPLETION_HEAD),
        };
        let is_owing = self.is_owing(now);
        let last = core::mem::replace(&mut self.owing, is_owing.then_some(now));
        is_owing && last == Some(now)
    }

    /// Another driver begins: what the last one owed does not count.
    pub fn forget(&mut self) {
        self.owing = None;
    }

    fn is_owing(&self, now: Progress) -> bool {
        // Without a user, the epoch is 0, as a driver has it that serves nobody.
        self.words.load(EPOCH) != now.served.epoch || self.words.load(REQUEST_HEAD) != now.completions
    }
}
