//! Console device (5.3), with one port.

use super::chain::Chain;
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn};
use crate::console::Console;
use crate::guest_mem::GuestMemory;
use crate::segment::total_bytes;

/// The queues: bytes for the driver, bytes from it.
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// The queue of bytes for the driver.
pub const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes that are copied at a time.
const PIECE: usize = 256;

/// The front end of a [`Console`].
#[derive(Debug, Default)]
pub struct ConsoleDevice {
    console: Console,
    /// A buffer for input.
    chain: Chain,
    /// What is left of the driver's output.
    outgoing: Chain,
    /// The chain of [`Self::outgoing`] was not given back yet.
    is_sending: bool,
}

impl ConsoleDevice {
    /// A console with nothing typed and nothing shown.
    pub fn new() -> Self {
        Self::default()
    }

    /// The console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The console. After it got input, its queue [`RECEIVE`] is to be looked at.
    pub fn console_mut(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Takes what the driver wrote, as far as there is room; whether that was all of the chain.
    fn send<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, DriverError> {
        let mut piece = [0; PIECE];
        loop {
            let left = total_bytes(self.outgoing.readable());
            let len = left.min(self.console.room().min(PIECE) as u64) as usize;
            if len == 0 {
                return Ok(left == 0);
            }
            self.outgoing.take(memory, &mut piece[..len])?;
            self.console.put_output(&piece[..len]);
        }
    }

    /// Takes what the driver wrote, for one turn, or until somebody has to take it from here.
    fn transmit<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<Turn, DriverError> {
        for _ in 0..queue.size() {
            if !self.is_sending && !queue.pop_or_arm(memory, &mut self.outgoing)? {
                return queue.end_turn(memory, false);
            }
            self.is_sending = !self.send(memory)?;
            if self.is_sending {
                break;
            }
            queue.push(memory, self.outgoing.head(), 0)?;
        }
        queue.end_turn(memory, true)
    }

    /// Gives the driver input as far as it has buffers.
    fn receive<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<Turn, DriverError> {
        for _ in 0..queue.size() {
            if !self.console.has_input() || !queue.pop_or_arm(memory, &mut self.chain)? {
                return queue.end_turn(memory, false);
            }
            let mut piece = [0; PIECE];
            let room = total_bytes(self.chain.writable()).min(PIECE as u64) as usize;
            let len = self.console.take_input(&mut piece[..room]);
            let written = self.chain.write(memory, &piece[..len])?;
            queue.push(memory, self.chain.head(), written as u32)?;
        }
        queue.end_turn(memory, true)
    }
}

impl Device for ConsoleDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
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

    fn reset(&mut self) {
        self.is_sending = false;
    }

    fn queue_stopped(&mut self, index: usize) {
        self.is_sending &= index != TRANSMIT;
    }

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(Turn::NOTHING);
        };
        if index == TRANSMIT { self.transmit(memory, queue) } else { self.receive(memory, queue) }
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        match queues.get_mut(RECEIVE) {
            Some(queue) => self.receive(memory, queue),
            None => Ok(Turn::NOTHING),
        }
    }
}
