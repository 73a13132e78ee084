//! A lock for the threads of one process.

use core::sync::atomic::{AtomicBool, Ordering};
use talc::lock_api::{self, GuardSend};

/// How often a waiter looks before it gives the processor up.
const SPINS: u32 = 100;

/// Spins a little, then yields: the holder may be waiting for this CPU.
#[derive(Debug)]
pub struct RawYieldLock(AtomicBool);

// SAFETY: `try_lock` succeeds for one thread until that one unlocks; acquire and release order what is between.
unsafe impl lock_api::RawMutex for RawYieldLock {
    const INIT: Self = RawYieldLock(AtomicBool::new(false));
    type GuardMarker = GuardSend;

    fn lock(&self) {
        loop {
            for _ in 0..SPINS {
                if self.try_lock() {
                    return;
                }
                core::hint::spin_loop();
            }
            #[cfg(target_os = "none")]
            crate::object::yield_now();
        }
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A value behind a [`RawYieldLock`].
pub type Mutex<T> = lock_api::Mutex<RawYieldLock, T>;
