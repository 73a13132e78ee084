//! The first process: it takes the machine from the kernel, starts what the manifest says, and reports what ends.
//!
//! 1. It hands out each page once ([`frames`]), and takes everything of a process back when the process ends
//!    ([`process`]).
//! 2. A VMM gets its VM's memory, its modules, its notification and two rings to the console server; nothing of another VM
//!    ([`vm`]).
//! 3. The driver process of a disk gets that disk's device, and a channel to the VM that has it ([`disk`]).
//! 4. The switch of a network gets a channel to each VM that has a card on it, and to the driver process of its uplink ([`network`],
//!    [`uplink`]).
//! 5. What a process says (its report, its rings) is input from a stranger; that it crashed, the kernel says.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod console;
pub mod disk;
pub mod dma;
pub mod error;
pub mod frames;
pub mod loader;
pub mod memory;
pub mod network;
pub mod pci;
pub mod pressure;
pub mod process;
pub mod supervisor;
pub mod system;
pub mod trace;
pub mod uplink;
pub mod virtio;
pub mod vm;
pub mod vm_memory;
pub mod wall_clock;

use crate::error::StartError;
use crate::supervisor::Supervisor;
use crate::system::System;
use usys::abi::boot_info::BootInfo;
use usys::power::{self, Ending};

/// Runs the system until every VM has ended. `info` is the kernel's, or why this process could not even begin.
pub fn main(info: Result<&'static BootInfo, &'static str>) -> ! {
    usys::logger::to_kernel();
    match info.map(start) {
        Ok(Ok(supervisor)) => log::error!("{}", supervisor.run()),
        Ok(Err(error)) => log::error!("{error}"),
        Err(what) => log::error!("{what}"),
    }
    power::off(Ending::Failed)
}

fn start(info: &'static BootInfo) -> Result<Supervisor, StartError> {
    let mut system = System::new(info)?;
    let manifest = system.manifest()?;
    Supervisor::start(system, manifest)
}
