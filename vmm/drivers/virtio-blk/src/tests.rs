//! The driver's side of the queue, and the device's side of `vdev`.

use crate::device::{Broken, Device, DmaWindow, QUEUE_BYTES, QUEUE_SIZE, Registers, SetupError};
use alloc::boxed::Box;
use alloc::vec;
use usys::Window;
use vdev::block::{Disk, MemoryDisk};
use vdev::guest_mem::{GuestMemory, OutOfRange};
use vdev::virtio::block::Block;
use vdev::virtio::mmio::Transport;
use vmm_protocol::block::{DiskInfo, Operation, Request, SLOTS, Status};

/// Where the device finds the memory.
const ADDRESS: u64 = 0x4_0000_0000;
/// Where the data of a request is, behind the queue.
const DATA: usize = QUEUE_BYTES;
const BYTES: usize = DATA + SLOTS * 4096;
const SECTORS: usize = 64;

/// The memory as the device sees it.
struct Dma(Window);

impl GuestMemory for Dma {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        let len = into.len();
        let offset = gpa.wrapping_sub(ADDRESS) as usize;
        self.0.read(offset, into).map_err(|_| OutOfRange { gpa, len })
    }

    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        let len = from.len();
        let offset = gpa.wrapping_sub(ADDRESS) as usize;
        self.0.write(offset, from).map_err(|_| OutOfRange { gpa, len })
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A device with the registers of virtio-mmio (4.2.2), which are the same by other names.
struct Fake {
    transport: Transport<Block>,
    memory: Window,
    /// It does not look at its queue.
    is_deaf: bool,
}

impl Fake {
    fn new(memory: Window, is_read_only: bool) -> Self {
        let content = vec![0; SECTORS * 512].leak();
        let disk = if is_read_only { MemoryDisk::read_only(content) } else { MemoryDisk::writable(content) };
        let block = Block::new(Disk::new(Box::new(disk)), [0; 20], 1);
        Fake { transport: Transport::new(block), memory, is_deaf: false }
    }

    fn get(&mut self, offset: u64) -> u32 {
        self.transport.read(offset, 4) as u32
    }

    fn set(&mut self, offset: u64, value: u32) {
        let _ = self.transport.write(offset, 4, value.into());
    }
}

impl Registers for Fake {
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

    fn max_queue_size(&mut self) -> u16 {
        self.set(0x30, 0);
        self.get(0x34) as u16
    }

    fn enable_queue(&mut self, size: u16, areas: [u64; 3]) {
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

    fn notify(&mut self) {
        self.set(0x50, 0);
        if !self.is_deaf {
            let _ = self.transport.run(&mut Dma(self.memory));
        }
    }
}

fn device(is_read_only: bool) -> (Device<Fake>, Window) {
    let window = Window::leak(BYTES);
    let memory = DmaWindow { window: window.slice(0, QUEUE_BYTES).unwrap(), address: ADDRESS };
    (Device::new(Fake::new(window, is_read_only), memory).unwrap(), window)
}

fn request(slot: u8, operation: Operation, sector: u64) -> Request {
    Request { slot, operation, sector, count: if operation == Operation::Flush { 0 } else { 8 } }
}

fn data(slot: u8) -> usize {
    DATA + 4096 * usize::from(slot)
}

fn run(device: &mut Device<Fake>, request: Request) -> Status {
    if let Some(status) = device.submit(&request, ADDRESS + data(request.slot) as u64) {
        return status;
    }
    device.publish();
    let (slot, status) = device.take_completed().unwrap().expect("the device is done at once");
    assert_eq!(slot, request.slot);
    assert_eq!(device.take_completed(), Ok(None));
    status
}

#[test]
fn sectors_are_read_back_as_written() {
    let (mut device, window) = device(false);
    assert_eq!(device.disk(), DiskInfo { sectors: 64, is_read_only: false, has_cache: true });
    // Often enough for the rings to wrap.
    for round in 0..300u64 {
        let (from, into) = ((round % 31) as u8, 31);
        window.write(data(from), &(round << 8 | 0x5a).to_le_bytes()).unwrap();
        assert_eq!(run(&mut device, request(from, Operation::Write, round % 8 * 8)), Status::Done);
        assert_eq!(run(&mut device, request(0, Operation::Flush, 0)), Status::Done);
        assert_eq!(run(&mut device, request(into, Operation::Read, round % 8 * 8)), Status::Done);
        assert_eq!(window.read_u64(data(into)), Ok(round << 8 | 0x5a));
    }
}

#[test]
fn every_slot_can_be_at_the_device_at_once_but_none_twice() {
    let (mut device, _) = device(false);
    for slot in 0..SLOTS as u8 {
        assert_eq!(device.submit(&request(slot, Operation::Read, 0), ADDRESS + data(slot) as u64), None);
    }
    let again = device.submit(&request(3, Operation::Read, 0), ADDRESS + data(3) as u64);
    assert_eq!(again, Some(Status::Unsupported));
    assert_eq!(device.in_flight(), SLOTS);
    device.publish();
    for slot in 0..SLOTS as u8 {
        assert_eq!(device.take_completed(), Ok(Some((slot, Status::Done))));
    }
    assert_eq!((device.take_completed(), device.in_flight()), (Ok(None), 0));
}

#[test]
fn what_the_device_refuses_is_an_error() {
    let (mut writable, _) = device(false);
    assert_eq!(run(&mut writable, request(0, Operation::Read, 60)), Status::Io);
    let (mut read_only, _) = device(true);
    assert!(read_only.disk().is_read_only);
    assert_eq!(run(&mut read_only, request(0, Operation::Write, 0)), Status::Io);
}

#[test]
fn a_device_that_gives_back_what_it_was_not_given_is_broken() {
    for id in [0u32, 1, 95, 96, 127, u32::MAX] {
        let (mut device, window) = device(false);
        window.write(4096 + 4, &id.to_le_bytes()).unwrap();
        window.write(4096 + 2, &1u16.to_le_bytes()).unwrap();
        assert_eq!(device.take_completed(), Err(Broken), "{id}");
        device.set_up().unwrap();
        assert_eq!(run(&mut device, request(0, Operation::Read, 0)), Status::Done);
    }
}

#[test]
fn a_device_that_asks_for_a_reset_is_noticed() {
    let (mut device, _) = device(false);
    // No memory: the device side stops.
    assert_eq!(device.submit(&request(0, Operation::Read, 0), 0x10), None);
    device.publish();
    assert_eq!(device.take_completed(), Err(Broken));
    device.set_up().unwrap();
    assert_eq!(device.in_flight(), 0);
    assert_eq!(run(&mut device, request(0, Operation::Read, 0)), Status::Done);
}

#[test]
fn memory_that_is_too_short_is_refused() {
    let window = Window::leak(QUEUE_BYTES - 8);
    let memory = DmaWindow { window, address: ADDRESS };
    let device = Device::new(Fake::new(window, false), memory);
    assert_eq!(device.map(drop).unwrap_err(), SetupError::Memory);
    assert!(QUEUE_SIZE.is_power_of_two());
}
