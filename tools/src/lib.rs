//! The command line of Nacre, as a library so that its parts can be tested.
//!
//! - [`cli`]: what the user may say; everything else is called from there.
//! - [`workspace`], [`setup`], [`compile`]: where things are, what the machine needs, building the freestanding programs.
//! - [`request`]: what the options of `run` and `image` mean.
//! - [`guest`]: kernels and initial file systems for guests.
//! - [`image`]: the boot modules, the manifest and the bootable image.
//! - [`run`]: starting an emulator and being the host's end of its serial line.
//! - [`mod@bench`]: what the kernel's operations cost, beside the peers.
//! - [`doctor`] and [`mod@test`]: what this machine can do, and whether Nacre does it.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cli;
pub mod compile;
pub mod doctor;
pub mod failure;
pub mod guest;
pub mod image;
pub mod progress;
pub mod replay;
pub mod request;
pub mod run;
pub mod setup;
pub mod test;
pub mod trace;
pub mod workspace;
