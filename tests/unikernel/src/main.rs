//! The kernel: one CPU, one loop, and nothing between the server and the drivers of guest-pv-driver.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod kernel;

#[cfg(target_os = "none")]
trt::guest!(kernel::run);

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: see README.md");
}
