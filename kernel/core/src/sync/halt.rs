//! Whether a vCPU halts, and who ends that.

use super::atomic::{AtomicBool, Ordering};

/// Set while the vCPU halts. Whoever clears it ends the wait.
#[derive(Debug, Default)]
pub struct Halted(pub(super) AtomicBool);

/// What is due after a kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// It halts: wake it.
    Wake,
    /// It may be running: interrupt its CPU.
    Interrupt,
    /// Somebody else wakes it.
    Nothing,
}

impl Halted {
    /// Makes the vCPU look at its reasons to return, of which one was made visible before by a locked operation.
    ///
    /// A vCPU that does not halt may be running, and its CPU is interrupted, at worst for nothing. So a run need not announce
    /// itself, which would take a locked operation before it looks for reasons: the interrupt ends the run that did not see
    /// this one, at the latest when it enters the guest.
    #[inline]
    pub fn kick(&self) -> Kick {
        if !self.0.load(Ordering::SeqCst) {
            Kick::Interrupt
        } else if self.end() {
            Kick::Wake
        } else {
            Kick::Nothing
        }
    }

    /// On the vCPU's CPU: halts. False if there is a reason not to, and nobody else ends the wait.
    #[inline]
    pub fn halt(&self, has_reason: impl FnOnce() -> bool) -> bool {
        self.0.store(true, Ordering::SeqCst);
        // Whoever made one visible before did not see that it halts: look again. The winner of the exchange decides.
        !(has_reason() && self.end())
    }

    fn end(&self) -> bool {
        self.0.compare_exchange(true, false, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// On the vCPU's CPU: the wait ended, maybe without a kick.
    #[inline]
    pub fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}
