//! A split queue's rings (2.7).
//!
//! Three areas in guest memory: the descriptor table, the available ring, which the driver writes, and the used ring, which
//! the device writes. Indices run freely over 16 bits.

use super::DriverError;
use super::chain::{Chain, Head};
use super::queue::{Addresses, is_passed};
use crate::guest_mem::GuestMemory;
use core::sync::atomic::{Ordering, fence};

/// Available ring flag: the driver wants no interrupts; without event indices.
const NO_INTERRUPT: u16 = 1 << 0;

/// Offset of the index in both rings; the flags are before it.
const INDEX: u64 = 2;
/// Offset of the ring behind flags and index.
const RING: u64 = 4;

/// What the device knows of the rings.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    /// Next entry of the available ring that the device takes.
    next_available: u16,
    /// The driver's index as last read: entries before it may be taken.
    available_index: u16,
    /// Next entry of the used ring that the device writes.
    next_used: u16,
    /// Used index when the driver was last asked whether it wants an interrupt.
    signalled: u16,
}

impl Ring {
    pub(super) const fn new() -> Self {
        Ring { next_available: 0, available_index: 0, next_used: 0, signalled: 0 }
    }

    /// Takes the next chain that the driver offers; `false` if there is none.
    #[inline]
    pub(super) fn pop(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
        allows_indirect: bool,
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        if self.next_available == self.available_index && !self.has_more(memory, at, size)? {
            return Ok(false);
        }
        let slot = u64::from(self.next_available & (size - 1));
        let head = memory.read_u16(at.available.wrapping_add(RING + 2 * slot))?;
        chain.fill(memory, at.descriptors, size, head, allows_indirect)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// Reads the driver's index; whether it offers something.
    pub(super) fn has_more(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
    ) -> Result<bool, DriverError> {
        let index = memory.read_u16(at.available.wrapping_add(INDEX))?;
        if index.wrapping_sub(self.next_available) > size {
            return Err(DriverError::AvailableIndex(index));
        }
        self.available_index = index;
        Ok(index != self.next_available)
    }

    /// Puts back the last `count` chains that were taken: they will be taken again.
    pub(super) fn unpop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Asks to be notified of the next chain.
    pub(super) fn arm(
        &self,
        memory: &mut (impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
    ) -> Result<(), DriverError> {
        let event = RING + 8 * u64::from(size);
        memory.write_u16(at.used.wrapping_add(event), self.next_available)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Gives a chain back; the driver does not see it before [`Self::publish`].
    #[inline]
    pub(super) fn put(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
        head: Head,
        len: u32,
    ) -> Result<(), DriverError> {
        let slot = u64::from(self.next_used & (size - 1));
        let element = u64::from(head.id) | u64::from(len) << 32;
        memory.write_u64(at.used.wrapping_add(RING + 8 * slot), element)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Lets the driver see all that was put.
    #[inline]
    pub(super) fn publish(
        &self,
        memory: &mut (impl GuestMemory + ?Sized),
        at: &Addresses,
    ) -> Result<(), DriverError> {
        // The elements are visible before the index that covers them: writes stay in order.
        Ok(memory.write_u16(at.used.wrapping_add(INDEX), self.next_used)?)
    }

    /// Whether the driver wants an interrupt for what was given back since this was last asked.
    pub(super) fn wants_interrupt(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
        has_event_index: bool,
    ) -> Result<bool, DriverError> {
        if self.next_used == self.signalled {
            return Ok(false);
        }
        let signalled = core::mem::replace(&mut self.signalled, self.next_used);
        // The driver announces an index, then looks at the used ring; this is the other side.
        fence(Ordering::SeqCst);
        if !has_event_index {
            return Ok(memory.read_u16(at.available)? & NO_INTERRUPT == 0);
        }
        let event = RING + 2 * u64::from(size);
        let event = memory.read_u16(at.available.wrapping_add(event))?;
        Ok(is_passed(event, self.next_used, signalled))
    }
}
