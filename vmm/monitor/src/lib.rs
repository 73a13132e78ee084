//! The VMM process: one for each VM, with that VM's memory, vCPU and devices, and nothing of another's.
//!
//! What a virtual machine is, is in `vmm-core`. Here is what needs the kernel: memory ([`guest_ram`]), the vCPU
//! ([`guest_cpu`]), what is behind its devices ([`devices`]), registers that the guest reads by itself ([`registers`]), the console server ([`console`]), the root task ([`report`]), counting exits ([`statistics`]), and the loop that connects them ([`vm`]).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod console;
pub mod devices;
pub mod eoi_word;
pub mod guest_cpu;
pub mod guest_ram;
pub mod images;
pub mod output;
pub mod pieces;
pub mod registers;
pub mod report;
pub mod statistics;
pub mod vm;

use crate::console::Channel;
use crate::vm::{Unwatched, Vm, Watch};
use usys::process::ProcessInfo;
use vmm_protocol::outcome::Outcome;
use vmm_protocol::process::MonitorConfig;

/// Runs the VM until it ends.
pub fn main(info: &'static ProcessInfo) -> ! {
    main_with(info, Unwatched)
}

/// The same with somebody who watches.
pub fn main_with(info: &'static ProcessInfo, watch: impl Watch) -> ! {
    let outcome = run(info, watch).unwrap_or_else(Outcome::not_started);
    report::end(info, &outcome)
}

/// What the root task says about the VM.
pub fn config(info: &'static ProcessInfo) -> Result<MonitorConfig, &'static str> {
    postcard::from_bytes(info.config()).map_err(|_| "the VMM's configuration is damaged")
}

fn run(info: &'static ProcessInfo, watch: impl Watch) -> Result<Outcome, &'static str> {
    let config = config(info)?;
    let channel = Channel::new(info, config.index)?;
    Ok(Vm::new(info, config, channel, watch)?.run())
}
