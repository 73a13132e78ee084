//! The channel between a network card and its switch (`vmm_protocol::net`): an [`End`] for either, and for a VMM a `vdev` link
//! over it.
//!
//! Neither end trusts the other. What a broken peer can cause is that frames are lost, or are not what was sent: what a wire
//! may do.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod end;
mod link;
#[cfg(test)]
mod tests;

pub use end::{End, Frame};
pub use usys::signal::Signal;
