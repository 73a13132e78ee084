//! The executable of a disk driver whose disk loses its power.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
usys::program!(test_power::main);

#[cfg(not(target_os = "none"))]
fn main() {}
