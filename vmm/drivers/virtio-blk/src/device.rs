//! The device, as its driver sees it, and requests in its one queue (5.2).
//!
//! Each slot of the channel has three descriptors of its own, for a request's header, data and status, so that none has to be
//! searched for. What the device writes is checked: one that gives back what it was not given is reset, and everything at it
//! fails.

use block_channel::FLUSH_PATIENCE_MS;
use usys::window::OutOfWindow;
use virtio_driver::device::{self, Registers, SetupError};
use virtio_driver::queue::{Broken, Buffer, DmaWindow, Queue, flag};
use vmm_protocol::block::{DiskInfo, Operation, Request, SLOTS, Status};

/// Features (5.2.3).
mod feature {
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const FLUSH: u64 = 1 << 9;
}

/// Where things are in the memory of the queue, behind that.
mod layout {
    pub(super) const HEADERS: usize = 4096;
    pub(super) const STATUSES: usize = HEADERS + 16 * super::SLOTS;
}

/// Descriptors of the queue: three for each slot, and a power of two.
pub const QUEUE_SIZE: u16 = 128;
/// Bytes of the memory of the queue.
pub const QUEUE_BYTES: usize = 8192;
/// How long the device may complete nothing while it has requests, in ms; unless it flushes.
const PATIENCE_MS: u64 = 30_000;
/// Status bytes of a request (5.2.6).
const OK: u8 = 0;
const UNSUPPORTED: u8 = 2;
/// What a status is before the device has written it.
const NOT_YET: u8 = 0xff;

const _: () = assert!(SLOTS * 3 <= QUEUE_SIZE as usize);
const _: () = assert!(Queue::bytes(QUEUE_SIZE) <= layout::HEADERS);
const _: () = assert!(layout::STATUSES + SLOTS <= QUEUE_BYTES);

/// A block device.
#[derive(Debug)]
pub struct Device<R> {
    registers: R,
    memory: DmaWindow,
    queue: Queue,
    can_flush: bool,
    disk: DiskInfo,
    /// What is at the device, by slot.
    at_device: [Option<Operation>; SLOTS],
}

impl<R: Registers> Device<R> {
    /// Resets the device and sets it up (3.1.1), with its queue in `memory`.
    ///
    /// # Errors
    /// The device, or the memory, cannot be used.
    pub fn new(mut registers: R, memory: DmaWindow) -> Result<Self, SetupError> {
        memory.window.slice(0, QUEUE_BYTES)?;
        device::reset(&mut registers)?;
        let features = device::negotiate(&mut registers, feature::READ_ONLY | feature::FLUSH)?;
        let queue = device::add_queue(&mut registers, 0, QUEUE_SIZE, memory)?;
        device::begin(&mut registers);
        let can_flush = features & feature::FLUSH != 0;
        let disk = DiskInfo {
            sectors: u64::from(registers.config(0)) | u64::from(registers.config(4)) << 32,
            is_read_only: features & feature::READ_ONLY != 0,
            has_cache: can_flush,
        };
        Ok(Device { registers, memory, queue, can_flush, disk, at_device: [None; SLOTS] })
    }

    /// What the disk is.
    pub fn disk(&self) -> DiskInfo {
        self.disk
    }

    /// Requests at the device.
    pub fn in_flight(&self) -> usize {
        self.at_device.iter().flatten().count()
    }

    /// How long the device may complete nothing of what is at it, in ms.
    pub fn patience_ms(&self) -> u64 {
        let is_flushing = self.at_device.contains(&Some(Operation::Flush));
        if is_flushing { FLUSH_PATIENCE_MS } else { PATIENCE_MS }
    }

    /// Puts a request into the queue, whose data is at physical address `data`. `Some` if it ended with that.
    pub fn submit(&mut self, request: &Request, data: u64) -> Option<Status> {
        let slot = request.slot;
        match self.at_device.get_mut(usize::from(slot)) {
            Some(place @ None) => *place = Some(request.operation),
            // The user's own rule, which it broke.
            _ => return Some(Status::Unsupported),
        }
        if request.operation == Operation::Flush && !self.can_flush {
            // Without the feature the device writes through (5.2.6.2).
            self.at_device[usize::from(slot)] = None;
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
            Operation::Read => (0u32, flag::WRITE),
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
        let buffer = |address, len, flags, next| Buffer { address, len, flags, next };
        self.queue.describe(first, buffer(address + header as u64, 16, flag::NEXT, after));
        let bytes = request.bytes() as u32;
        self.queue.describe(first + 1, buffer(data, bytes, flags | flag::NEXT, first + 2));
        self.queue.describe(first + 2, buffer(address + status as u64, 1, flag::WRITE, 0));
        self.queue.offer(first);
        Ok(())
    }

    /// Shows the device what was put into the queue.
    pub fn publish(&mut self) {
        self.queue.publish(&mut self.registers);
    }

    /// A request that the device has completed.
    ///
    /// # Errors
    /// The device broke the rules: it is to be set up again.
    pub fn take_completed(&mut self) -> Result<Option<(u8, Status)>, Broken> {
        let Some((id, _)) = self.queue.take(&mut self.registers)? else { return Ok(None) };
        let slot = usize::try_from(id / 3).map_err(|_| Broken)?;
        match self.at_device.get_mut(slot) {
            Some(place @ Some(_)) if id.is_multiple_of(3) => *place = None,
            _ => return Err(Broken),
        }
        let mut result = [0];
        self.memory.window.read(layout::STATUSES + slot, &mut result)?;
        Ok(Some((slot as u8, status_of(result[0]))))
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
