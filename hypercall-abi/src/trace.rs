//! Records of what a CPU does (SPEC.md 4.10).

use crate::numbers::numbers;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 16;

/// One event. A ring holds them in order of time; the oldest one follows the newest.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, TSC; 0 if the record was never written.
    pub tsc: u64,
    /// [`Kind`] in bits 0 to 7, its detail from bit 8 on.
    pub event: u32,
    /// Number of the execution context that it is about ([`crate::Hypercall::EcInfo`]), 0 for none.
    pub ec: u32,
}

/// Shift of the second part of a detail: the selector of [`Kind::Hypercall`], the result of [`Kind::Return`].
pub const SECOND_SHIFT: u32 = 16;

numbers! {
    /// What happened.
    Kind: u8 {
        /// User code made a hypercall: bits 8 to 15 its number, 16 to 31 the selector.
        Hypercall = 1,
        /// User code goes on: bits 8 to 15 the status of its hypercall, 16 to 31 result 0; 0 if it did not enter by one.
        Return = 2,
        /// The kernel enters a guest again in place of its VMM: bits 8 to 15 the exit kind that the kernel answered, or 0.
        Enter = 3,
        /// An interrupt: bits 8 to 15 the vector.
        Interrupt = 4,
        /// User code stopped on an exception: bits 8 to 15 the vector.
        Fault = 5,
        /// The context's wait is over.
        Wake = 6,
        /// The CPU has nothing to do.
        Idle = 7,
        /// In the middle of a long operation the kernel let interrupts in, and goes on with it.
        Window = 8,
    }
}

impl Record {
    /// A record from its bytes.
    pub fn from_bytes(bytes: [u8; RECORD_BYTES]) -> Self {
        let [word, rest] = [0, 8].map(|at| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(half)
        });
        Record { tsc: word, event: rest as u32, ec: (rest >> 32) as u32 }
    }

    /// What happened, if this version of the contract knows it.
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.event as u8)
    }

    /// The first part of the detail: a number, a status or a vector.
    pub const fn first(&self) -> u8 {
        (self.event >> 8) as u8
    }

    /// The second part of the detail: a selector or a result.
    pub const fn second(&self) -> u16 {
        (self.event >> SECOND_SHIFT) as u16
    }
}
