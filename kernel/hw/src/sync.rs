//! The kernel's lock: a ticket lock. Ranks are in `doc/implementation.md`.
//!
//! The kernel runs with interrupts off. The holder of the tree lock may wait for every other CPU
//! ([`crate::smp::synchronize`]), so nobody may just wait for that lock: hypercalls try it, and start again after they served
//! the request. Holders of all other locks wait for nobody.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use kcore::sync::ticket::Tickets;

/// Mutual exclusion between CPUs. Ranks are in `doc/implementation.md`.
#[derive(Debug, Default)]
pub struct Lock<T> {
    tickets: Tickets,
    value: UnsafeCell<T>,
}

// SAFETY: the ticket protocol gives the value to one holder at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Lock { tickets: Tickets::new(), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    #[inline]
    pub fn lock(&self) -> Guard<'_, T> {
        self.tickets.take();
        Guard { lock: self }
    }

    /// Takes the lock if nobody has it or waits for it.
    #[inline]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // Lazily: a guard that is dropped lets go of the lock.
        self.tickets.try_take().then(|| Guard { lock: self })
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
        self.lock.tickets.release();
    }
}
