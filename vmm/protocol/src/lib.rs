//! What the host tool, the root task and the VMM processes say to each other.
//!
//! - [`manifest`]: which VMs to start and from what; TOML on the host, postcard in the boot image.
//! - [`block`]: the channel between a VMM and the driver of its disk.
//! - [`link`]: frames on the serial line between the console server and `cargo nacre`.
//! - [`net`]: the channel between a network card and its switch, which is part of the guest contract.
//! - [`vsock`]: the same between a socket device and its switch.
//! - [`outcome`]: how a VM ended.
//! - [`trace`]: how the root task prints what was recorded.
//! - [`process`]: what the root task and the processes it starts say to each other.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod balloon;
pub mod block;
pub mod link;
pub mod manifest;
pub mod outcome;
pub mod process;
pub mod trace;
pub mod vsock;

pub use hypercall_abi::guest::channel as net;
