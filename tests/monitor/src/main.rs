//! The VMM's executable in tests of the VMM itself.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
usys::program!(test_monitor::main);

#[cfg(not(target_os = "none"))]
fn main() {}
