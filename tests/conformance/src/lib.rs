//! The conformance task: it runs in place of the root task and holds the kernel to SPEC.md.
//!
//! 1. A test is a function whose name is the sentence that it shows. It fails by returning what it saw.
//! 2. What a test makes is paid from a pool of its own (`world::World`), which is ended after it; then every frame must be
//!    back.
//! 3. The first thread only watches (`run`): a test that hangs is a failure, not a machine that stands still.
//!
//! Hypercalls are made raw (`call`): the point is to make those that the runtime's types rule out. What keeps that sound is
//! that tests map memory, start threads and revoke only in places that are set aside for them (`layout`).
#![no_std]
#![cfg(target_os = "none")]

extern crate alloc;

pub mod call;
pub mod check;
pub mod child;
pub mod edu;
pub mod emulator;
pub mod guest;
pub mod layout;
pub mod prelude;
pub mod run;
pub mod stretches;
pub mod tests;
pub mod threads;
pub mod world;

use usys::abi::boot_info::BootInfo;
use usys::power::{self, Ending};

/// Runs every test and ends the machine.
pub fn main(info: Result<&'static BootInfo, &'static str>) -> ! {
    match info {
        Ok(info) => run::run(info),
        Err(what) => {
            run::say(format_args!("FAIL: the conformance task begins: {what}"));
            power::off(Ending::Failed)
        }
    }
}
