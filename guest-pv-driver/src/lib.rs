//! Drivers for the paravirtual devices of a Nacre VM.
//!
//! 1. A kernel that embeds them implements [`Hal`]: memory and notification. Nothing here allocates, spawns, or registers
//!    interrupt handlers; memory that a device shares is given by the caller, for ever.
//! 2. [`detect`] and [`Machine`] find the devices by CPUID; a driver takes the guest-physical address of its device's page.
//! 3. The contract is SPEC.md 11 of `hypercall-abi`, re-exported as [`abi`].
//! 4. A device that misbehaves makes a driver fail, and is reset; it can spoil the content of buffers that it was given, and
//!    nothing else.
//!
//! | Driver | Device |
//! |---|---|
//! | [`Console`] | terminal (`embedded-io`: `Read`, `Write`) |
//! | [`Block`] | disk ([`BlockDevice`]) |
//! | [`Net`] | Ethernet (`smoltcp`: `phy::Device`) |
//! | [`DirectNet`] | the same (`smoltcp`, too), without the VMM between guest and switch |
//! | [`Ethernet`] | the second where device and kernel have it, else the first (`smoltcp`, too) |
//! | [`Entropy`] | random numbers (`rand_core`: `TryCryptoRng`) |
//! | [`Balloon`] | memory that the guest does without |
//! | [`Clock`] | time |
//! | [`Control`] | power off, reset, exit code, log |
#![no_std]

pub mod call;
pub mod detect;
#[cfg(feature = "fake")]
pub mod fake;

mod balloon;
mod block;
mod clock;
mod console;
mod control;
mod device;
mod direct;
mod entropy;
mod error;
mod ethernet;
mod hal;
mod inbox;
mod machine;
mod net;
mod queue;
mod transfer;

pub use balloon::Balloon;
pub use block::{Block, BlockDevice, SECTOR_BYTES};
pub use clock::Clock;
pub use console::{Console, ConsoleMemory};
pub use control::Control;
pub use device::Device;
pub use direct::DirectNet;
#[cfg(feature = "smoltcp")]
pub use direct::{DirectRxToken, DirectTxToken};
pub use entropy::Entropy;
pub use error::{Error, Result};
pub use ethernet::Ethernet;
#[cfg(feature = "smoltcp")]
pub use ethernet::{EthernetRxToken, EthernetTxToken};
pub use hal::{Hal, OneToOne};
pub use hypercall_abi::guest as abi;
pub use machine::Machine;
pub use net::{Net, NetMemory};
#[cfg(feature = "smoltcp")]
pub use net::{RxToken, TxToken};
pub use queue::{Queue, QueueMemory};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
