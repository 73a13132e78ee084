//! The driver process for one virtio block device on PCI (Virtual I/O Device Version 1.2; numbers in parentheses are its
//! sections).
//!
//! It has the device's registers, its message interrupt, and memory whose physical address it knows: its queue's, and the
//! channel to one VMM, whose data the device reads and writes itself. The device reaches all memory where no IOMMU confines it, so
//! this process, which tells it where to write, is trusted there with all of it. What it says to the device is in [`device`], and is tested
//! against the device side of `vdev`; [`process`] waits for interrupts and for requests.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod device;
pub mod process;
#[cfg(test)]
mod tests;

pub use process::main;
