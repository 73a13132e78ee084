//! What guests see: doorbell calls of the kernel (SPEC.md 10) and the VMM's paravirtual devices (SPEC.md 11).
//!
//! A doorbell call is VMCALL or VMMCALL, whichever the CPU has, of three bytes without prefixes, at privilege level 0, with
//! one of these numbers in RAX. It changes no register.

pub mod channel;
pub mod cpuid;
pub mod device;
pub mod op;
pub mod ring;

/// RAX of doorbell call 0; call *n* is `DOORBELL_CALL + n`.
pub const DOORBELL_CALL: u64 = 0x4e43_0000;

/// Doorbell calls that there are.
pub const DOORBELL_CALLS: u64 = 0x1_0000;

/// Bytes of the instruction.
pub const DOORBELL_CALL_LENGTH: u32 = 3;
