//! Grace periods: a CPU waits until another has let go of what it may refer to.

use super::atomic::{AtomicU32, Ordering};

/// What is asked of a CPU. One CPU asks at a time.
#[derive(Debug, Default)]
pub struct Request {
    pub(super) requested: AtomicU32,
    pub(super) served: AtomicU32,
}

impl Request {
    /// Asks the CPU to let go of all it refers to. What was taken away before, it does not find any more when it has.
    #[inline]
    pub fn ask(&self) {
        self.requested.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the CPU has done what it was asked for last.
    #[inline]
    pub fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire) == self.requested.load(Ordering::Relaxed)
    }

    /// On the CPU: whether it is asked.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.requested.load(Ordering::Acquire) != self.served.load(Ordering::Relaxed)
    }

    /// On the CPU, where it refers to nothing: if it is asked, says that it did, after `work`.
    #[inline]
    pub fn serve(&self, work: impl FnOnce()) {
        let requested = self.requested.load(Ordering::Acquire);
        if requested != self.served.load(Ordering::Relaxed) {
            work();
            self.served.store(requested, Ordering::Release);
        }
    }
}
