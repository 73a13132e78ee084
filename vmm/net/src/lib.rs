//! The channel between a network card and its switch (`vmm_protocol::net`): an [`End`] for either, and for a VMM the links of
//! `vdev` over it: frames of a card, long ones too, and packets of sockets ([`Sockets`]), of which none is lost.
//!
//! Neither end trusts the other. What a broken peer can cause is that frames are lost, or are not what was sent: what a wire
//! may do.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

mod end;
mod link;
mod long;
#[cfg(test)]
mod long_tests;
mod sockets;
#[cfg(test)]
mod tests;

pub use end::{End, Frame};
pub use long::LongFrame;
pub use sockets::Sockets;
pub use usys::signal::Signal;
