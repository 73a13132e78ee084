//! Every privileged instruction and raw pointer of the Nacre kernel.
//!
//! 1. This crate depends on `kcore` only; the kernel's objects and policy are above it.
//! 2. A function is `unsafe` when a wrong argument can break memory safety; its `# Safety` says what to check.
//! 3. Nothing here decides: it does what it is told, and reports what the hardware said.
#![no_std]

pub mod console;
pub mod cpu;
pub mod desc;
pub mod entry;
pub mod flush_checker;
pub mod iommu;
pub mod irq;
pub mod mem;
pub mod percpu;
pub mod smp;
pub mod sync;
pub mod virt;

/// The entry checker and the flush checker are on: in test and debug builds.
pub const CHECKERS: bool = cfg!(any(feature = "checkers", debug_assertions));
