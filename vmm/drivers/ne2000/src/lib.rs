//! The driver process for one NE2000 network card on PCI (RTL8029AS and its like), by programmed I/O.
//!
//! It has the card's ports, its interrupt, and a channel of frames to a switch; nothing else. The card moves no data by
//! itself, so that no DMA has to be trusted ("remote DMA" is the card's name for its data port). What a card does is in
//! [`card`], as a state machine that is tested against a card of its own; [`process`] waits for interrupts and for frames.
//!
//! References are to National Semiconductor's data sheet of the DP8390D/NS32490D, whose registers the card has, and for
//! the ports around them to Realtek's of the RTL8029AS.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod card;
#[cfg(test)]
mod fake;
pub mod process;
pub mod registers;
#[cfg(test)]
mod tests;

pub use process::main;
