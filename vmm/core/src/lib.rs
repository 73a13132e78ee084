//! The logic of a virtual machine, without system calls: everything here runs, and is tested, on any host.
//!
//! A monitor gives a [`machine::Machine`] guest memory, a vCPU ([`vcpu::Vcpu`]) and boot images ([`image`]), and then runs
//! the vCPU in a loop. The way of an exit through this crate goes one way:
//!
//! [`machine`] takes it from the vCPU page -> `exits` decides what it means, with [`emulate`] for instructions that
//! the hardware leaves to us -> `board` brings it to a device and interrupts to the local APIC -> [`machine`] puts the next
//! event into the page.
//!
//! | Module | Subject |
//! |---|---|
//! | [`layout`] | guest-physical map |
//! | [`loader`] | bzImage, PVH, Multiboot: kernel, modules, entry state |
//! | [`acpi`] | ACPI tables |
//! | [`cpu_model`], [`cpuid`], [`msr`] | the CPU that the guest sees |
//! | [`virtio`], [`pv`] | where virtio and paravirtual devices are |
//! | [`gdb`] | a debugger on the guest |
//! | [`facts`] | what the host has |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
mod board;
pub mod cpu_model;
pub mod cpuid;
pub mod emulate;
mod exits;
pub mod facts;
pub mod fault;
pub mod gdb;
pub mod image;
mod interrupt_path;
pub mod layout;
pub mod loader;
pub mod log;
pub mod machine;
pub mod msr;
pub mod pv;
mod steal;
pub mod vcpu;
pub mod virtio;
