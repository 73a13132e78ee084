//! Entropy device (5.4).

use super::chain::Chain;
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn};
use crate::entropy::Entropy;
use crate::guest_mem::GuestMemory;
use crate::segment::total_bytes;
use alloc::boxed::Box;
use core::fmt;

/// Descriptors of the queue.
const QUEUE_SIZES: [u16; 1] = [8];
/// Most bytes that a request gets: a driver asks again.
const MOST_BYTES: usize = 256;

/// The front end of a source of random bytes.
pub struct EntropyDevice {
    source: Box<dyn Entropy>,
    chain: Chain,
}

impl fmt::Debug for EntropyDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntropyDevice").finish_non_exhaustive()
    }
}

impl EntropyDevice {
    /// A device with this source.
    pub fn new(source: Box<dyn Entropy>) -> Self {
        EntropyDevice { source, chain: Chain::new() }
    }
}

impl Device for EntropyDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, into: &mut [u8]) {
        into.fill(0);
    }

    fn reset(&mut self) {}

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(Turn::NOTHING);
        };
        for _ in 0..queue.size() {
            if !queue.pop_or_arm(memory, &mut self.chain)? {
                return queue.end_turn(memory, false);
            }
            let mut bytes = [0; MOST_BYTES];
            let room = total_bytes(self.chain.writable()).min(MOST_BYTES as u64) as usize;
            let len = self.source.fill(&mut bytes[..room]).min(room);
            let written = self.chain.write(memory, &bytes[..len])?;
            queue.push(memory, self.chain.head(), written as u32)?;
        }
        queue.end_turn(memory, true)
    }
}
