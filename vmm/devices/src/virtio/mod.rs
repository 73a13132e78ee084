//! virtio devices (Virtual I/O Device Version 1.2): queues, the MMIO transport, and front ends for the device cores.
//!
//! A driver's notification goes to the transport ([`mmio::Transport`]), which remembers it; when its owner lets it
//! [`mmio::Transport::run`], the device takes chains of descriptors out of its queues ([`queue::Queue`]), has the core do
//! what they say, and puts them back as used. Everything that comes out of guest memory is read once and checked. What no
//! driver may do ends in a [`DriverError`]: the device asks for a reset (2.1.1, DEVICE_NEEDS_RESET) and does nothing more
//! until it gets one.
//!
//! | Module | Subject |
//! |---|---|
//! | [`queue`], [`chain`] | split and packed queues (2.7, 2.8) with indirect descriptors and event indices |
//! | [`mmio`] | the transport (4.2) |
//! | [`balloon`], [`block`], [`console`], [`entropy`], [`net`], [`vsock`] | devices (5.5, 5.2, 5.3, 5.4, 5.1, 5.10) |
//!
//! Numbers in parentheses are sections of that specification.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod entropy;
pub mod mirror;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod vsock;

mod packed;
mod split;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod tests;

use crate::guest_mem::{GuestMemory, OutOfRange};
use core::fmt;
use queue::Queue;

/// Chains may point to a table of descriptors (2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Both sides say at which index they want to be notified (2.7.7.1, 2.7.9.1).
pub const EVENT_IDX: u64 = 1 << 29;
/// The device is no legacy device (6.1).
pub const VERSION_1: u64 = 1 << 32;

/// Queues have one ring instead of three (2.8).
pub const RING_PACKED: u64 = 1 << 34;

/// The features that queues and transport bring along, whatever the device.
pub const COMMON_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;

/// Device types (5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceType {
    /// Network card.
    Network = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Sockets.
    Socket = 19,
}

/// What a driver did that no driver may do. The device stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DriverError {
    /// A queue, a descriptor or a buffer is not in guest memory.
    Memory(OutOfRange),
    /// A queue was made ready with a size that is no power of two, or is more than the device allows.
    QueueSize(u16),
    /// A queue was made ready at an address that is not aligned (2.7).
    QueueAddress(u64),
    /// The available index is further ahead than the queue is long.
    AvailableIndex(u16),
    /// A descriptor index that the table does not have.
    Descriptor(u16),
    /// A chain is longer than the queue: it may be a loop.
    ChainLength,
    /// A chain is longer than 2^32 bytes (2.7.5).
    ChainBytes,
    /// A buffer for the driver to read comes behind one for the device to write, or an indirect descriptor is one.
    ChainOrder,
    /// An indirect table that is empty, has part of a descriptor, has a table in it or is not the last of its chain.
    IndirectTable,
    /// A request has no room for what each request must have.
    Request,
    /// More requests are offered than the queue has descriptors.
    InFlight,
}

impl From<OutOfRange> for DriverError {
    fn from(error: OutOfRange) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::QueueSize(size) => write!(f, "a queue of {size} descriptors"),
            Self::QueueAddress(gpa) => write!(f, "a queue at {gpa:#x}, which is not aligned"),
            Self::AvailableIndex(index) => write!(f, "the available index {index} is too far ahead"),
            Self::Descriptor(index) => write!(f, "there is no descriptor {index}"),
            Self::ChainLength => f.write_str("a chain of more descriptors than the queue has"),
            Self::ChainBytes => f.write_str("a chain of more than 4 GiB"),
            Self::ChainOrder => f.write_str("a buffer to be read lies behind one to be written"),
            Self::IndirectTable => f.write_str("an indirect table is malformed"),
            Self::Request => f.write_str("a request is too short"),
            Self::InFlight => f.write_str("more requests than descriptors"),
        }
    }
}

impl core::error::Error for DriverError {}

/// What came of looking at a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Turn {
    /// The driver wants an interrupt.
    pub interrupt: bool,
    /// There may be more: the queue is to be looked at again, after others had their turn.
    pub again: bool,
    /// The driver may want an interrupt that can wait: [`Device::settle`] is due some time.
    pub later: bool,
}

impl Turn {
    /// There was nothing to do.
    pub const NOTHING: Turn = Turn { interrupt: false, again: false, later: false };
}

/// A device behind a transport.
///
/// The transport calls the queue methods only between DRIVER_OK and the next reset, and only with queues that may be
/// disabled: those yield nothing.
pub trait Device {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The feature bits that are its own: below 24, or from 50 on.
    fn features(&self) -> u64;

    /// The most descriptors of each of its queues: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration space; bytes behind it are zero.
    fn read_config(&self, offset: u64, into: &mut [u8]);

    /// Writes its configuration space.
    fn write_config(&mut self, _offset: u64, _from: &[u8]) {}

    /// The driver has chosen these features out of all that were offered.
    fn set_features(&mut self, _features: u64) {}

    /// Back to the state after power-on: nothing that was begun touches guest memory any more.
    fn reset(&mut self);

    /// The driver took this queue back: nothing that was begun for it touches guest memory any more (4.2.2.2, QueueReady), and none of
    /// its chains is given back.
    fn queue_stopped(&mut self, _index: usize) {}

    /// The driver put buffers into this queue. At most as many chains as the queue has descriptors are served in a turn:
    /// a driver can offer new ones, even by what the device writes into memory, as fast as they are served.
    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError>;

    /// Whether the driver wants an interrupt for what was given back in turns that said so ([`Turn::later`]), and has not found that
    /// by itself since. `is_silent`: nor has it had any such turn for long, so that it may be waiting.
    fn settle<M: GuestMemory>(
        &mut self,
        _memory: &M,
        _queues: &mut [Queue],
        _is_silent: bool,
    ) -> Result<bool, DriverError> {
        Ok(false)
    }

    /// Something may have come from behind the device: completions, input.
    fn poll<M: GuestMemory>(&mut self, _memory: &mut M, _queues: &mut [Queue]) -> Result<Turn, DriverError> {
        Ok(Turn::NOTHING)
    }
}

/// Reads from a configuration space that is this long.
fn read_config_bytes(config: &[u8], offset: u64, into: &mut [u8]) {
    for (at, byte) in (offset..).zip(into) {
        *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
    }
}
