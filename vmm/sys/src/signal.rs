//! Waking the process at the other end of shared memory.

use crate::cap::{Cap, Ntfn};

/// Wakes a peer.
pub trait Signal {
    /// Makes it look at what is shared.
    fn signal(&self);
}

impl Signal for Cap<Ntfn> {
    #[inline]
    fn signal(&self) {
        // A peer that is gone needs no signal.
        let _ = Cap::signal(*self);
    }
}
