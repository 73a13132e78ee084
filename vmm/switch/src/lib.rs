//! The switch of one network: moves frames between the cards of VMs and, if there is one, the uplink; and packets between their
//! socket devices.
//!
//! It has a channel to each of them (`vmm_protocol::net`) and nothing else. How frames go is in [`forward`], how packets of sockets go
//! in [`relay`], and both are tested on the host; [`process`] waits for signals.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod forward;
#[cfg(test)]
mod long_tests;
pub mod process;
pub mod relay;
pub mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vsock_tests;

pub use process::main;
