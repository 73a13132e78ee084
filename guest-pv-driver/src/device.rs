//! A device page: identity, negotiation, queues, start and reset (SPEC.md 11.2).

use crate::error::{Error, Result};
use crate::hal::Hal;
use crate::queue::{Queue, QueueMemory};
use core::ptr::NonNull;
use hypercall_abi::guest::DOORBELL_CALL;
use hypercall_abi::guest::device::{Fault, Interrupt, Kind, MAGIC, State, reg};
use hypercall_abi::guest::ring;

/// A device, by its page. Dropping it resets the device.
#[derive(Debug)]
pub struct Device<H: Hal> {
    hal: H,
    address: u64,
}

impl<H: Hal + Clone> Device<H> {
    /// The device with its page at this guest-physical address, in reset.
    pub fn open(hal: H, address: u64) -> Result<Self> {
        if hal.read_register(address + reg::MAGIC) != MAGIC {
            return Err(Error::NoDevice);
        }
        let device = Device { hal, address };
        device.reset();
        Ok(device)
    }

    /// The device at this address if it is of this kind, in reset.
    pub fn open_kind(hal: H, address: u64, kind: Kind) -> Result<Self> {
        let device = Self::open(hal, address)?;
        if device.kind() == Some(kind) { Ok(device) } else { Err(Error::WrongKind) }
    }

    /// Configures a queue in `memory`, before [`Self::start`].
    pub fn attach(&mut self, index: u32, memory: &'static mut QueueMemory) -> Result<Queue<H>> {
        if index >= self.read(reg::QUEUES) {
            return Err(Error::NoQueue);
        }
        let len = size_of::<QueueMemory>();
        *memory = QueueMemory::new();
        let memory = NonNull::from(memory).cast::<u8>();
        let (address, contiguous) = self.hal.translate(memory.as_ptr(), len);
        let largest = self.read(reg::QUEUE_SIZE_MAX).min(ring::PAGE_SIZE_MAX);
        if contiguous < len || !address.is_multiple_of(ring::ALIGNMENT) || largest == 0 {
            return Err(Error::BadMemory);
        }
        let size = 1 << largest.ilog2();
        let queue = queue_register(index);
        self.write_u64(queue + reg::QUEUE_ADDRESS, address);
        self.write(queue + reg::QUEUE_SIZE, size);
        let call = DOORBELL_CALL + u64::from(self.read(reg::DOORBELL)) + u64::from(index);
        Ok(Queue::new(self.hal.clone(), memory, size, call))
    }
}

impl<H: Hal> Device<H> {
    /// What it is; `None` for a kind of a later version.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.read(reg::KIND))
    }

    /// Accepts those of the `wanted` features that the device offers, and returns them.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        let accepted = self.offered() & wanted;
        self.write_u64(reg::ACCEPTED, accepted);
        accepted
    }

    /// The features that it offers.
    pub fn offered(&self) -> u64 {
        self.read_u64(reg::OFFERED)
    }

    /// Has completions in a queue raise this interrupt, where the queue asks for one.
    pub fn set_queue_interrupt(&mut self, index: u32, interrupt: Option<Interrupt>) {
        self.write_u64(queue_register(index) + reg::QUEUE_INTERRUPT, interrupt.map_or(0, Interrupt::encode));
    }

    /// Has a change of the configuration, and the device's end by a fault, raise this interrupt.
    pub fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        self.write_u64(reg::INTERRUPT, interrupt.map_or(0, Interrupt::encode));
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        self.write(reg::STATE, State::Running as u32);
        match self.state() {
            Some(State::Running) => Ok(()),
            _ => Err(Error::Stopped(self.fault())),
        }
    }

    /// Resets it: it touches no memory from now on. Its queues are of no use any more.
    pub fn reset(&self) {
        self.write(reg::STATE, State::Reset as u32);
    }

    /// What it does.
    pub fn state(&self) -> Option<State> {
        State::from_raw(self.read(reg::STATE))
    }

    /// Why it stopped, if it did.
    pub fn fault(&self) -> Option<Fault> {
        Fault::from_raw(self.read(reg::FAULT))
    }

    /// Changes when the configuration changes.
    pub fn generation(&self) -> u32 {
        self.read(reg::GENERATION)
    }

    /// Reads a 32-bit register.
    pub fn read(&self, register: u64) -> u32 {
        self.hal.read_register(self.address + register)
    }

    /// Reads a 64-bit register that does not change while it is read.
    pub fn read_u64(&self, register: u64) -> u64 {
        u64::from(self.read(register)) | u64::from(self.read(register + 4)) << 32
    }

    fn write(&self, register: u64, value: u32) {
        self.hal.write_register(self.address + register, value);
    }

    fn write_u64(&self, register: u64, value: u64) {
        self.write(register, value as u32);
        self.write(register + 4, (value >> 32) as u32);
    }
}

impl<H: Hal> Drop for Device<H> {
    fn drop(&mut self) {
        self.reset();
    }
}

fn queue_register(index: u32) -> u64 {
    reg::QUEUE + reg::QUEUE_STRIDE * u64::from(index)
}
