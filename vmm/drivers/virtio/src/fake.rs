//! A device for tests of its driver: the device side of `vdev`, with the registers of virtio-mmio (4.2.2), which are those of
//! PCI by other names.

use crate::device::Registers;
use crate::queue::DmaWindow;
use usys::Window;
use vdev::guest_mem::{GuestMemory, OutOfRange};
use vdev::virtio::Device;
use vdev::virtio::mmio::Transport;

/// The memory as the device sees it.
#[derive(Clone, Copy, Debug)]
struct Dma(DmaWindow);

impl Dma {
    fn offset(&self, gpa: u64) -> usize {
        gpa.wrapping_sub(self.0.address) as usize
    }
}

impl GuestMemory for Dma {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        let len = into.len();
        self.0.window.read(self.offset(gpa), into).map_err(|_| OutOfRange { gpa, len })
    }

    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let len = from.len();
        self.0.window.write(self.offset(gpa), from).map_err(|_| OutOfRange { gpa, len })
    }

    fn size_bytes(&self) -> u64 {
        self.0.window.len() as u64
    }
}

/// Where the devices of tests find their memory.
pub const ADDRESS: u64 = 0x4_0000_0000;

/// Memory of this many bytes that a device reaches.
pub fn memory(bytes: usize) -> DmaWindow {
    DmaWindow { window: Window::leak(bytes), address: ADDRESS }
}

/// A device that looks at its queues when it is notified.
#[derive(Debug)]
pub struct FakeDevice<D> {
    transport: Transport<D>,
    memory: Dma,
    /// It does not look.
    pub is_deaf: bool,
    /// Notifications that it got.
    pub notifications: u32,
}

impl<D: Device> FakeDevice<D> {
    /// The device, which reaches this memory.
    pub fn new(device: D, memory: DmaWindow) -> Self {
        let transport = Transport::new(device);
        FakeDevice { transport, memory: Dma(memory), is_deaf: false, notifications: 0 }
    }

    /// Lets the device look at its queues and at what came from outside.
    pub fn poll(&mut self) {
        let _ = self.transport.run(&mut self.memory);
        let _ = self.transport.poll(&mut self.memory);
    }

    fn get(&mut self, offset: u64) -> u32 {
        self.transport.read(offset, 4) as u32
    }

    fn set(&mut self, offset: u64, value: u32) {
        let _ = self.transport.write(offset, 4, value.into());
    }
}

impl<D: Device> Registers for FakeDevice<D> {
    fn status(&mut self) -> u8 {
        self.get(0x70) as u8
    }

    fn set_status(&mut self, status: u8) {
        self.set(0x70, status.into());
    }

    fn device_features(&mut self, high: bool) -> u32 {
        self.set(0x14, high.into());
        self.get(0x10)
    }

    fn set_driver_features(&mut self, high: bool, features: u32) {
        self.set(0x24, high.into());
        self.set(0x20, features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.set(0x30, queue.into());
        self.get(0x34) as u16
    }

    fn enable_queue(&mut self, queue: u16, size: u16, areas: [u64; 3]) {
        self.set(0x30, queue.into());
        self.set(0x38, size.into());
        for (field, address) in [0x80, 0x90, 0xa0].into_iter().zip(areas) {
            self.set(field, address as u32);
            self.set(field + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    fn config(&mut self, offset: usize) -> u32 {
        self.get(0x100 + offset as u64)
    }

    fn notify(&mut self, queue: u16) {
        self.notifications += 1;
        self.set(0x50, queue.into());
        if !self.is_deaf {
            let _ = self.transport.run(&mut self.memory);
        }
    }
}
