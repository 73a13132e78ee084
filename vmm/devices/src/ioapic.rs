//! I/O APIC with 24 pins (Intel 82093AA data sheet), with the EOI register of its successors (ICH9 data sheet
//! 13.5).
//!
//! Data path: a device's line reaches [`IoApic::set_line`]; an unmasked pin turns it into a [`Message`] for
//! the local APICs. A level-triggered pin then stays silent (remote IRR) until [`IoApic::eoi`] or the EOI
//! register, and sends again if its line is still asserted.
//!
//! Lines carry assertion, not voltage: the board's ACPI tables state the polarity that the guest programs,
//! and the polarity bit is kept without effect.

use crate::interrupt::{DeliveryMode, Message, destination_from_8_bits};
use alloc::vec::Vec;

/// Interrupt inputs.
pub const PINS: usize = 24;
/// Guest-physical address of the registers on a PC.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;
/// Bytes of address space that the registers take.
pub const MMIO_BYTES: u64 = 0x1000;

/// Has an EOI register.
const VERSION: u32 = 0x20;

/// IOREGSEL: which register IOWIN shows.
pub const IOREGSEL: u64 = 0x00;
/// IOWIN: the selected register.
pub const IOWIN: u64 = 0x10;
/// EOIR: ends the interrupts with the vector written.
const EOIR: u64 = 0x40;

/// Redirection entry: bits that software can write.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL_TRIGGERED: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

#[derive(Clone, Copy)]
struct Pin {
    /// Redirection entry as the guest reads it.
    entry: u64,
    is_asserted: bool,
}

impl Pin {
    /// Level-triggered with an EOI to come; other delivery modes are edge-triggered whatever the bit says.
    fn is_level(&self) -> bool {
        self.entry & LEVEL_TRIGGERED != 0 && self.mode().is_some_and(DeliveryMode::has_vector)
    }

    fn mode(&self) -> Option<DeliveryMode> {
        let [_, byte1, ..] = self.entry.to_le_bytes();
        // No start-up IPIs from here: that encoding is reserved in a redirection entry.
        DeliveryMode::from_bits(u32::from(byte1)).filter(|mode| *mode != DeliveryMode::Startup)
    }

    fn message(&self) -> Option<Message> {
        let [vector, .., destination] = self.entry.to_le_bytes();
        Some(Message {
            vector,
            destination: destination_from_8_bits(destination),
            logical: self.entry & LOGICAL != 0,
            mode: self.mode()?,
            level: self.is_level(),
        })
    }

    /// Sends a level-triggered interrupt if it is asserted, unmasked and not on its way already.
    fn send_level(&mut self) -> Option<Message> {
        if !self.is_level() || !self.is_asserted || self.entry & (MASKED | REMOTE_IRR) != 0 {
            return None;
        }
        self.entry |= REMOTE_IRR;
        self.message()
    }

    fn set_line(&mut self, is_asserted: bool) -> Option<Message> {
        let was_asserted = core::mem::replace(&mut self.is_asserted, is_asserted);
        if self.is_level() {
            return self.send_level();
        }
        // An edge on a masked pin is lost (82093AA, interrupt mask).
        if is_asserted && !was_asserted && self.entry & MASKED == 0 { self.message() } else { None }
    }

    fn write(&mut self, value: u64) -> Option<Message> {
        self.entry = value & WRITABLE | self.entry & REMOTE_IRR;
        // Switching to edge ends what waited for an EOI; software without EOI register relies on it.
        if !self.is_level() {
            self.entry &= !REMOTE_IRR;
        }
        self.send_level()
    }

    fn eoi(&mut self, vector: u8) -> Option<Message> {
        if !self.is_level() || self.entry.to_le_bytes()[0] != vector {
            return None;
        }
        self.entry &= !REMOTE_IRR;
        self.send_level()
    }
}

/// The board's I/O APIC.
#[derive(Clone)]
pub struct IoApic {
    id: u8,
    selected: u8,
    pins: [Pin; PINS],
}

impl IoApic {
    /// An I/O APIC after reset: every pin masked, no line asserted. The guest can change its `id` (4 bits).
    pub fn new(id: u8) -> Self {
        Self { id: id & 0xf, selected: 0, pins: [Pin { entry: MASKED, is_asserted: false }; PINS] }
    }

