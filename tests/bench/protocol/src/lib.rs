//! What the benchmark says on the machine, and the tool reads on the host.
//!
//! One line for each operation, in plain text: it has to pass the kernel's log, a serial line, and people's eyes.
#![no_std]
#![forbid(unsafe_code)]

pub mod line;
pub mod samples;

pub use line::Line;
pub use samples::{Samples, Summary};

/// Samples that are dropped before any is counted.
pub const WARM_UP: usize = 32;
/// Samples that count.
pub const SAMPLES: usize = 256;
/// The boot module with the words that say what to measure; empty for everything.
pub const REQUEST_MODULE: &str = "bench-request";
/// Word of the request that a number of VMs follows.
pub const VMS: &str = "vms=";
/// Word of the request, and boot module of the conformance task, that asks for the longest stretches with interrupts off in place of
/// results.
pub const STRETCHES: &str = "stretches";
/// The boot module with a guest whose first instruction ends its VM.
pub const FIRST_MODULE: &str = "bench-first";
/// The boot module with the guest that measures.
pub const GUEST_MODULE: &str = "bench-guest";
/// The boot module that is the disk of that guest: [`DISK_BYTES`] of zero.
pub const DISK_MODULE: &str = "bench-disk";
/// Bytes of the disk.
pub const DISK_BYTES: usize = 256 << 10;
/// Not an operation, but what `mem.kernel_bytes` is computed from: bytes of RAM that user space has.
pub const USER_BYTES: &str = "mem.user_bytes";
