//! The device's side of the guest contract (`hypercall-abi`, SPEC.md 11): paravirtual devices with queues in guest memory.
//!
//! [`Device`] is a page of registers and the queues behind it; what it does is a [`Core`], the same that virtio devices have.
//! A driver that breaks the contract stops its device with one [`Fault`](hypercall_abi::guest::device::Fault) until it resets
//! it; nothing that it writes, and no moment at which it writes it, does more.

mod balloon;
mod block;
mod device;
mod net;
mod queue;
mod stream;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use device::{Board, Core, Device, QUEUE_SIZE_MAX};
pub use net::Net;
pub use queue::{End, Queue, Turn};
pub use stream::Control;