    /// A device drives the line at `pin`. A pin that does not exist sends nothing.
    pub fn set_line(&mut self, pin: usize, level: bool) -> Option<Message> {
        self.pins.get_mut(pin)?.set_line(level)
    }

    /// A local APIC broadcast the EOI of `vector`. Returns what is sent again because its line is still
    /// asserted.
    pub fn eoi(&mut self, vector: u8) -> Vec<Message> {
        self.pins.iter_mut().filter_map(|pin| pin.eoi(vector)).collect()
    }

    /// Writes IOREGSEL, at byte 0.
    #[inline]
    pub fn select(&mut self, register: u8) {
        self.selected = register;
    }

    /// Reads 32 bits at byte `offset`.
    #[inline]
    pub fn mmio_read(&self, offset: u64) -> u32 {
        match offset {
            IOREGSEL => u32::from(self.selected),
            IOWIN => self.read_selected(),
            _ => 0,
        }
    }

    /// Writes 32 bits at byte `offset` and returns the messages that it sets free.
    pub fn mmio_write(&mut self, offset: u64, value: u32) -> Vec<Message> {
        let [low_byte, ..] = value.to_le_bytes();
        match offset {
            IOREGSEL => self.select(low_byte),
            IOWIN => return self.write_selected(value).into_iter().collect(),
            EOIR => return self.eoi(low_byte),
            _ => {}
        }
        Vec::new()
    }

    fn read_selected(&self) -> u32 {
        match self.selected {
            // Identification and arbitration.
            0 | 2 => u32::from(self.id) << 24,
            1 => (PINS as u32 - 1) << 16 | VERSION,
            _ => match self.selected_entry() {
                Some((pin, shift)) => self.pins.get(pin).map_or(0, |pin| (pin.entry >> shift) as u32),
                None => 0,
            },
        }
    }

    fn write_selected(&mut self, value: u32) -> Option<Message> {
        if self.selected == 0 {
            self.id = (value >> 24 & 0xf) as u8;
            return None;
        }
        let (pin, shift) = self.selected_entry()?;
        let pin = self.pins.get_mut(pin)?;
        let other_half = pin.entry & !(0xffff_ffff << shift);
        pin.write(other_half | u64::from(value) << shift)
    }

    /// Pin number, perhaps too large, and bit offset of the selected half of a redirection entry.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let half = self.selected.checked_sub(0x10)?;
        Some((usize::from(half / 2), u32::from(half % 2) * 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::BROADCAST;
    use alloc::vec;
    use proptest::prelude::*;

    fn program(ioapic: &mut IoApic, pin: u32, entry: u64) -> Vec<Message> {
        ioapic.mmio_write(IOREGSEL, 0x11 + pin * 2);
        let mut messages = ioapic.mmio_write(IOWIN, (entry >> 32) as u32);
        ioapic.mmio_write(IOREGSEL, 0x10 + pin * 2);
        messages.extend(ioapic.mmio_write(IOWIN, entry as u32));
        messages
    }

    fn entry_low(ioapic: &mut IoApic, pin: u32) -> u32 {
        ioapic.mmio_write(IOREGSEL, 0x10 + pin * 2);
        ioapic.mmio_read(IOWIN)
    }

    const EDGE: Message =
        Message { vector: 0x31, destination: 2, logical: false, mode: DeliveryMode::Fixed, level: false };
    const LEVEL: Message = Message { level: true, ..EDGE };

    #[test]
    fn the_guest_finds_24_masked_pins_and_an_eoi_register() {
        let mut ioapic = IoApic::new(5);
        ioapic.mmio_write(IOREGSEL, 1);
        assert_eq!(ioapic.mmio_read(IOWIN), 0x0017_0020);
        ioapic.mmio_write(IOREGSEL, 0);
        assert_eq!(ioapic.mmio_read(IOWIN), 5 << 24);
        ioapic.mmio_write(IOWIN, 0xffff_ffff);
        assert_eq!(ioapic.mmio_read(IOWIN), 0xf << 24);
        assert_eq!(entry_low(&mut ioapic, 23), 0x1_0000);
    }

    #[test]
    fn an_edge_sends_once_per_rise() {
        let mut ioapic = IoApic::new(0);
        assert!(program(&mut ioapic, 4, 2 << 56 | 0x31).is_empty());
        assert_eq!(ioapic.set_line(4, true), Some(EDGE));
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(ioapic.set_line(4, false), None);
        assert_eq!(ioapic.set_line(4, true), Some(EDGE));
    }

    #[test]
    fn an_edge_while_masked_is_lost() {
        let mut ioapic = IoApic::new(0);
        assert_eq!(ioapic.set_line(4, true), None);
        assert!(program(&mut ioapic, 4, 2 << 56 | 0x31).is_empty());
        assert_eq!(ioapic.set_line(4, true), None);
    }

    #[test]
    fn a_level_is_sent_again_after_each_eoi_while_asserted() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 9, 2 << 56 | LEVEL_TRIGGERED | 0x31);
        assert_eq!(ioapic.set_line(9, true), Some(LEVEL));
        assert_eq!(entry_low(&mut ioapic, 9), 0xc031);
        assert_eq!(ioapic.set_line(9, false), None);
        assert_eq!(ioapic.set_line(9, true), None, "the first one is not ended yet");
        assert!(ioapic.eoi(0x32).is_empty());
        assert_eq!(ioapic.eoi(0x31), vec![LEVEL]);
        assert_eq!(ioapic.set_line(9, false), None);
        assert!(ioapic.mmio_write(EOIR, 0x31).is_empty());
        assert_eq!(entry_low(&mut ioapic, 9), 0x8031);
    }

