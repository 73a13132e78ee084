//! The contract between the Nacre kernel, its user space and its guests.
//!
//! 1. Nothing here does anything: numbers, layouts, and their encoding. `SPEC.md` beside this crate is the
//!    normative text; its section numbers are cited in the code.
//! 2. Every layout is `repr(C)` with fixed-width fields, and pinned by `tests/layout.rs`.
//! 3. Values from the other side are never trusted: every decoder returns an `Option` or a `Result`.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot_info;
pub mod cap;
pub mod doorbell;
pub mod exit;
pub mod guest;
pub mod number;
mod numbers;
pub mod regs;
pub mod status;
pub mod trace;
pub mod utcb;
pub mod vcpu;

pub use cap::{ObjectType, Rights, Selector};
pub use number::Hypercall;
pub use status::Status;

/// Version of this contract: a change of `major` breaks callers, `minor` adds (SPEC.md 1).
pub const ABI_VERSION: AbiVersion = AbiVersion { major: 0, minor: 1 };

/// A version of the contract, as found in [`boot_info::BootInfo`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbiVersion {
    /// Changes when callers break.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
}

/// Bytes in a page and in a frame.
pub const PAGE_SIZE: u64 = 4096;

/// First user virtual address that is never mapped: user space is `[PAGE_SIZE, USER_END)` (SPEC.md 5.1).
pub const USER_END: u64 = 0x0000_7fff_ffff_f000;
