//! Interprocessor interrupts: what a write to ICR means (SDM 3A 10.6), and whom a destination names.

use super::{
    Effect, Lapic, Mode,
    register::{Esr, Register},
};
use crate::interrupt::{BROADCAST, DeliveryMode, FIRST_LEGAL_VECTOR};

/// An interprocessor interrupt that leaves its local APIC.
///
/// IPIs to the sender alone by shorthand never get here; the local APIC delivers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpiRequest {
    /// Interrupt vector; for [`DeliveryMode::Startup`] the page number of the first instruction.
    pub vector: u8,
    /// What it does; never [`DeliveryMode::ExtInt`].
    pub mode: DeliveryMode,
    /// Whom it addresses instead of `destination`.
    pub shorthand: Shorthand,
    /// APIC ID or logical destination, [`BROADCAST`] for all; counts if there is no shorthand.
    pub destination: u32,
    /// `destination` is logical.
    pub logical: bool,
}

/// ICR bits 19:18, without the sender itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shorthand {
    /// The destination field counts.
    None,
    /// Every local APIC.
    AllIncludingSelf,
    /// Every local APIC but the sender's.
    AllExcludingSelf,
}

const ICR_LOGICAL: u32 = 1 << 11;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_LEVEL_TRIGGERED: u32 = 1 << 15;
/// Bits of the lower half that hold something; delivery status always reads as idle.
pub(super) const ICR_WRITABLE: u32 = 0x000c_cfff;

impl Lapic {
    /// Sends what the lower half of ICR says. `destination` is 32 bits wide in either mode.
    pub(super) fn send_ipi(&mut self, icr: u32, destination: u32) -> Effect {
        let [vector, ..] = icr.to_le_bytes();
        let Some(mode) = DeliveryMode::from_bits(icr >> 8).filter(|mode| *mode != DeliveryMode::ExtInt)
        else {
            return Effect::None;
        };
        // INIT level de-assert did something on processors with an APIC bus only.
        if mode == DeliveryMode::Init && icr & ICR_ASSERT == 0 && icr & ICR_LEVEL_TRIGGERED != 0 {
            return Effect::None;
        }
        if mode.has_vector() && vector < FIRST_LEGAL_VECTOR {
            self.raise_error(Esr::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let shorthand = match icr >> 18 & 3 {
            0 => Shorthand::None,
            1 => {
                // Other modes cannot be sent to oneself (SDM 3A, table 10-3).
                if mode == DeliveryMode::Fixed {
                    self.accept(vector, false);
                }
                return Effect::None;
            }
            2 if mode != DeliveryMode::Fixed => return Effect::None,
            2 => Shorthand::AllIncludingSelf,
            _ => Shorthand::AllExcludingSelf,
        };
        Effect::Ipi(IpiRequest { vector, mode, shorthand, destination, logical: icr & ICR_LOGICAL != 0 })
    }

    /// An IPI from the local APIC `sender_id` addresses this one.
    pub fn is_addressed_by(&self, ipi: &IpiRequest, sender_id: u32) -> bool {
        match ipi.shorthand {
            Shorthand::None => self.is_destination(ipi.destination, ipi.logical),
            Shorthand::AllIncludingSelf => self.mode() != Mode::Disabled,
            Shorthand::AllExcludingSelf => self.mode() != Mode::Disabled && self.apic_id() != sender_id,
        }
    }

    /// `destination` names this local APIC, perhaps among others (SDM 3A 10.6.2, 10.12.10).
    pub fn is_destination(&self, destination: u32, logical: bool) -> bool {
        match self.mode() {
            Mode::Disabled => false,
            _ if destination == BROADCAST => true,
            Mode::XApic if logical => self.is_in_xapic_set(destination),
            Mode::XApic => destination == self.apic_id() & 0xff,
            Mode::X2Apic if logical => {
                let ldr = self.page.get(Register::LogicalDestination);
                destination >> 16 == ldr >> 16 && destination & ldr & 0xffff != 0
            }
            Mode::X2Apic => destination == self.apic_id(),
        }
    }

    fn is_in_xapic_set(&self, destination: u32) -> bool {
        let logical_id = self.page.get(Register::LogicalDestination) >> 24;
        let is_any_named = destination & logical_id & 0x0f != 0;
        match self.page.get(Register::DestinationFormat) >> 28 {
            0xf => destination <= 0xff && destination & logical_id != 0,
            0x0 => destination >> 4 == logical_id >> 4 && is_any_named,
            _ => false,
        }
    }
}
