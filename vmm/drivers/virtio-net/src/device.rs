//! The device, as its driver sees it: one queue of buffers for frames that arrive, one of frames that leave (5.1).
//!
//! Each descriptor has a buffer of its own, for one frame and the header before it. No feature is taken but the address: a
//! frame is what it is on a wire, and the header is all zeroes.

use core::fmt;
use uplink::Card;
use usys::window::OutOfWindow;
use vdev::net::{MAX_FRAME, MIN_FRAME};
use virtio_driver::device::{self, Registers, SetupError};
use virtio_driver::queue::{Broken, Buffer, DmaWindow, Queue, flag};

/// Features (5.1.3).
mod feature {
    pub(super) const MAC: u64 = 1 << 5;
}

/// Queues (5.1.2).
mod queue {
    pub(super) const RECEIVE: u16 = 0;
    pub(super) const TRANSMIT: u16 = 1;
}

/// Descriptors of each queue, and so its buffers.
pub const QUEUE_SIZE: u16 = 64;
const BUFFERS: usize = QUEUE_SIZE as usize;
/// Bytes of a buffer.
const BUFFER_BYTES: usize = 2048;
/// Bytes of the header (5.1.6): with virtio 1.0 the number of buffers is always there.
const HEADER: usize = 12;

/// Where things are in the memory.
mod layout {
    use super::{BUFFER_BYTES, BUFFERS};

    /// The queues.
    pub(super) const QUEUES: [usize; 2] = [0, 2048];
    /// Each queue's buffers.
    pub(super) const BUFFERS_OF: [usize; 2] = [4096, 4096 + BUFFERS * BUFFER_BYTES];
    pub(super) const BYTES: usize = 4096 + 2 * BUFFERS * BUFFER_BYTES;
}

/// Bytes of the memory that the device gets.
pub const MEMORY_BYTES: usize = layout::BYTES;

const _: () = assert!(Queue::bytes(QUEUE_SIZE) <= layout::QUEUES[1]);
const _: () = assert!(HEADER + MAX_FRAME <= BUFFER_BYTES);

