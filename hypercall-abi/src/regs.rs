//! The register assignment of hypercalls: the only file that knows it (SPEC.md 3).
//!
//! In: RAX = [`Head`], arguments 0 to 5 in RDI, RSI, RDX, R8, R9, R10.
//! Out: RAX = [`crate::Status`], results 0 to 2 in RDI, RSI, RDX.
//! `SYSCALL` destroys RCX and R11. RBX, RBP, RSP and R12 to R15 are preserved, but for `Call` and `Reply`.
//!
//! `Call` and `Reply` carry eight message words both ways: RDI, RSI, RDX, R8, R9, R10, R12, R13.
//! A portal handler starts at the portal's instruction pointer with the portal's id in RAX, the words in those
//! registers, and RSP as given when its execution context was created.

use crate::{Hypercall, Selector};

/// Message words of a call or reply that travel in registers.
pub const MESSAGE_WORDS: usize = 8;

/// Bytes of a log message in one `LogWrite`: arguments 1 to 5.
pub const LOG_BYTES: usize = 40;

/// RAX of a hypercall: bits 0-7 the number, 32-63 the selector of the capability that the call is about (for
/// the `Create…` calls the destination selector). Bits 8-31 are zero.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub u64);

impl Head {
    /// Packs a number and a selector.
    #[inline]
    pub const fn new(call: Hypercall, selector: Selector) -> Self {
        Head(call as u64 | (selector.0 as u64) << 32)
    }

    /// The hypercall, if the number is one and bits 8-31 are zero.
    #[inline]
    pub const fn call(self) -> Option<Hypercall> {
        if self.0 & 0xffff_ff00 != 0 {
            return None;
        }
        Hypercall::from_raw(self.0 as u8)
    }

    /// The selector.
    #[inline]
    pub const fn selector(self) -> Selector {
        Selector((self.0 >> 32) as u32)
    }
}

/// Argument 2 of `CreateEc`: the CPU in bits 0-15, bit 16 set for a portal handler (it has no scheduling
/// context of its own and starts when called).
#[inline]
pub const fn pack_ec_place(cpu: u16, is_handler: bool) -> u64 {
    cpu as u64 | (is_handler as u64) << 16
}

/// Splits what [`pack_ec_place`] packed; `None` if reserved bits are set.
#[inline]
pub const fn unpack_ec_place(raw: u64) -> Option<(u16, bool)> {
    if raw >> 17 != 0 { None } else { Some((raw as u16, raw >> 16 & 1 != 0)) }
}
