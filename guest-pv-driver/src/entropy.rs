//! Random bytes.

use crate::device::Device;
use crate::error::Result;
use crate::hal::Hal;
use crate::queue::{Queue, QueueMemory};
use crate::transfer::transfer;
use hypercall_abi::guest::device::Kind;
use hypercall_abi::guest::op;
use hypercall_abi::guest::ring::Request;

/// The paravirtual random number generator. With the feature `rand_core` it is a `TryRng`.
#[derive(Debug)]
pub struct Entropy<H: Hal> {
    queue: Queue<H>,
    device: Device<H>,
}

impl<H: Hal + Clone> Entropy<H> {
    /// Starts the device with its page at this guest-physical address.
    pub fn new(hal: H, address: u64, memory: &'static mut QueueMemory) -> Result<Self> {
        let mut device = Device::open_kind(hal, address, Kind::Entropy)?;
        device.negotiate(0);
        let queue = device.attach(0, memory)?;
        device.start()?;
        Ok(Entropy { queue, device })
    }
}

impl<H: Hal> Entropy<H> {
    /// Fills all of `into`.
    pub fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let rest = &mut into[done..];
            let request = Request { op: op::READ, ..Request::default() };
            // SAFETY: the slice is borrowed for the call, and may be written.
            done += unsafe {
                transfer(&self.device, &mut self.queue, request, rest.as_mut_ptr(), rest.len())?
                    .min(rest.len())
            };
        }
        Ok(())
    }
}

#[cfg(feature = "rand_core")]
impl<H: Hal> rand_core::TryRng for Entropy<H> {
    type Error = crate::Error;

    fn try_next_u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<()> {
        self.fill(into)
    }
}

#[cfg(feature = "rand_core")]
impl<H: Hal> rand_core::TryCryptoRng for Entropy<H> {}