/// What the device does that it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It gave back what it was not given, or asks for a reset.
    Broken,
    /// It does not come back from a reset.
    Setup(SetupError),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Broken => f.write_str("the device broke the rules"),
            Failure::Setup(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Failure {}

impl From<Broken> for Failure {
    fn from(_: Broken) -> Self {
        Failure::Broken
    }
}

impl From<OutOfWindow> for Failure {
    fn from(_: OutOfWindow) -> Self {
        Failure::Broken
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        Failure::Setup(error)
    }
}

/// A network device.
#[derive(Debug)]
pub struct Device<R> {
    registers: R,
    memory: DmaWindow,
    address: Option<[u8; 6]>,
    receive: Half,
    transmit: Half,
}

/// A queue and which of its buffers are at the device.
#[derive(Debug)]
struct Half {
    queue: Queue,
    at_device: [bool; BUFFERS],
    /// Something was put into the queue that the device has not been shown.
    is_new: bool,
}

impl Half {
    fn offer(&mut self, index: usize, address: u64, len: usize, flags: u16) {
        self.at_device[index] = true;
        self.is_new = true;
        self.queue.describe(index as u16, Buffer { address, len: len as u32, flags, next: 0 });
        self.queue.offer(index as u16);
    }

    fn publish(&mut self, registers: &mut impl Registers) {
        if core::mem::take(&mut self.is_new) {
            self.queue.publish(registers);
        }
    }

    /// A buffer that the device gave back, and how much it says is in it.
    fn take(&mut self, registers: &mut impl Registers) -> Result<Option<(usize, usize)>, Broken> {
        let Some((id, len)) = self.queue.take(registers)? else { return Ok(None) };
        let index = usize::try_from(id).map_err(|_| Broken)?;
        match self.at_device.get_mut(index) {
            Some(is_there) if *is_there => *is_there = false,
            _ => return Err(Broken),
        }
        Ok(Some((index, usize::try_from(len).map_err(|_| Broken)?)))
    }
}

impl<R: Registers> Device<R> {
    /// Resets the device and sets it up (3.1.1), with its queues and buffers in `memory`.
    ///
    /// # Errors
    /// The device, or the memory, cannot be used.
    pub fn new(mut registers: R, memory: DmaWindow) -> Result<Self, SetupError> {
        memory.window.slice(0, MEMORY_BYTES)?;
        let (address, [receive, transmit]) = set_up(&mut registers, memory)?;
        let mut device = Device { registers, memory, address, receive, transmit };
        device.fill();
        Ok(device)
    }

    /// Its address, if it says so.
    pub const fn address(&self) -> Option<[u8; 6]> {
        self.address
    }

    /// The registers.
    pub fn registers(&mut self) -> &mut R {
        &mut self.registers
    }

    /// Gives the device every buffer for frames that arrive.
    fn fill(&mut self) {
        (0..BUFFERS).for_each(|index| self.offer_receive(index));
        self.receive.publish(&mut self.registers);
    }

    fn offer_receive(&mut self, index: usize) {
        let address = self.memory.address + buffer(queue::RECEIVE, index) as u64;
        self.receive.offer(index, address, BUFFER_BYTES, flag::WRITE);
    }

    /// A buffer for a frame.
    fn free_buffer(&mut self) -> Result<Option<usize>, Broken> {
        let find = |half: &Half| half.at_device.iter().position(|is_there| !is_there);
        if let Some(index) = find(&self.transmit) {
            return Ok(Some(index));
        }
        self.publish();
        self.collect()?;
        if find(&self.transmit).is_none() {
            // The device may have been done just before it sees that.
            self.transmit.queue.set_silent(false);
            self.collect()?;
        }
        let index = find(&self.transmit);
        if index.is_some() {
            self.transmit.queue.set_silent(true);
        }
        Ok(index)
    }

    /// Takes back the buffers of frames that have left.
    fn collect(&mut self) -> Result<(), Broken> {
        while self.transmit.take(&mut self.registers)?.is_some() {}
        Ok(())
    }
}

impl<R: Registers> Card for Device<R> {
    type Failure = Failure;

    /// The device gets the buffer back with `publish`.
    fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>, Failure> {
        while let Some((index, len)) = self.receive.take(&mut self.registers)? {
            // What is no frame is dropped.
            let bytes = len.checked_sub(HEADER).filter(|bytes| (MIN_FRAME..=into.len()).contains(bytes));
            if let Some(bytes) = bytes {
                let at = buffer(queue::RECEIVE, index) + HEADER;
                self.memory.window.read(at, &mut into[..bytes])?;
            }
            self.offer_receive(index);
            if bytes.is_some() {
                return Ok(bytes);
            }
        }
        Ok(None)
    }

    fn send(&mut self, frame: &[u8]) -> Result<bool, Failure> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Ok(true);
        }
        let Some(index) = self.free_buffer()? else { return Ok(false) };
        // The header of the buffer is all zeroes from the start.
        let at = buffer(queue::TRANSMIT, index);
        self.memory.window.write(at + HEADER, frame)?;
        self.transmit.offer(index, self.memory.address + at as u64, HEADER + frame.len(), 0);
        Ok(true)
    }

    fn publish(&mut self) {
        self.transmit.publish(&mut self.registers);
        self.receive.publish(&mut self.registers);
    }

    fn restart(&mut self) -> Result<(), Failure> {
        (self.address, [self.receive, self.transmit]) = set_up(&mut self.registers, self.memory)?;
        self.fill();
        Ok(())
    }
}

/// Sets the device up; its queues are empty.
fn set_up(
    registers: &mut impl Registers,
    memory: DmaWindow,
) -> Result<(Option<[u8; 6]>, [Half; 2]), SetupError> {
    device::reset(registers)?;
    memory.window.zero(0, MEMORY_BYTES)?;
    let features = device::negotiate(registers, feature::MAC)?;
    let mut half = |number: u16| -> Result<Half, SetupError> {
        let offset = layout::QUEUES[usize::from(number)];
        let memory = memory.slice(offset, Queue::bytes(QUEUE_SIZE))?;
        let queue = device::add_queue(registers, number, QUEUE_SIZE, memory)?;
        Ok(Half { queue, at_device: [false; BUFFERS], is_new: false })
    };
    let (receive, mut transmit) = (half(queue::RECEIVE)?, half(queue::TRANSMIT)?);
    transmit.queue.set_silent(true);
    device::begin(registers);
    let address = (features & feature::MAC != 0).then(|| {
        let [low, high] = [registers.config(0), registers.config(4)].map(u32::to_le_bytes);
        [low[0], low[1], low[2], low[3], high[0], high[1]]
    });
    Ok((address, [receive, transmit]))
}

/// Offset of a buffer in the memory.
const fn buffer(queue: u16, index: usize) -> usize {
    layout::BUFFERS_OF[queue as usize] + index * BUFFER_BYTES
}
