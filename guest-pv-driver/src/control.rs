//! The end of the VM, and its log.

use crate::device::Device;
use crate::error::Result;
use crate::hal::Hal;
use crate::queue::{Queue, QueueMemory};
use crate::transfer::transfer;
use hypercall_abi::guest::device::Kind;
use hypercall_abi::guest::op;
use hypercall_abi::guest::ring::Request;

/// The control device.
#[derive(Debug)]
pub struct Control<H: Hal> {
    queue: Queue<H>,
    device: Device<H>,
}

impl<H: Hal + Clone> Control<H> {
    /// Starts the device with its page at this guest-physical address.
    pub fn new(hal: H, address: u64, memory: &'static mut QueueMemory) -> Result<Self> {
        let mut device = Device::open_kind(hal, address, Kind::Control)?;
        device.negotiate(0);
        let queue = device.attach(0, memory)?;
        device.start()?;
        Ok(Control { queue, device })
    }
}

impl<H: Hal> Control<H> {
    /// Writes a line into the VM's log on the host.
    pub fn log(&mut self, line: &str) -> Result<()> {
        let request = Request { op: op::WRITE, ..Request::default() };
        // SAFETY: the text is borrowed for the call, and the device only reads it.
        unsafe { transfer(&self.device, &mut self.queue, request, line.as_ptr(), line.len()) }.map(drop)
    }

    /// Turns the machine off. Returns only if the host did not.
    pub fn power_off(&mut self) -> Result<()> {
        self.run(op::POWER_OFF, 0)
    }

    /// Resets the machine. Returns only if the host did not.
    pub fn reset(&mut self) -> Result<()> {
        self.run(op::RESET, 0)
    }

    /// Ends the VM with an exit code. Returns only if the host did not end it.
    pub fn exit(&mut self, code: u32) -> Result<()> {
        self.run(op::EXIT, code.into())
    }

    fn run(&mut self, op: u8, argument: u64) -> Result<()> {
        let request = Request { op, argument, ..Request::default() };
        // SAFETY: the request has no buffer.
        unsafe { transfer(&self.device, &mut self.queue, request, core::ptr::null(), 0) }.map(drop)
    }
}
