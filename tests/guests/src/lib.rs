//! Tiny test guests: one module, and one binary of the same name, for each aspect of a virtual machine.
//!
//! `tproto::CASES` says how each is run and how it has to end.
#![no_std]

mod card;
pub mod cpuid_msr;
pub mod debug_regs;
pub mod echo;
pub mod exit_code;
pub mod fetch;
pub mod fpu;
#[cfg(target_os = "none")]
mod heap;
pub mod hello;
pub mod interrupts;
pub mod memory;
pub mod mmio;
pub mod modes;
pub mod poison;
pub mod ports;
pub mod poweroff;
pub mod pv;
pub mod pv_balloon;
pub mod pv_hostile;
pub mod pv_net;
pub mod reset;
mod sockets;
pub mod spin;
pub mod steal;
pub mod stuck;
pub mod syscalls;
pub mod timer;
pub mod triple_fault;
pub mod virtio;
pub mod witness;
