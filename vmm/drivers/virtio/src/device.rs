//! Setting a device up (3.1.1).

use crate::queue::{DmaWindow, Queue};
use core::fmt;
use usys::window::OutOfWindow;

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

/// Features of any device (6).
pub mod feature {
    /// It is of virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Its addresses are translated where the platform does that.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Reads of the status until a reset is done.
const RESET_READS: u32 = 1_000_000;

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
    /// The most descriptors that a queue can have; 0 if there is no such queue.
    fn max_queue_size(&mut self, queue: u16) -> u16;
    /// Hands over a queue: its size, and the addresses of its three areas. The device's interrupts are one.
    fn enable_queue(&mut self, queue: u16, size: u16, areas: [u64; 3]);
    /// The 32-bit field at `offset` of the device's configuration space.
    fn config(&mut self, offset: usize) -> u32;
    /// Tells the device to look at a queue.
    fn notify(&mut self, queue: u16);
}

/// Why the device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// It does not end its reset.
    Reset,
    /// It is of the time before virtio 1.0, or wants what its driver does not do.
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

/// Resets the device, whatever it was at: it touches no memory any more.
///
/// # Errors
/// It does not end its reset.
pub fn reset(registers: &mut impl Registers) -> Result<(), SetupError> {
    registers.set_status(0);
    match (0..RESET_READS).any(|_| registers.status() == 0) {
        true => Ok(()),
        false => Err(SetupError::Reset),
    }
}

/// Agrees on features after a reset: those of any device that are needed, and of `wanted` those that the device has. Returns
/// what was agreed on; the queues are next, and then [`begin`].
///
/// # Errors
/// The device does not agree.
pub fn negotiate(registers: &mut impl Registers, wanted: u64) -> Result<u64, SetupError> {
    registers.set_status(status::ACKNOWLEDGE);
    registers.set_status(status::ACKNOWLEDGE | status::DRIVER);
    let offered =
        u64::from(registers.device_features(false)) | u64::from(registers.device_features(true)) << 32;
    let features = offered & (wanted | feature::VERSION_1 | feature::ACCESS_PLATFORM);
    registers.set_driver_features(false, features as u32);
    registers.set_driver_features(true, (features >> 32) as u32);
    registers.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    if features & feature::VERSION_1 == 0 || registers.status() & status::FEATURES_OK == 0 {
        return Err(SetupError::Features);
    }
    Ok(features)
}

/// Makes queue `number`, of `size` descriptors, at the start of `memory`, and hands it over.
///
/// # Errors
/// The device's queue, or the memory, is too short.
pub fn add_queue(
    registers: &mut impl Registers,
    number: u16,
    size: u16,
    memory: DmaWindow,
) -> Result<Queue, SetupError> {
    let queue = Queue::new(number, size, memory)?;
    if registers.max_queue_size(number) < size {
        return Err(SetupError::Queue);
    }
    registers.enable_queue(number, size, queue.areas());
    Ok(queue)
}

/// Lets the device work.
pub fn begin(registers: &mut impl Registers) {
    registers.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
}
