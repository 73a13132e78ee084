//! How a guest finds its hypervisor and calls it.
//!
//! 1. [`detect`] is pure: it reads CPUID through a function, so that it is tested on any machine.
//! 2. [`call`] has the only unsafe code: one instruction.
//!
//! Nacre shows guests the signature and the interface that Linux knows as KVM's, and offers no interface of its own
//! yet; so this crate drives no device.
#![no_std]

pub mod call;
pub mod detect;
