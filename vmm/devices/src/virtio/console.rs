//! Console device (5.3), with one port.

use super::chain::Chain;
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn, read_config_bytes};
use crate::console::Console;
use crate::guest_mem::GuestMemory;
use crate::segment::total_bytes;

/// The queues: bytes for the driver, bytes from it.
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// The queue of bytes for the driver.
pub const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The driver may know the size of the terminal (5.3.3).
const SIZE: u64 = 1 << 0;
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
    /// Columns and rows of the terminal; 0 if nobody knows.
    size: [u16; 2],
    /// The driver knows them, too.
    has_size: bool,
    /// A driver that knows them has begun, and has no queue looked at yet.
    is_fresh: bool,
    /// It has begun since somebody asked.
    wants_size: bool,
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

    /// The terminal has so many columns and rows. Returns whether its driver is to be told of that change
    /// ([`super::mmio::Transport::config_changed`], and otherwise `config_changed_untold`).
    pub fn set_size(&mut self, columns: u16, rows: u16) -> bool {
        self.size = [columns, rows];
        self.has_size
    }

    /// Whether a driver has begun that should be told the size, though that may not have changed: Linux's does not look before.
    pub fn wants_size(&self) -> bool {
        self.wants_size
    }

    /// As [`Self::wants_size`], once.
    pub fn take_wants_size(&mut self) -> bool {
        core::mem::take(&mut self.wants_size)
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
        SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Columns and rows; the driver knows of no ports and no emergency writes (5.3.4).
    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let [columns, rows] = self.size;
        read_config_bytes(&(u32::from(columns) | u32::from(rows) << 16).to_le_bytes(), offset, into);
    }

    fn set_features(&mut self, features: u64) {
        self.has_size = features & SIZE != 0;
        self.is_fresh = self.has_size;
    }

    fn reset(&mut self) {
        (self.is_sending, self.has_size, self.is_fresh, self.wants_size) = (false, false, false, false);
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
        // Only now would a change of the configuration reach the driver.
        self.wants_size |= core::mem::take(&mut self.is_fresh);
        if index == TRANSMIT { self.transmit(memory, queue) } else { self.receive(memory, queue) }
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        match queues.get_mut(RECEIVE) {
            Some(queue) => self.receive(memory, queue),
            None => Ok(Turn::NOTHING),
        }
    }
}
