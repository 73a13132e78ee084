//! The test switch's executable.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
usys::program!(test_switch::main);

#[cfg(not(target_os = "none"))]
fn main() {}
