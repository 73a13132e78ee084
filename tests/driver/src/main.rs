//! The executable of a disk driver in tests of what is behind one.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
usys::program!(test_driver::main);

#[cfg(not(target_os = "none"))]
fn main() {}
