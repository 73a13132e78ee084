//! Console device (5.3), with one port.

use super::chain::Chain;
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn};
use crate::console::Console;
use crate::guest_mem::GuestMemory;
use crate::segment::{Cursor, total_bytes};

/// The queues: bytes for the driver, bytes from it.
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// The queue of bytes for the driver.
pub const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Most bytes that one buffer carries out: a driver's are pages.
const MOST_OUTPUT: u64 = 64 << 10;
/// Bytes that are copied at a time.
const PIECE: usize = 256;

/// The front end of a [`Console`].
#[derive(Debug, Default)]
pub struct ConsoleDevice {
    console: Console,
    chain: Chain,
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

    /// Takes what the driver wrote. No driver writes so much at once that it must be cut.
    fn send<M: GuestMemory>(&mut self, memory: &M) -> Result<(), DriverError> {
        if total_bytes(self.chain.readable()) > MOST_OUTPUT {
            return Err(DriverError::Request);
        }
        let mut cursor = Cursor::new(self.chain.readable());
        let mut piece = [0; PIECE];
        loop {
            match cursor.read(memory, &mut piece)? {
                0 => return Ok(()),
                len => self.console.put_output(&piece[..len]),
            }
        }
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
        if index != TRANSMIT {
            return self.receive(memory, queue);
        }
        for _ in 0..queue.size() {
            if !queue.pop_or_arm(memory, &mut self.chain)? {
                return queue.end_turn(memory, false);
            }
            self.send(memory)?;
            queue.push(memory, self.chain.head(), 0)?;
        }
        queue.end_turn(memory, true)
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        match queues.get_mut(RECEIVE) {
            Some(queue) => self.receive(memory, queue),
            None => Ok(Turn::NOTHING),
        }
    }
}
