//! A packed queue's ring (2.8): one ring of descriptors, which driver and device write in turn.
//!
//! Each descriptor says by two of its flags whose it is: it is available when AVAIL is the driver's wrap counter and USED is not,
//! and used when both are the device's. A side's counter, 1 at first, changes whenever it goes round the ring.

use super::DriverError;
use super::chain::{Chain, DESCRIPTOR_BYTES, Head, NEXT, PackedDescriptor, WRITE};
use super::queue::{Addresses, is_passed};
use crate::guest_mem::GuestMemory;
use core::sync::atomic::{Ordering, fence};

/// Descriptor flags (2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Event suppression flags (2.8.10): every event, none, one descriptor.
const DISABLE: u16 = 1;
const AT_DESCRIPTOR: u16 = 2;

/// Offsets in a descriptor, behind its address.
const LENGTH: u64 = 8;
const ID: u64 = 12;
const FLAGS: u64 = 14;

/// Longest ring.
pub(super) const MOST: u16 = 1 << 15;

/// A place in the ring.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u16,
    wrap: bool,
}

impl Place {
    const START: Place = Place { slot: 0, wrap: true };

    fn moved(self, slots: u16, size: u16) -> Self {
        let slot = self.slot + slots;
        if slot < size { Place { slot, ..self } } else { Place { slot: slot - size, wrap: !self.wrap } }
    }

    fn moved_back(self, slots: u16, size: u16) -> Self {
        match self.slot.checked_sub(slots) {
            Some(slot) => Place { slot, ..self },
            None => Place { slot: self.slot + size - slots, wrap: !self.wrap },
        }
    }

    /// The flags of a used descriptor here, into whose buffers so many bytes were written (2.8.3).
    fn used(self, len: u32) -> u16 {
        let is_written = if len > 0 { WRITE } else { 0 };
        if self.wrap { AVAIL | USED | is_written } else { is_written }
    }

    fn is_available(self, flags: u16) -> bool {
        (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) != self.wrap
    }
}

/// What the device knows of the ring.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    /// Where the next chain begins that the device takes.
    available: Place,
    /// Where the device puts the next used descriptor.
    used: Place,
    /// Slots between the two: chains that were taken and not given back.
    taken: u16,
    /// The first of the used descriptors that the driver does not see yet, and the flags that show it.
    hidden: Option<(u16, u16)>,
    /// Slots that were given back since the driver was asked whether it wants an interrupt.
    unsignalled: u16,
}

impl Ring {
    pub(super) const fn new() -> Self {
        Ring { available: Place::START, used: Place::START, taken: 0, hidden: None, unsignalled: 0 }
    }

    /// Whether the driver offers a chain.
    pub(super) fn has_more(
        &self,
        memory: &(impl GuestMemory + ?Sized),
        at: &Addresses,
    ) -> Result<bool, DriverError> {
        let flags = memory.read_u16(descriptor(at, self.available.slot).wrapping_add(FLAGS))?;
        Ok(self.available.is_available(flags))
    }

    /// Takes the next chain that the driver offers; `false` if there is none.
    pub(super) fn pop(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
        allows_indirect: bool,
        chain: &mut Chain,
    ) -> Result<bool, DriverError> {
        let mut descriptor = PackedDescriptor::read(memory, descriptor(at, self.available.slot))?;
        if !self.available.is_available(descriptor.flags) {
            return Ok(false);
        }
        // Slots whose chains are in flight are not the driver's to offer.
        let free = size - self.taken;
        chain.begin();
        let (mut place, mut slots) = (self.available, 0);
        loop {
            if slots == free {
                return Err(if slots == 0 { DriverError::InFlight } else { DriverError::ChainLength });
            }
            chain.add_packed(memory, &descriptor, size, allows_indirect)?;
            slots += 1;
            place = place.moved(1, size);
            if descriptor.flags & NEXT == 0 {
                break;
            }
            // The driver makes the first available last, so the others are good as they are (2.8.21).
            descriptor = PackedDescriptor::read(memory, self::descriptor(at, place.slot))?;
        }
        chain.end(Head { id: descriptor.id, slots })?;
        self.available = place;
        self.taken += slots;
        Ok(true)
    }

    /// Puts back the chains of which these slots are: they will be taken again.
    pub(super) fn unpop(&mut self, slots: u16, size: u16) {
        self.available = self.available.moved_back(slots, size);
        self.taken -= slots;
    }

    /// Asks to be notified of the next chain.
    pub(super) fn arm(
        &self,
        memory: &mut (impl GuestMemory + ?Sized),
        at: &Addresses,
    ) -> Result<(), DriverError> {
        let place = u32::from(self.available.slot) | u32::from(self.available.wrap) << 15;
        memory.write_u32(at.used, place | u32::from(AT_DESCRIPTOR) << 16)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Gives a chain back; the driver does not see it before [`Self::publish`].
    pub(super) fn put(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
        head: Head,
        len: u32,
    ) -> Result<(), DriverError> {
        let gpa = descriptor(at, self.used.slot);
        memory.write_u32(gpa.wrapping_add(LENGTH), len)?;
        memory.write_u16(gpa.wrapping_add(ID), head.id)?;
        let flags = self.used.used(len);
        if self.hidden.is_none() {
            // The driver looks at them in order: while it does not see the first, it sees none.
            self.hidden = Some((self.used.slot, flags));
        } else {
            memory.write_u16(gpa.wrapping_add(FLAGS), flags)?;
        }
        self.used = self.used.moved(head.slots, size);
        self.taken = self.taken.saturating_sub(head.slots);
        self.unsignalled = self.unsignalled.saturating_add(head.slots).min(size);
        Ok(())
    }

    /// Lets the driver see all that was put.
    pub(super) fn publish(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        at: &Addresses,
    ) -> Result<(), DriverError> {
        match self.hidden.take() {
            Some((slot, flags)) => Ok(memory.write_u16(descriptor(at, slot).wrapping_add(FLAGS), flags)?),
            None => Ok(()),
        }
    }

    /// Whether the driver wants an interrupt for what was given back since this was last asked.
    pub(super) fn wants_interrupt(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        at: &Addresses,
        size: u16,
        has_event_index: bool,
    ) -> Result<bool, DriverError> {
        let slots = core::mem::take(&mut self.unsignalled);
        if slots == 0 {
            return Ok(false);
        }
        fence(Ordering::SeqCst);
        let event = memory.read_u32(at.available)?;
        let (place, flags) = (event as u16, (event >> 16) as u16);
        if !has_event_index || flags != AT_DESCRIPTOR {
            return Ok(flags != DISABLE);
        }
        // The event in the numbers of this round, in which the last one was before 0.
        let is_this_round = (place >> 15 != 0) == self.used.wrap;
        let event = (place & (MOST - 1)).wrapping_sub(if is_this_round { 0 } else { size });
        Ok(is_passed(event, self.used.slot, self.used.slot.wrapping_sub(slots)))
    }
}

/// Where a descriptor is.
fn descriptor(at: &Addresses, slot: u16) -> u64 {
    at.descriptors.wrapping_add(u64::from(slot) * DESCRIPTOR_BYTES)
}
