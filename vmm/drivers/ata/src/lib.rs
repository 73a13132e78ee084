//! The driver process for one ATA disk, by programmed I/O.
//!
//! It has the ports of one channel, that channel's interrupt, and a channel of requests to one VMM; nothing else. The disk
//! moves no data by itself, so that no DMA has to be trusted. What a drive does is in [`drive`], as a state machine that is
//! tested against a drive of its own; [`process`] waits for interrupts and for requests.
//!
//! References are to ATA/ATAPI-6 (T13/1410D), whose registers, commands and protocols later versions kept.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod drive;
#[cfg(test)]
mod fake;
pub mod identity;
pub mod process;
pub mod registers;
#[cfg(test)]
mod tests;

pub use process::main;
