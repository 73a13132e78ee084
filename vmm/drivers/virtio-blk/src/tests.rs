//! The driver's side of the queue, and the device's side of `vdev`.

use crate::device::{Device, QUEUE_BYTES, QUEUE_SIZE};
use alloc::boxed::Box;
use alloc::vec;
use block_channel::FLUSH_PATIENCE_MS;
use usys::Window;
use vdev::block::{Disk, MemoryDisk};
use vdev::virtio::block::Block;
use virtio_driver::fake::{ADDRESS, FakeDevice, memory};
use virtio_driver::{Broken, DmaWindow, Queue, SetupError};
use vmm_protocol::block::{DiskInfo, Operation, Request, SLOTS, Status};

/// Where the data of a request is, behind the queue.
const DATA: usize = QUEUE_BYTES;
const BYTES: usize = DATA + SLOTS * 4096;
const SECTORS: usize = 64;

fn block(is_read_only: bool) -> Block {
    let content = vec![0; SECTORS * 512].leak();
    let disk = if is_read_only { MemoryDisk::read_only(content) } else { MemoryDisk::writable(content) };
    Block::new(Disk::new(Box::new(disk)), [0; 20], 1)
}

/// A driver with the registers that its device has behind them.
fn over(registers: FakeDevice<Block>, window: Window) -> Result<Device<FakeDevice<Block>>, SetupError> {
    let len = window.len().min(QUEUE_BYTES);
    Device::new(registers, DmaWindow { window: window.slice(0, len).unwrap(), address: ADDRESS })
}

fn device(is_read_only: bool) -> (Device<FakeDevice<Block>>, Window) {
    let memory = memory(BYTES);
    (over(FakeDevice::new(block(is_read_only), memory), memory.window).unwrap(), memory.window)
}

fn request(slot: u8, operation: Operation, sector: u64) -> Request {
    Request { slot, operation, sector, count: if operation == Operation::Flush { 0 } else { 8 } }
}

fn data(slot: u8) -> usize {
    DATA + 4096 * usize::from(slot)
}

fn run(device: &mut Device<FakeDevice<Block>>, request: Request) -> Status {
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
fn a_device_that_flushes_has_as_long_as_a_drive() {
    let (mut device, _) = device(false);
    let submit = |device: &mut Device<_>, slot, operation| {
        assert_eq!(device.submit(&request(slot, operation, 0), ADDRESS + data(slot) as u64), None);
        device.publish();
    };
    submit(&mut device, 0, Operation::Write);
    let usual = device.patience_ms();
    assert!(usual < FLUSH_PATIENCE_MS);
    submit(&mut device, 1, Operation::Flush);
    submit(&mut device, 2, Operation::Read);
    for left in [FLUSH_PATIENCE_MS, FLUSH_PATIENCE_MS, usual] {
        assert_eq!(device.patience_ms(), left);
        assert!(device.take_completed().unwrap().is_some());
    }
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
        let used = Queue::used_at(QUEUE_SIZE);
        window.write(used + 4, &id.to_le_bytes()).unwrap();
        window.write(used + 2, &1u16.to_le_bytes()).unwrap();
        assert_eq!(device.take_completed(), Err(Broken), "{id}");
    }
}

#[test]
fn a_device_that_asks_for_a_reset_is_noticed() {
    let (mut device, _) = device(false);
    // No memory: the device side stops.
    assert_eq!(device.submit(&request(0, Operation::Read, 0), 0x10), None);
    device.publish();
    assert_eq!(device.take_completed(), Err(Broken));
}

#[test]
fn memory_that_is_too_short_is_refused() {
    let memory = memory(QUEUE_BYTES - 8);
    let device = over(FakeDevice::new(block(false), memory), memory.window);
    assert_eq!(device.map(drop).unwrap_err(), SetupError::Memory);
}
