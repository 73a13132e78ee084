//! A ticket lock's words: who comes first is served first.

use super::atomic::{AtomicU32, Ordering, spin_loop};

/// The next ticket, and the one that is served: its holder has the lock.
#[derive(Debug, Default)]
pub struct Tickets {
    pub(super) next: AtomicU32,
    pub(super) serving: AtomicU32,
}

impl Tickets {
    /// Waits for the lock.
    #[inline]
    pub fn take(&self) {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.serving.load(Ordering::Acquire) != ticket {
            spin_loop();
        }
    }

    /// Takes the lock if nobody has it or waits for it.
    #[inline]
    pub fn try_take(&self) -> bool {
        // The last holder released by this word: what it did must be seen if its successor is us.
        let ticket = self.serving.load(Ordering::Acquire);
        let next = ticket.wrapping_add(1);
        self.next.compare_exchange(ticket, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Lets go of the lock. Its holder alone calls this.
    #[inline]
    pub fn release(&self) {
        // Only the holder writes `serving`, so a plain increment is enough.
        let ticket = self.serving.load(Ordering::Relaxed);
        self.serving.store(ticket.wrapping_add(1), Ordering::Release);
    }
}
