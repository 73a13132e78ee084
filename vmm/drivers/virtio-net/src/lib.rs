//! The driver process for one virtio network device on PCI (Virtual I/O Device Version 1.2; numbers in parentheses are its
//! sections).
//!
//! It has the device's registers, its message interrupt, memory of its own whose physical address it knows, and a channel of
//! frames to a switch. Frames are copied between the channel and its own memory, so that the device is never told another
//! address. The device reaches all memory where no IOMMU confines it, so this process is trusted there with all of it. What it
//! says to the device is in [`device`], and is tested against the device side of `vdev`; [`process`] waits for interrupts and
//! for frames.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod device;
pub mod process;
#[cfg(test)]
mod tests;

pub use process::main;
