//! The device, as its driver sees it: setting it up (3.1.1), and its one split queue (2.7).
//!
//! Each slot of the channel has three descriptors of its own, for a request's header, data and status, so that none has to be
//! searched for. What the device writes is checked: one that gives back what it was not given is reset, and everything at it
//! fails.

use core::fmt;
use core::sync::atomic::{Ordering, fence};
use usys::Window;
use usys::window::OutOfWindow;
use vmm_protocol::block::{DiskInfo, Operation, Request, SLOTS, Status};

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The driver has chosen its features.
    pub const FEATURES_OK: u8 = 8;
    /// The device is broken until it is reset.
    pub const NEEDS_RESET: u8 = 64;
}

/// Features (5.2.3, 6).
mod feature {
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const VERSION_1: u64 = 1 << 32;
    pub(super) const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Where things are in the memory of the queue.
mod layout {
    use super::QUEUE_SIZE;
    pub(super) const DESCRIPTORS: usize = 0;
    pub(super) const AVAILABLE: usize = DESCRIPTORS + 16 * QUEUE_SIZE as usize;
    pub(super) const USED: usize = 4096;
    pub(super) const HEADERS: usize = USED + 2048;
    pub(super) const STATUSES: usize = HEADERS + 16 * super::SLOTS;
}

/// Descriptors of the queue: three for each slot, and a power of two.
pub const QUEUE_SIZE: u16 = 128;
/// Bytes of the memory of the queue.
pub const QUEUE_BYTES: usize = 8192;
/// Flags of a descriptor (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Status bytes of a request (5.2.6).
const OK: u8 = 0;
const UNSUPPORTED: u8 = 2;
/// What a status is before the device has written it.
const NOT_YET: u8 = 0xff;
/// Reads of the status until a reset is done.
const RESET_READS: u32 = 1_000_000;

const _: () = assert!(SLOTS * 3 <= QUEUE_SIZE as usize);
const _: () = assert!(layout::STATUSES + SLOTS <= QUEUE_BYTES);

/// The registers of a virtio device, whatever its transport.
pub trait Registers {
    /// Device status.
    fn status(&mut self) -> u8;
    /// Writes the device status; 0 resets the device.
    fn set_status(&mut self, status: u8);
    /// Bits 0 to 31, or 32 to 63, of the features that the device offers.
    fn device_features(&mut self, high: bool) -> u32;
    /// Chooses features.
    fn set_driver_features(&mut self, high: bool, features: u32);
    /// The most descriptors that queue 0 can have; 0 if there is no queue.
    fn max_queue_size(&mut self) -> u16;
    /// Hands over queue 0: its size, and the addresses of its three areas. Its interrupt is the device's only one.
    fn enable_queue(&mut self, size: u16, areas: [u64; 3]);
    /// The 32-bit field at `offset` of the device's configuration space.
    fn config(&mut self, offset: usize) -> u32;
    /// Tells the device to look at queue 0.
    fn notify(&mut self);
}

/// Memory that the device reaches, too.
#[derive(Clone, Copy, Debug)]
pub struct DmaWindow {
    /// The memory.
    pub window: Window,
    /// Physical address of its first byte; the rest follows.
    pub address: u64,
}

/// Why the device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// It does not end its reset.
    Reset,
    /// It is of the time before virtio 1.0, or wants what this driver does not do.
    Features,
    /// Its queue is too short.
    Queue,
    /// The memory for the queue is too short.
    Memory,
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SetupError::Reset => "the device does not end its reset",
            SetupError::Features => "the device does not agree on features",
            SetupError::Queue => "the device's queue is too short",
            SetupError::Memory => "there is too little memory for the queue",
        })
    }
}

impl core::error::Error for SetupError {}

impl From<OutOfWindow> for SetupError {
    fn from(_: OutOfWindow) -> Self {
        SetupError::Memory
    }
}

/// The device broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A block device.
#[derive(Debug)]
pub struct Device<R> {
    registers: R,
    memory: DmaWindow,
    can_flush: bool,
    disk: DiskInfo,
    /// Entries that were put into the available ring.
    available: u16,
    /// Entries that were taken out of the used ring.
    used: u16,
    /// Requests at the device, by slot.
    at_device: [bool; SLOTS],
}

impl<R: Registers> Device<R> {
    /// Sets the device up, with its queue in `memory`.
    ///
    /// # Errors
    /// The device, or the memory, cannot be used.
    pub fn new(registers: R, memory: DmaWindow) -> Result<Self, SetupError> {
        let mut device = Device {
            registers,
            memory,
            can_flush: false,
            disk: DiskInfo { sectors: 0, is_read_only: true, has_cache: false },
            available: 0,
            used: 0,
            at_device: [false; SLOTS],
        };
        device.set_up()?;
        Ok(device)
    }

    /// What the disk is.
    pub fn disk(&self) -> DiskInfo {
        self.disk
    }

    /// Requests at the device.
    pub fn in_flight(&self) -> usize {
        self.at_device.iter().filter(|&&is_there| is_there).count()
    }

