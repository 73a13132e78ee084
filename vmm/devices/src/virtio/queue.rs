//! A queue, as the device sees it (2.6): split or packed, whichever was negotiated.
//!
//! Ordering: [`GuestMemory`] does accesses in the order of the calls, but a later read may pass an earlier write, as on x86.
//! Where that matters (a side announces that it will sleep, then looks once more for work) there is a full fence.

use super::chain::{Chain, DESCRIPTOR_BYTES, Head};
use super::{DriverError, EVENT_IDX, INDIRECT_DESC, RING_PACKED, Turn, packed, split};
use crate::guest_mem::GuestMemory;

/// Where a driver put a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Addresses {
    /// Guest-physical address of the descriptor table or ring.
    pub descriptors: u64,
    /// Guest-physical address of the available ring; packed, of the driver's event suppression.
    pub available: u64,
    /// Guest-physical address of the used ring; packed, of the device's event suppression.
    pub used: u64,
}

#[derive(Clone, Debug)]
enum Ring {
    Split(split::Ring),
    Packed(packed::Ring),
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
    ring: Ring,
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
            ring: Ring::Split(split::Ring::new()),
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
        let is_packed = features & RING_PACKED != 0;
        let has_good_size =
            if is_packed { (1..=packed::MOST).contains(&self.size) } else { self.size.is_power_of_two() };
        if !has_good_size || self.size > self.max_size {
            return Err(DriverError::QueueSize(self.size));
        }
        let Addresses { descriptors, available, used } = self.addresses;
        // The areas of a packed queue for events have words (2.8.10.1).
        let alignment = if is_packed { 4 } else { 2 };
        for (gpa, alignment) in [(descriptors, DESCRIPTOR_BYTES), (available, alignment), (used, 4)] {
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
            ring: if is_packed { Ring::Packed(packed::Ring::new()) } else { Ring::Split(split::Ring::new()) },
            ..Queue::new(self.max_size)
        };
        Ok(())
    }

    /// The driver takes the queue back.
    pub(super) fn disable(&mut self) {
        self.is_ready = false;
    }

    /// Takes the next chain that the driver offers; `false` if there is none.
    #[inline(always)]
    pub fn pop(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        if !self.is_ready {
            return Ok(false);
        }
        let (at, size, indirect) = (&self.addresses, self.size, self.has_indirect);
        match &mut self.ring {
            Ring::Split(ring) => ring.pop(memory, at, size, indirect, chain),
            Ring::Packed(ring) => ring.pop(memory, at, size, indirect, chain),
        }
    }

    /// As [`Self::pop`]; if there is none, asks to be notified of the next.
    #[inline(always)]
    pub fn pop_or_arm(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        Ok(self.pop(memory, chain)? || self.arm_or_pop(memory, chain)?)
    }

    #[inline(never)]
    fn arm_or_pop(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        Ok(self.arm(memory)? && self.pop(memory, chain)?)
    }

    /// Asks to be notified of the next chain. Returns whether one came meanwhile, of which there may be no notification.
    pub fn arm(&mut self, memory: &mut (impl GuestMemory + ?Sized)) -> Result<bool, DriverError> {
        if !self.is_ready {
            return Ok(false);
        }
        let (at, size) = (&self.addresses, self.size);
        match &mut self.ring {
            Ring::Split(ring) => {
                if self.has_event_index {
                    ring.arm(memory, at, size)?;
                }
                ring.has_more(memory, at, size)
            }
            Ring::Packed(ring) => {
                if self.has_event_index {
                    ring.arm(memory, at)?;
                }
                ring.has_more(memory, at)
            }
        }
    }

    /// Gives a chain back, with `len` bytes written from the beginning of its writable part.
    #[inline]
    pub fn push(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        head: Head,
        len: u32,
    ) -> Result<(), DriverError> {
        self.put(memory, head, len)?;
        self.publish(memory)
    }

    /// As [`Self::push`], but the driver does not see it before [`Self::publish`].
    #[inline]
    pub fn put(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        head: Head,
        len: u32,
    ) -> Result<(), DriverError> {
        if !self.is_ready {
            return Ok(());
        }
        let (at, size) = (&self.addresses, self.size);
        match &mut self.ring {
            Ring::Split(ring) => ring.put(memory, at, size, head, len),
            Ring::Packed(ring) => ring.put(memory, at, size, head, len),
        }
    }

    /// Lets the driver see all that was put.
    #[inline]
    pub fn publish(&mut self, memory: &mut (impl GuestMemory + ?Sized)) -> Result<(), DriverError> {
        if !self.is_ready {
            return Ok(());
        }
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(memory, &self.addresses),
            Ring::Packed(ring) => ring.publish(memory, &self.addresses),
        }
    }

    /// Puts back the last chains that were taken: they will be taken again.
    pub fn unpop(&mut self, chains: impl Iterator<Item = Head>) {
        match &mut self.ring {
            Ring::Split(ring) => ring.unpop(chains.count() as u16),
            Ring::Packed(ring) => ring.unpop(chains.map(|head| head.slots).sum(), self.size),
        }
    }

    /// Whether the driver wants an interrupt for what was given back since this was last asked.
    #[inline]
    pub fn wants_interrupt(&mut self, memory: &(impl GuestMemory + ?Sized)) -> Result<bool, DriverError> {
        if !self.is_ready {
            return Ok(false);
        }
        let (at, size, event) = (&self.addresses, self.size, self.has_event_index);
        match &mut self.ring {
            Ring::Split(ring) => ring.wants_interrupt(memory, at, size, event),
            Ring::Packed(ring) => ring.wants_interrupt(memory, at, size, event),
        }
    }

    /// Ends a turn of serving the queue.
    #[inline]
    pub fn end_turn(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        again: bool,
    ) -> Result<Turn, DriverError> {
        Ok(Turn { interrupt: self.wants_interrupt(memory)?, again, later: false })
    }
}

/// Whether an index that moved from `old` to `new` passed `event` (2.7.7.2).
pub(super) fn is_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
