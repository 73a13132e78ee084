//! Protocols between CPUs, by atomic words alone.
//!
//! `tests/loom.rs` compiles the files below once more, with loom's atomics in place of the CPU's, and tries every interleaving
//! that the memory model of C11 allows. So they take what is atomic from `super::atomic`; and their constructors are here,
//! as loom's are no constant functions.

pub mod grace;
pub mod halt;
pub mod posted;
pub mod ticket;

mod atomic {
    pub(super) use core::hint::spin_loop;
    pub(super) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
}

use atomic::{AtomicBool, AtomicU32, AtomicU64};

impl ticket::Tickets {
    /// Nobody has the lock.
    pub const fn new() -> Self {
        ticket::Tickets { next: AtomicU32::new(0), serving: AtomicU32::new(0) }
    }
}

impl grace::Request {
    /// Nobody asks.
    pub const fn new() -> Self {
        grace::Request { requested: AtomicU32::new(0), served: AtomicU32::new(0) }
    }
}

impl halt::Halted {
    /// A vCPU that does not halt.
    pub const fn new() -> Self {
        halt::Halted(AtomicBool::new(false))
    }
}

impl posted::Posted {
    /// No vectors.
    pub const fn new() -> Self {
        posted::Posted { vectors: [const { AtomicU64::new(0) }; 4], is_posted: AtomicBool::new(false) }
    }
}