    #[test]
    fn unmasking_an_asserted_level_sends_it() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 9, 2 << 56 | MASKED | LEVEL_TRIGGERED | 0x31);
        assert_eq!(ioapic.set_line(9, true), None);
        assert_eq!(program(&mut ioapic, 9, 2 << 56 | LEVEL_TRIGGERED | 0x31), vec![LEVEL]);
    }

    #[test]
    fn switching_to_edge_and_back_ends_a_level_interrupt() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 9, 2 << 56 | LEVEL_TRIGGERED | 0x31);
        assert_eq!(ioapic.set_line(9, true), Some(LEVEL));
        program(&mut ioapic, 9, 2 << 56 | MASKED | 0x31);
        assert_eq!(entry_low(&mut ioapic, 9), 0x1_0031);
        assert_eq!(program(&mut ioapic, 9, 2 << 56 | LEVEL_TRIGGERED | 0x31), vec![LEVEL]);
    }

    #[test]
    fn read_only_bits_are_not_written() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 3, MASKED | LEVEL_TRIGGERED | REMOTE_IRR | 1 << 12);
        assert_eq!(entry_low(&mut ioapic, 3), 0x1_8000);
    }

    #[test]
    fn destination_ff_means_everybody_and_reserved_modes_send_nothing() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 0, 0xff << 56 | LOGICAL | 0x131);
        let message = ioapic.set_line(0, true).unwrap();
        assert_eq!((message.destination, message.logical), (BROADCAST, true));
        assert_eq!(message.mode, DeliveryMode::LowestPriority);
        for mode in [3, 6] {
            program(&mut ioapic, 1, mode << 8 | 0x31);
            assert_eq!(ioapic.set_line(1, true), None);
            ioapic.set_line(1, false);
        }
    }

    #[test]
    fn an_nmi_pin_is_edge_triggered_whatever_its_trigger_bit() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 2, LEVEL_TRIGGERED | 0x400);
        assert_eq!(ioapic.set_line(2, true).map(|m| (m.mode, m.level)), Some((DeliveryMode::Nmi, false)));
        assert_eq!(ioapic.set_line(2, true), None);
    }

    proptest! {
        #[test]
        fn any_access_sequence_leaves_no_interrupt_stuck(
            accesses in prop::collection::vec((0u64..0x60, any::<u32>(), any::<bool>(), 0usize..30), 0..300),
        ) {
            let mut ioapic = IoApic::new(0);
            for (offset, value, level, pin) in accesses {
                let _ = ioapic.mmio_read(offset);
                let _ = ioapic.mmio_write(if level { IOWIN } else { offset & !0xf }, value);
                let _ = ioapic.set_line(pin, level);
                for pin in &ioapic.pins {
                    // An asserted, unmasked level pin has always sent, and only such pins wait for an EOI.
                    let is_open = pin.is_level() && pin.is_asserted && pin.entry & MASKED == 0;
                    prop_assert!(!is_open || pin.entry & REMOTE_IRR != 0);
                    prop_assert!(pin.is_level() || pin.entry & REMOTE_IRR == 0);
                }
            }
        }
    }
}
