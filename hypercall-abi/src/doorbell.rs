//! What rings a doorbell: argument 2 of `Bind` for the doorbell roles (SPEC.md 4.6).

use crate::cap::BindRole;

/// An act of a guest that a doorbell is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// A doorbell call ([`crate::guest`]), by its index.
    Call(u16),
    /// An OUT.
    Port {
        /// The port.
        port: u16,
        /// Bytes that are written: 1, 2 or 4.
        size: u8,
        /// The value that is written; `None` for any.
        data: Option<u32>,
    },
    /// A write anywhere in the guest-physical page with this number.
    Page(u64),
}

/// One past the largest number of a guest-physical page.
pub const PAGE_END: u64 = 1 << 36;

/// Bit of the encoding of [`Doorbell::Port`]: the value counts.
const MATCHES_DATA: u64 = 1 << 24;

impl Doorbell {
    /// The role.
    pub const fn role(self) -> BindRole {
        match self {
            Doorbell::Call(_) => BindRole::DoorbellCall,
            Doorbell::Port { .. } => BindRole::DoorbellPort,
            Doorbell::Page(_) => BindRole::DoorbellPage,
        }
    }

    /// Packs into the argument.
    pub const fn encode(self) -> u64 {
        match self {
            Doorbell::Call(index) => index as u64,
            Doorbell::Port { port, size, data } => {
                let matched = match data {
                    Some(value) => MATCHES_DATA | (value as u64) << 32,
                    None => 0,
                };
                port as u64 | (size as u64) << 16 | matched
            }
            Doorbell::Page(number) => number,
        }
    }

    /// Unpacks the argument; `None` if it is out of range, or the role is not a doorbell's.
    pub fn decode(role: BindRole, raw: u64) -> Option<Self> {
        match role {
            BindRole::DoorbellCall => u16::try_from(raw).ok().map(Doorbell::Call),
            BindRole::DoorbellPort => {
                let (port, size) = (raw as u16, (raw >> 16) as u8);
                let data = (raw & MATCHES_DATA != 0).then_some((raw >> 32) as u32);
                let trigger = Doorbell::Port { port, size, data };
                let fits = matches!(size, 1 | 2 | 4) && raw >> 32 >> (8 * size as u32) == 0;
                (fits && trigger.encode() == raw).then_some(trigger)
            }
            BindRole::DoorbellPage => (raw < PAGE_END).then_some(Doorbell::Page(raw)),
            _ => None,
        }
    }
}
