//! What I/O APIC, MSI writers and local APICs say to each other.

/// Physical or logical destination that means every local APIC.
///
/// A sender with 8-bit destinations (xAPIC, I/O APIC, MSI) spells it 0xff; its model translates.
pub const BROADCAST: u32 = u32::MAX;

/// First vector that an interrupt may have: 0 to 15 are illegal in a message (SDM 3A 10.5.2).
pub const FIRST_LEGAL_VECTOR: u8 = 16;

/// How the addressed local APIC treats a message (SDM 3A 10.6.1 and 10.11.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    /// The vector, on every addressed CPU.
    Fixed,
    /// The vector, on the one addressed CPU with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// Reset to the wait-for-SIPI state.
    Init,
    /// Start at `vector << 12`; only between local APICs.
    Startup,
    /// The vector comes from an 8259; only from an I/O APIC or a LINT pin.
    ExtInt,
}

impl DeliveryMode {
    /// Decodes the three-bit field; `None` for the reserved encoding.
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// The message carries a vector that ends in an IRR.
    pub fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// An interrupt on its way from an I/O APIC pin or an MSI write to local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Interrupt vector.
    pub vector: u8,
    /// APIC ID or logical destination; [`BROADCAST`] for all.
    pub destination: u32,
    /// `destination` is logical.
    pub logical: bool,
    /// What it does.
    pub mode: DeliveryMode,
    /// Level-triggered: its EOI must reach the I/O APIC.
    pub level: bool,
}

/// Widens an 8-bit destination field.
pub(crate) fn destination_from_8_bits(field: u8) -> u32 {
    if field == 0xff { BROADCAST } else { u32::from(field) }
}
