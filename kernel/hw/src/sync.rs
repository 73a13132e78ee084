//! The kernel's lock: a ticket lock. Ranks are in `doc/implementation.md`.
//!
//! The kernel runs with interrupts off. The holder of the tree lock may wait for every other CPU
//! ([`crate::smp::synchronize`]), so nobody may just wait for that lock: hypercalls try it, and start again after they served
//! the request. Holders of all other locks wait for nobody.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// Mutual exclusion between CPUs. Ranks are in `doc/implementation.md`.
#[derive(Debug, Default)]
pub struct Lock<T> {
    next: AtomicU32,
    serving: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the ticket protocol gives the value to one holder at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Lock { next: AtomicU32::new(0), serving: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        while self.serving.load(Ordering::Acquire) != ticket {
            core::hint::spin_loop();
        }
        Guard { lock: self }
    }

    /// Takes the lock if nobody has it or waits for it.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let ticket = self.serving.load(Ordering::Relaxed);
        let next = ticket.wrapping_add(1);
        self.next.compare_exchange(ticket, next, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Guard { lock: self })
    }
}

/// Holds a [`Lock`].
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard's ticket is being served: nobody else has a reference.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Only the holder writes `serving`, so a plain increment is enough.
        let ticket = self.lock.serving.load(Ordering::Relaxed);
        self.lock.serving.store(ticket.wrapping_add(1), Ordering::Release);
    }
}
