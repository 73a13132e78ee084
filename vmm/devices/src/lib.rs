//! Device models of the PC as state machines over registers.
//!
//! A model turns register accesses into state, and state into what the board must do about it: an interrupt
//! line's level, an interrupt message, bytes for a sink, a request to end the VM. It does no I/O, keeps no
//! clock and starts no thread; whoever owns it passes the time in. Everything here accepts whatever a guest
//! writes.
//!
//! Two conventions hold for the whole package:
//! - Time is a `u64` of guest TSC ticks. It does not run backwards; if it did, a timer would be late.
//! - An interrupt line is a level that the board samples after an access; `true` means asserted.
//!
//! | Module | Device |
//! |---|---|
//! | [`guest_mem`], [`segment`] | guest memory, copied in and out |
//! | [`bus`] | which device answers at a port or an address |
//! | [`interrupt`] | what travels between I/O APIC and local APICs |
//! | [`lapic`] | local APIC: xAPIC, x2APIC, timer |
//! | [`ioapic`] | I/O APIC with 24 pins |
//! | [`uart16550`] | 16550A serial port |
//! | [`rtc`] | MC146818 clock and CMOS memory |
//! | [`i8042`] | keyboard controller, as far as it resets the machine |
//! | [`acpi_pm`] | sleep, reset and timer registers of hardware-reduced ACPI, and port CF9 |
//! | [`debug`] | POST code, debug consoles, exit device |
//! | [`pvclock`] | the clock and steal-time areas of KVM's interface |
//! | [`pvring`] | paravirtual devices with queues in guest memory |
//!
//! Devices that guests reach through rings have a core for every front end:
//!
//! | Module | Core |
//! |---|---|
//! | [`balloon`] | memory that the guest does without |
//! | [`block`] | disk: requests, their checks, and where the sectors are |
//! | [`console`] | bytes in and out |
//! | [`entropy`] | random bytes |
//! | [`net`] | network card: frames to a link and from it |
//! | [`vsock`] | sockets between VMs and to their VMM |
//! | [`virtio`] | the front ends for virtio's drivers |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi_pm;
pub mod balloon;
pub mod block;
pub mod bus;
pub mod console;
pub mod debug;
pub mod entropy;
pub mod guest_mem;
pub mod i8042;
pub mod interrupt;
pub mod ioapic;
pub mod lapic;
pub mod net;
pub mod pvclock;
pub mod pvring;
pub mod rtc;
pub mod segment;
pub mod tso;
pub mod uart16550;
pub mod virtio;
pub mod vsock;

mod request;
mod tick;

pub use request::Request;
