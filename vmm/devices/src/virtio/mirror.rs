//! Registers that a guest reads by itself: memory that it cannot write, where each register has what a read of it gives.
//!
//! A read of a register of this transport changes nothing (4.2.2), so only writes have to reach the device. A driver reads one at each
//! interrupt, and many while it looks for devices.

use alloc::rc::Rc;
use core::fmt;

/// Where the registers of a VM's devices are, a page behind the other.
pub trait Mirror: fmt::Debug {
    /// Stores the value at byte `at`, a multiple of 4, of the page of `device`: the guest finds it there when it runs next.
    fn store(&self, device: usize, at: u64, value: u32);
}

/// The page of a device in a [`Mirror`].
#[derive(Clone, Debug)]
pub(super) struct Page {
    mirror: Rc<dyn Mirror>,
    device: usize,
}

impl Page {
    pub(super) fn new(mirror: Rc<dyn Mirror>, device: usize) -> Self {
        Page { mirror, device }
    }

    /// Stores a register's value.
    pub(super) fn store(&self, at: u64, value: u32) {
        self.mirror.store(self.device, at, value);
    }
}
