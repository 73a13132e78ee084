//! Memory that the guest does without.

use crate::device::Device;
use crate::error::Result;
use crate::hal::Hal;
use crate::queue::{Queue, QueueMemory};
use crate::transfer::transfer;
use hypercall_abi::guest::device::{Kind, config, feature};
use hypercall_abi::guest::op;
use hypercall_abi::guest::ring::Request;

/// The balloon: it says how many pages the host would like to have, and carries them there and back. Pages have 4096 bytes
/// and are named by guest-physical address.
#[derive(Debug)]
pub struct Balloon<H: Hal> {
    queue: Queue<H>,
    device: Device<H>,
    features: u64,
}

impl<H: Hal + Clone> Balloon<H> {
    /// Starts the device with its page at this guest-physical address.
    pub fn new(hal: H, address: u64, memory: &'static mut QueueMemory) -> Result<Self> {
        let mut device = Device::open_kind(hal, address, Kind::Balloon)?;
        let features = device.negotiate(feature::BALLOON_REPORT);
        let queue = device.attach(0, memory)?;
        device.start()?;
        Ok(Balloon { queue, device, features })
    }
}

impl<H: Hal> Balloon<H> {
    /// Its device page: the interrupt that says that [`Self::target`] changed is set up there.
    pub fn device(&mut self) -> &mut Device<H> {
        &mut self.device
    }

    /// How many pages the host would like the guest to have given.
    pub fn target(&self) -> u64 {
        loop {
            let generation = self.device.generation();
            let target = self.device.read_u64(config::BALLOON_TARGET);
            if self.device.generation() == generation {
                return target;
            }
        }
    }

    /// Gives pages to the host.
    ///
    /// # Safety
    /// The pages are RAM that nothing in the guest uses until it takes them back.
    pub unsafe fn give(&mut self, address: u64, pages: u64) -> Result<()> {
        self.run(op::GIVE, address, pages)
    }

    /// Takes pages back; they are zero.
    pub fn take(&mut self, address: u64, pages: u64) -> Result<()> {
        self.run(op::TAKE, address, pages)
    }

    /// Whether the host wants free pages reported.
    pub fn wants_reports(&self) -> bool {
        self.features & feature::BALLOON_REPORT != 0
    }

    /// Tells that the content of pages is needed no more. They stay the guest's, and are zero or as they were.
    ///
    /// # Safety
    /// Nothing in the guest needs what the pages hold.
    pub unsafe fn report(&mut self, address: u64, pages: u64) -> Result<()> {
        self.run(op::REPORT, address, pages)
    }

    fn run(&mut self, op: u8, offset: u64, argument: u64) -> Result<()> {
        let request = Request { op, offset, argument, ..Request::default() };
        // SAFETY: the request has no buffer; callers answer for the pages.
        unsafe { transfer(&self.device, &mut self.queue, request, core::ptr::null(), 0) }.map(drop)
    }
}
