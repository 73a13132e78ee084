//! What the driver processes of virtio devices share (Virtual I/O Device Version 1.2; numbers in parentheses are its sections):
//! setting a device up, its registers on PCI, and split queues.
//!
//! A device is not trusted to give back what it was given: a queue's user checks each index that it takes out. Where no IOMMU
//! confines the device, it reaches all memory, and the process that tells it where to write is trusted with that.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "fake")]
extern crate alloc;

pub mod device;
#[cfg(feature = "fake")]
pub mod fake;
pub mod pci;
pub mod queue;

pub use device::{Registers, SetupError};
pub use pci::Pci;
pub use queue::{Broken, DmaWindow, Queue};
