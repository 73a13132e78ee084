//! A split queue (2.7), as its driver sees it. Which descriptors are whose is its user's.

use crate::device::{Registers, SetupError, status};
use core::sync::atomic::{Ordering, fence};
use usys::Window;
use usys::window::OutOfWindow;

/// Flags of a descriptor (2.7.5).
pub mod flag {
    /// There is another one behind it.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
}

/// The device wants no notifications (2.7.10).
const NO_NOTIFY: u16 = 1;
/// The driver wants no interrupts (2.7.7).
const NO_INTERRUPT: u16 = 1;

/// Memory that the device reaches, too.
#[derive(Clone, Copy, Debug)]
pub struct DmaWindow {
    /// The memory.
    pub window: Window,
    /// Physical address of its first byte; the rest follows.
    pub address: u64,
}

impl DmaWindow {
    /// The part of `len` bytes at `offset`, a multiple of 8.
    ///
    /// # Errors
    /// It does not lie in the window.
    pub fn slice(&self, offset: usize, len: usize) -> Result<DmaWindow, OutOfWindow> {
        Ok(DmaWindow { window: self.window.slice(offset, len)?, address: self.address + offset as u64 })
    }
}

/// The device broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl From<OutOfWindow> for Broken {
    fn from(_: OutOfWindow) -> Self {
        Broken
    }
}

/// A piece of memory for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// [`flag`]s.
    pub flags: u16,
    /// With [`flag::NEXT`], the descriptor behind it.
    pub next: u16,
}

/// A split queue.
#[derive(Debug)]
pub struct Queue {
    number: u16,
    size: u16,
    memory: DmaWindow,
    /// Entries that were put into the available ring.
    available: u16,
    /// Entries that were taken out of the used ring.
    used: u16,
}

impl Queue {
    /// Bytes of the three areas of a queue with `size` descriptors, in a row (2.7): a multiple of 8.
    pub const fn bytes(size: u16) -> usize {
        (Self::used_at(size) + 6 + 8 * size as usize).next_multiple_of(8)
    }

    const fn available_at(size: u16) -> usize {
        16 * size as usize
    }

    /// Offset of the used ring.
    pub const fn used_at(size: u16) -> usize {
        (Self::available_at(size) + 6 + 2 * size as usize).next_multiple_of(4)
    }

    /// An empty queue with `size` descriptors, a power of two, at the start of `memory`, a multiple of 16.
    pub(crate) fn new(number: u16, size: u16, memory: DmaWindow) -> Result<Self, SetupError> {
        let window = memory.window.slice(0, Self::bytes(size))?;
        window.zero(0, Self::bytes(size))?;
        let memory = DmaWindow { window, ..memory };
        Ok(Queue { number, size, memory, available: 0, used: 0 })
    }

    /// Physical addresses of its areas.
    pub(crate) fn areas(&self) -> [u64; 3] {
        let offsets = [0, Self::available_at(self.size), Self::used_at(self.size)];
        offsets.map(|offset| self.memory.address + offset as u64)
    }

    // Writes are within the window by the layout; `size` keeps indices there.

    /// Writes a descriptor.
    pub fn describe(&mut self, index: u16, buffer: Buffer) {
        let Buffer { address, len, flags, next } = buffer;
        let at = 16 * usize::from(index % self.size);
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let _ = self.memory.window.write(at, &address.to_le_bytes());
        let _ = self.memory.window.write(at + 8, &rest.to_le_bytes());
    }

    /// Puts a chain into the available ring; the device sees it with [`Self::publish`].
    pub fn offer(&mut self, head: u16) {
        let entry = Self::available_at(self.size) + 4 + 2 * usize::from(self.available % self.size);
        let _ = self.memory.window.write(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was offered, and notifies it if it wants that.
    pub fn publish(&mut self, registers: &mut impl Registers) {
        let at = Self::available_at(self.size) + 2;
        // What was written before is seen first (2.7.13.2): the compiler keeps the order of copies, and x86 that of stores.
        let _ = self.memory.window.write(at, &self.available.to_le_bytes());
        // The index before the flag is read (2.7.13.4.1): a load may go before a store.
        fence(Ordering::SeqCst);
        if self.read_u16(Self::used_at(self.size)).is_ok_and(|flags| flags & NO_NOTIFY == 0) {
            registers.notify(self.number);
        }
    }

    /// Asks the device not to interrupt for this queue, which it may do all the same, or to interrupt again.
    pub fn set_silent(&mut self, is_silent: bool) {
        let flags = if is_silent { NO_INTERRUPT } else { 0 };
        let _ = self.memory.window.write(Self::available_at(self.size), &flags.to_le_bytes());
        // Before the used ring is looked at (2.7.7): a load may go before a store.
        fence(Ordering::SeqCst);
    }

    /// Takes a chain out of the used ring: what the device says is its head, and how many bytes it has written. Both may be
    /// anything.
    ///
    /// # Errors
    /// The device asks for a reset.
    pub fn take(&mut self, registers: &mut impl Registers) -> Result<Option<(u32, u32)>, Broken> {
        let ring = Self::used_at(self.size);
        let index = self.read_u16(ring + 2)?;
        if index == self.used {
            let is_broken = registers.status() & status::NEEDS_RESET != 0;
            return if is_broken { Err(Broken) } else { Ok(None) };
        }
        // The index before the entry (2.7.14): loads are not reordered on x86.
        let entry = ring + 4 + 8 * usize::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let word = self.memory.window.read_u64(entry)?;
        Ok(Some((word as u32, (word >> 32) as u32)))
    }

    fn read_u16(&self, offset: usize) -> Result<u16, Broken> {
        let mut bytes = [0; 2];
        self.memory.window.read(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }
}
