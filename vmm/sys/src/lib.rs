//! The user-space runtime: everything a Nacre process needs below its own logic.
//!
//! 1. The only crate of user space with `unsafe` code and assembly. What it offers is safe to call, so that the
//!    services above it can forbid `unsafe`.
//! 2. A process has what its parent gave it: the capabilities at fixed selectors ([`process::selector`]) and the page
//!    that says the rest ([`process::ProcessInfo`]).
//! 3. Memory shared with another process, or with a guest, is never borrowed: it is copied in and out through
//!    [`window::Window`], and what was read is input from a stranger.
#![no_std]

extern crate alloc;

pub mod cap;
pub mod cpu;
pub mod error;
#[cfg(target_os = "none")]
pub mod heap;
pub mod hypercall;
pub mod layout;
pub mod lock;
pub mod logger;
pub mod memory;
pub mod object;
pub mod port;
pub mod portal;
pub mod power;
pub mod process;
pub mod range;
pub mod ring;
pub mod selector;
mod shared;
pub mod signal;
pub mod start;
pub mod thread;
pub mod trace;
pub mod vcpu;
pub mod window;

pub use cap::{Cap, Narrow};
pub use error::{Error, Result};
pub use hypercall_abi as abi;
pub use window::Window;
