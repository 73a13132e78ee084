//! Disks.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::hal::Hal;
use crate::queue::{Queue, QueueMemory};
use crate::transfer::transfer;
use hypercall_abi::guest::device::{Kind, config, feature};
use hypercall_abi::guest::op::{self, Status};
use hypercall_abi::guest::ring::{Completion, Request};

/// Bytes of a sector, the unit of every address here.
pub const SECTOR_BYTES: usize = 512;

/// A disk by 64-bit sectors, whoever drives it.
pub trait BlockDevice {
    /// Why an operation failed.
    type Error;

    /// Sectors of the disk.
    fn sectors(&self) -> u64;

    /// Reads whole sectors.
    fn read(&mut self, sector: u64, into: &mut [u8]) -> core::result::Result<(), Self::Error>;

    /// Writes whole sectors.
    fn write(&mut self, sector: u64, from: &[u8]) -> core::result::Result<(), Self::Error>;

    /// Makes durable what was written.
    fn flush(&mut self) -> core::result::Result<(), Self::Error>;
}

/// A paravirtual disk.
///
/// Calls of [`BlockDevice`] carry out one request each. For more than one in flight there are [`Self::submit`],
/// [`Self::publish`] and [`Self::collect`].
#[derive(Debug)]
pub struct Block<H: Hal> {
    queue: Queue<H>,
    device: Device<H>,
    features: u64,
    sectors: u64,
}

impl<H: Hal + Clone> Block<H> {
    /// Starts the disk with its device page at this guest-physical address.
    pub fn new(hal: H, address: u64, memory: &'static mut QueueMemory) -> Result<Self> {
        let mut device = Device::open_kind(hal, address, Kind::Block)?;
        let features =
            device.negotiate(feature::BLOCK_READ_ONLY | feature::BLOCK_FLUSH | feature::BLOCK_DISCARD);
        let queue = device.attach(0, memory)?;
        let sectors = device.read_u64(config::BLOCK_SECTORS);
        device.start()?;
        Ok(Block { queue, device, features, sectors })
    }
}

impl<H: Hal> Block<H> {
    /// Whether it cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.features & feature::BLOCK_READ_ONLY != 0
    }

    /// Its device page: interrupts are set up there.
    pub fn device(&mut self) -> &mut Device<H> {
        &mut self.device
    }

    /// Its queue, for interrupts and for scattered requests.
    pub fn queue(&mut self) -> &mut Queue<H> {
        &mut self.queue
    }

    /// Declares the content of sectors needless.
    pub fn discard(&mut self, sector: u64, count: u64) -> Result<()> {
        self.run(op::DISCARD, sector, count)
    }

    /// Makes sectors read as zeroes.
    pub fn write_zeroes(&mut self, sector: u64, count: u64) -> Result<()> {
        self.run(op::WRITE_ZEROES, sector, count)
    }

    /// Submits a request on `len` physically contiguous bytes ([`op::READ`] or [`op::WRITE`]) and returns its name. The
    /// device sees it with the next [`Self::publish`].
    ///
    /// # Safety
    /// Until its completion is collected or the device is reset, `len` bytes at `buffer` stay memory that the device may
    /// read, and write for [`op::READ`].
    #[inline]
    pub unsafe fn submit(&mut self, op: u8, sector: u64, buffer: *mut u8, len: usize) -> Result<u16> {
        let bytes = u32::try_from(len).map_err(|_| Error::TooScattered)?;
        let (address, contiguous) = self.queue.hal().translate(buffer, len);
        if contiguous < len {
            return Err(Error::TooScattered);
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.queue.submit(Request { address, len: bytes, op, offset: sector, ..Request::default() })
        }
    }

    /// Shows the device what was submitted.
    #[inline]
    pub fn publish(&mut self) {
        self.queue.publish();
    }

    /// Takes a completion. An error other than of the request itself resets the device.
    #[inline]
    pub fn collect(&mut self) -> Result<Option<Completion>> {
        self.queue.collect().inspect_err(|_| self.device.reset())
    }

    fn run(&mut self, op: u8, offset: u64, argument: u64) -> Result<()> {
        let request = Request { op, offset, argument, ..Request::default() };
        // SAFETY: the request has no buffer.
        unsafe { transfer(&self.device, &mut self.queue, request, core::ptr::null(), 0) }.map(drop)
    }
}

impl<H: Hal> BlockDevice for Block<H> {
    type Error = Error;

    fn sectors(&self) -> u64 {
        self.sectors
    }

    #[inline]
    fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<()> {
        let (pointer, len) = (into.as_mut_ptr(), into.len());
        let request = Request { op: op::READ, offset: sector, ..Request::default() };
        // SAFETY: the slice is borrowed for the call, and may be written.
        let moved = unsafe { transfer(&self.device, &mut self.queue, request, pointer, len)? };
        if moved == len { Ok(()) } else { Err(Error::Failed(Status::Io)) }
    }

    #[inline]
    fn write(&mut self, sector: u64, from: &[u8]) -> Result<()> {
        let request = Request { op: op::WRITE, offset: sector, ..Request::default() };
        // SAFETY: the slice is borrowed for the call, and the device only reads it.
        unsafe { transfer(&self.device, &mut self.queue, request, from.as_ptr(), from.len()) }.map(drop)
    }

    fn flush(&mut self) -> Result<()> {
        if self.features & feature::BLOCK_FLUSH == 0 {
            return Ok(());
        }
        self.run(op::FLUSH, 0, 0)
    }
}
