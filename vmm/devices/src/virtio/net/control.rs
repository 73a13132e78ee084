//! The control queue (5.1.6.5): how many pairs of queues the driver uses.

use super::{Net, feature};
use crate::guest_mem::GuestMemory;
use crate::virtio::queue::Queue;
use crate::virtio::{DriverError, Turn};

/// Class of commands about pairs of queues, and the command that says how many are in use (5.1.6.5.5).
const MQ: u8 = 4;
const VQ_PAIRS_SET: u8 = 0;
/// Answers.
const OK: u8 = 0;
const ERROR: u8 = 1;

impl Net {
    /// The number of the control queue, if the driver has one: behind those of the frames that it knows of (5.1.2).
    pub(super) fn control_queue(&self) -> Option<usize> {
        let pairs = if self.has(feature::MQ) { self.pairs.into() } else { 1 };
        self.has(feature::CTRL_VQ).then_some(2 * pairs)
    }

    /// Carries out commands, for one turn.
    pub(super) fn control<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queue: &mut Queue,
    ) -> Result<Turn, DriverError> {
        for _ in 0..queue.size() {
            if !queue.pop_or_arm(memory, &mut self.chain)? {
                return queue.end_turn(memory, false);
            }
            let answer = self.command(memory)?;
            if self.chain.write(memory, &[answer])? == 0 {
                return Err(DriverError::Request);
            }
            queue.push(memory, self.chain.head(), 1)?;
        }
        queue.end_turn(memory, true)
    }

    /// Carries out the command in the chain. One that was not offered is an error.
    fn command<M: GuestMemory>(&mut self, memory: &M) -> Result<u8, DriverError> {
        let mut command = [0; 2];
        self.chain.take(memory, &mut command)?;
        if command != [MQ, VQ_PAIRS_SET] || !self.has(feature::MQ) {
            return Ok(ERROR);
        }
        let mut pairs = [0; 2];
        self.chain.take(memory, &mut pairs)?;
        let pairs = u16::from_le_bytes(pairs);
        if !(1..=self.pairs).contains(&pairs) {
            return Ok(ERROR);
        }
        self.steering.set_pairs(pairs);
        Ok(OK)
    }
}
