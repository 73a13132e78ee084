//! The VMM as it is, with a [`Watch`] that sees every return from the guest. A word of the guest's command line says what it
//! is for:
//!
//! - `vmm=crash-once`: the VMM crashes at an exit, unless it is the VM's second one.
//! - `vmm=crash-always`: it crashes every time.
//! - `vmm=witness`: it looks for the pattern of the guest `poison` in what the kernel gives back with each exit, and in the end
//!   in its memory.
//!
//! [`Watch`]: monitor::vm::Watch
#![no_std]

mod crash;
mod registers;
mod witness;

use usys::process::ProcessInfo;
use vmm_protocol::process::MonitorConfig;

/// Runs the VM as its guest's command line says.
pub fn main(info: &'static ProcessInfo) -> ! {
    let Ok(config) = monitor::config(info) else { monitor::main(info) };
    match purpose(&config) {
        Some("crash-once") if crash::is_first_life(info) => monitor::main_with(info, crash::Crash::new()),
        Some("crash-always") => monitor::main_with(info, crash::Crash::new()),
        Some("witness") => monitor::main_with(info, witness::Witness::new(info)),
        _ => monitor::main(info),
    }
}

fn purpose(config: &MonitorConfig) -> Option<&str> {
    let mut words = config.vm.cmdline.split_whitespace();
    words.find_map(|word| word.strip_prefix("vmm="))
}
