//! The pure logic of the Nacre kernel.
//!
//! 1. No `unsafe`, no privileged instruction, no global state: memory, clocks and flushes come in through traits.
//! 2. Everything here is tested on the host; what needs a machine lives in `khw` and is tested in an emulator.
//! 3. Parsers and decoders take bytes and numbers from below, and never panic on them.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod boot;
pub mod cap;
pub mod flush_checker;
pub mod iommu;
pub mod mitigation;
pub mod paging;
pub mod sched;
pub mod sync;
pub mod virt;