    /// Resets the device and sets it up (3.1.1). Whatever was at it is given up: it touches no memory any more.
    pub fn set_up(&mut self) -> Result<(), SetupError> {
        let registers = &mut self.registers;
        registers.set_status(0);
        if !(0..RESET_READS).any(|_| registers.status() == 0) {
            return Err(SetupError::Reset);
        }
        self.at_device = [false; SLOTS];
        (self.available, self.used) = (0, 0);
        self.memory.window.zero(0, QUEUE_BYTES)?;
        registers.set_status(status::ACKNOWLEDGE);
        registers.set_status(status::ACKNOWLEDGE | status::DRIVER);
        let offered =
            u64::from(registers.device_features(false)) | u64::from(registers.device_features(true)) << 32;
        let wanted = feature::READ_ONLY | feature::FLUSH | feature::VERSION_1 | feature::ACCESS_PLATFORM;
        let features = offered & wanted;
        registers.set_driver_features(false, features as u32);
        registers.set_driver_features(true, (features >> 32) as u32);
        let chosen = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        registers.set_status(chosen);
        if features & feature::VERSION_1 == 0 || registers.status() & status::FEATURES_OK == 0 {
            return Err(SetupError::Features);
        }
        if registers.max_queue_size() < QUEUE_SIZE {
            return Err(SetupError::Queue);
        }
        let areas = [layout::DESCRIPTORS, layout::AVAILABLE, layout::USED];
        registers.enable_queue(QUEUE_SIZE, areas.map(|offset| self.memory.address + offset as u64));
        registers.set_status(chosen | status::DRIVER_OK);
        self.can_flush = features & feature::FLUSH != 0;
        self.disk = DiskInfo {
            sectors: u64::from(registers.config(0)) | u64::from(registers.config(4)) << 32,
            is_read_only: features & feature::READ_ONLY != 0,
            has_cache: self.can_flush,
        };
        Ok(())
    }

    /// Puts a request into the queue, whose data is at physical address `data`. `Some` if it ended with that.
    pub fn submit(&mut self, request: &Request, data: u64) -> Option<Status> {
        let slot = request.slot;
        match self.at_device.get_mut(usize::from(slot)) {
            Some(is_there) if !*is_there => *is_there = true,
            // The user's own rule, which it broke.
            _ => return Some(Status::Unsupported),
        }
        if request.operation == Operation::Flush && !self.can_flush {
            // Without the feature the device writes through (5.2.6.2).
            self.at_device[usize::from(slot)] = false;
            return Some(Status::Done);
        }
        // In the window by its layout, whose length `set_up` has seen.
        let _ = self.write_request(request, data);
        None
    }

    fn write_request(&mut self, request: &Request, data: u64) -> Result<(), OutOfWindow> {
        let DmaWindow { window, address } = self.memory;
        let slot = usize::from(request.slot);
        let (kind, flags) = match request.operation {
            Operation::Read => (0u32, WRITE),
            Operation::Write => (1, 0),
            Operation::Flush => (4, 0),
        };
        let header = layout::HEADERS + 16 * slot;
        window.write(header, &u64::from(kind).to_le_bytes())?;
        window.write(header + 8, &request.sector.to_le_bytes())?;
        let status = layout::STATUSES + slot;
        window.write(status, &[NOT_YET])?;
        let first = 3 * u16::from(request.slot);
        let after = if request.operation == Operation::Flush { first + 2 } else { first + 1 };
        self.write_descriptor(first, address + header as u64, 16, NEXT, after)?;
        self.write_descriptor(first + 1, data, request.bytes() as u32, flags | NEXT, first + 2)?;
        self.write_descriptor(first + 2, address + status as u64, 1, WRITE, 0)?;
        let entry = layout::AVAILABLE + 4 + 2 * usize::from(self.available % QUEUE_SIZE);
        window.write(entry, &first.to_le_bytes())?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    fn write_descriptor(
        &self,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) -> Result<(), OutOfWindow> {
        let at = layout::DESCRIPTORS + 16 * usize::from(index);
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.window.write(at, &address.to_le_bytes())?;
        self.memory.window.write(at + 8, &rest.to_le_bytes())
    }

    /// Shows the device what was put into the queue.
    pub fn publish(&mut self) {
        // What was written before is seen first (2.7.13.2): the compiler keeps the order of copies, and x86 that of stores.
        let _ = self.memory.window.write(layout::AVAILABLE + 2, &self.available.to_le_bytes());
        fence(Ordering::SeqCst);
        self.registers.notify();
    }

    /// A request that the device has completed.
    ///
    /// # Errors
    /// The device broke the rules: it is to be set up again.
    pub fn take_completed(&mut self) -> Result<Option<(u8, Status)>, Broken> {
        let index = self.read_u16(layout::USED + 2)?;
        if index == self.used {
            let is_broken = self.registers.status() & status::NEEDS_RESET != 0;
            return if is_broken { Err(Broken) } else { Ok(None) };
        }
        // The index before the entry (2.7.14): loads are not reordered on x86.
        let entry = layout::USED + 4 + 8 * usize::from(self.used % QUEUE_SIZE);
        self.used = self.used.wrapping_add(1);
        let mut id = [0; 4];
        self.memory.window.read(entry, &mut id).map_err(|_| Broken)?;
        let id = u32::from_le_bytes(id);
        let slot = usize::try_from(id / 3).map_err(|_| Broken)?;
        match self.at_device.get_mut(slot) {
            Some(is_there) if *is_there && id.is_multiple_of(3) => *is_there = false,
            _ => return Err(Broken),
        }
        let mut result = [0];
        self.memory.window.read(layout::STATUSES + slot, &mut result).map_err(|_| Broken)?;
        Ok(Some((slot as u8, status_of(result[0]))))
    }

    fn read_u16(&self, offset: usize) -> Result<u16, Broken> {
        let mut bytes = [0; 2];
        self.memory.window.read(offset, &mut bytes).map_err(|_| Broken)?;
        Ok(u16::from_le_bytes(bytes))
    }
}

/// A device without a status register that would say so cannot be told from one that is slow.
fn status_of(byte: u8) -> Status {
    match byte {
        OK => Status::Done,
        UNSUPPORTED => Status::Unsupported,
        _ => Status::Io,
    }
}
