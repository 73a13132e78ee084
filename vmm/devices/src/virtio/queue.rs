//! A split queue, as the device sees it (2.7).
//!
//! Three areas in guest memory: the descriptor table, the available ring, which the driver writes, and the used ring, which
//! the device writes. Indices run freely over 16 bits.
//!
//! Ordering: [`GuestMemory`] does accesses in the order of the calls, but a later read may pass an earlier write, as on x86.
//! Where that matters (a side announces that it will sleep, then looks once more for work) there is a full fence.

use super::chain::{Chain, DESCRIPTOR_BYTES};
use super::{DriverError, EVENT_IDX, INDIRECT_DESC, Turn};
use crate::guest_mem::GuestMemory;
use core::sync::atomic::{Ordering, fence};

/// Available ring flag: the driver wants no interrupts; without event indices.
const NO_INTERRUPT: u16 = 1 << 0;

/// Offset of the index in both rings; the flags are before it.
const INDEX: u64 = 2;
/// Offset of the ring behind flags and index.
const RING: u64 = 4;

/// Where a driver put a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub available: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

/// A queue.
#[derive(Clone, Debug)]
pub struct Queue {
    max_size: u16,
    size: u16,
    addresses: Addresses,
    is_ready: bool,
    has_event_index: bool,
    has_indirect: bool,
    /// Next entry of the available ring that the device takes.
    next_available: u16,
    /// The driver's index as last read: entries before it may be taken.
    available_index: u16,
    /// Next entry of the used ring that the device writes.
    next_used: u16,
    /// Used index when the driver was last asked whether it wants an interrupt.
    signalled: u16,
}

impl Queue {
    /// A queue of at most `max_size` descriptors, a power of two, that is not ready.
    pub fn new(max_size: u16) -> Self {
        Queue {
            max_size,
            size: max_size,
            addresses: Addresses::default(),
            is_ready: false,
            has_event_index: false,
            has_indirect: false,
            next_available: 0,
            available_index: 0,
            next_used: 0,
            signalled: 0,
        }
    }

    /// The most descriptors it can have.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Descriptors it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether the driver uses it.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Where it is, to be changed before it is made ready.
    pub(super) fn addresses_mut(&mut self) -> &mut Addresses {
        &mut self.addresses
    }

    pub(super) fn set_size(&mut self, size: u16) {
        self.size = size;
    }

    /// The driver hands the queue over; `features` are those it negotiated.
    pub(super) fn enable(&mut self, features: u64) -> Result<(), DriverError> {
        if !self.size.is_power_of_two() || self.size > self.max_size {
            return Err(DriverError::QueueSize(self.size));
        }
        let Addresses { descriptors, available, used } = self.addresses;
        for (gpa, alignment) in [(descriptors, DESCRIPTOR_BYTES), (available, 2), (used, 4)] {
            if !gpa.is_multiple_of(alignment) {
                return Err(DriverError::QueueAddress(gpa));
            }
        }
        *self = Queue {
            size: self.size,
            addresses: self.addresses,
            is_ready: true,
            has_event_index: features & EVENT_IDX != 0,
            has_indirect: features & INDIRECT_DESC != 0,
            ..Queue::new(self.max_size)
        };
        Ok(())
    }

    /// The driver takes the queue back.
    pub(super) fn disable(&mut self) {
        self.is_ready = false;
    }

    /// Takes the next chain that the driver offers; `false` if there is none.
    pub fn pop(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        if self.next_available == self.available_index && !self.look(memory)? {
            return Ok(false);
        }
        let slot = u64::from(self.next_available & (self.size - 1));
        let head = memory.read_u16(self.addresses.available.wrapping_add(RING + 2 * slot))?;
        chain.fill(memory, self.addresses.descriptors, self.size, head, self.has_indirect)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// As [`Self::pop`]; if there is none, asks to be notified of the next.
    pub fn pop_or_arm(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        Ok(self.pop(memory, chain)? || self.arm(memory)? && self.pop(memory, chain)?)
    }

    /// Reads the driver's index; whether it offers something.
    fn look(&mut self, memory: &(impl GuestMemory + ?Sized)) -> Result<bool, DriverError> {
        if !self.is_ready {
            return Ok(false);
        }
        let index = memory.read_u16(self.addresses.available.wrapping_add(INDEX))?;
        if index.wrapping_sub(self.next_available) > self.size {
            return Err(DriverError::AvailableIndex(index));
        }
        self.available_index = index;
        Ok(index != self.next_available)
    }

    /// Asks to be notified of the next chain. Returns whether one came meanwhile, of which there may be no notification.
    pub fn arm(&mut self, memory: &mut (impl GuestMemory + ?Sized)) -> Result<bool, DriverError> {
        if !self.is_ready {
            return Ok(false);
        }
        if self.has_event_index {
            let event = RING + 8 * u64::from(self.size);
            memory.write_u16(self.addresses.used.wrapping_add(event), self.next_available)?;
            fence(Ordering::SeqCst);
        }
        self.look(memory)
    }

    /// Gives a chain back, with `len` bytes written from the beginning of its writable part.
    pub fn push(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        head: u16,
        len: u32,
    ) -> Result<(), DriverError> {
        self.put(memory, head, len)?;
        self.publish(memory)
    }

    /// As [`Self::push`], but the driver does not see it before [`Self::publish`].
    pub fn put(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        head: u16,
        len: u32,
    ) -> Result<(), DriverError> {
        if !self.is_ready {
            return Ok(());
        }
        let slot = u64::from(self.next_used & (self.size - 1));
        let element = u64::from(head) | u64::from(len) << 32;
        memory.write_u64(self.addresses.used.wrapping_add(RING + 8 * slot), element)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Lets the driver see all that was put.
    pub fn publish(&mut self, memory: &mut (impl GuestMemory + ?Sized)) -> Result<(), DriverError> {
        if !self.is_ready {
            return Ok(());
        }
        // The elements are visible before the index that covers them: writes stay in order.
        Ok(memory.write_u16(self.addresses.used.wrapping_add(INDEX), self.next_used)?)
    }

    /// Puts back the last `count` chains that were taken: they will be taken again.
    pub fn unpop(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_sub(count);
    }

    /// Whether the driver wants an interrupt for what was given back since this was last asked.
    pub fn wants_interrupt(&mut self, memory: &(impl GuestMemory + ?Sized)) -> Result<bool, DriverError> {
        if !self.is_ready || self.next_used == self.signalled {
            return Ok(false);
        }
        let signalled = core::mem::replace(&mut self.signalled, self.next_used);
        // The driver announces an index, then looks at the used ring; this is the other side.
        fence(Ordering::SeqCst);
        if !self.has_event_index {
            return Ok(memory.read_u16(self.addresses.available)? & NO_INTERRUPT == 0);
        }
        let event = RING + 2 * u64::from(self.size);
        let event = memory.read_u16(self.addresses.available.wrapping_add(event))?;
        Ok(is_passed(event, self.next_used, signalled))
    }

    /// Ends a turn of serving the queue.
    pub fn end_turn(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        again: bool,
    ) -> Result<Turn, DriverError> {
        Ok(Turn { interrupt: self.wants_interrupt(memory)?, again })
    }
}

/// Whether an index that moved from `old` to `new` passed `event` (2.7.7.2).
fn is_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
