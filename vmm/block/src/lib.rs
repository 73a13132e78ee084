//! The channel between the user of a disk and the driver process that serves it (`vmm_protocol::block`): the user's end is
//! the [`Client`], a backend of `vdev`'s block device, the driver's the [`Server`]. A [`Watch`] sees whether the driver gets anywhere.
//!
//! Neither end trusts the other. What a broken peer can cause is that the disk does not work: I/O errors for the client's
//! guest, or requests that never end; an idle driver.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod client;
mod complaints;
mod copy;
mod server;
#[cfg(test)]
mod tests;
mod watch;

pub use client::{Client, HEAP_BYTES};
pub use complaints::Complaints;
pub use server::{Server, Wait};
pub use usys::signal::Signal;
pub use watch::Watch;

use core::sync::atomic::Ordering;
use usys::Window;
use usys::window::OutOfWindow;
use vmm_protocol::block::CHANNEL_BYTES;

/// How long a driver lets its disk empty its cache, in ms: one may have to spin up, and may need more than 30 s (ATA/ATAPI-6, 8.12).
pub const FLUSH_PATIENCE_MS: u64 = 60_000;

/// The words of a channel. An offset that is outside reads as 0; there is none, as [`Words::new`] checks the length.
#[derive(Clone, Copy, Debug)]
struct Words(Window);

impl Words {
    fn new(window: Window) -> Result<Self, OutOfWindow> {
        if window.len() < CHANNEL_BYTES { Err(OutOfWindow) } else { Ok(Words(window)) }
    }

    fn load(&self, offset: usize) -> u32 {
        self.0.atomic_u32(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Ok(word) = self.0.atomic_u32(offset) {
            word.store(value, Ordering::Release);
        }
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.0.atomic_u64(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store_u64(&self, offset: usize, value: u64) {
        if let Ok(word) = self.0.atomic_u64(offset) {
            word.store(value, Ordering::Release);
        }
    }
}
