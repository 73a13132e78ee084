//! The NE2000 driver's executable.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
usys::program!(drv_ne2000::main);

#[cfg(not(target_os = "none"))]
fn main() {}
