//! The balloon.

use super::*;
use crate::balloon::{Balloon, MemoryStats, PAGE_BYTES, PIECE_BYTES};
use crate::guest_mem::{OutOfRange, VecMemory};
use crate::virtio::balloon::BalloonDevice;
use crate::virtio::driver::MEMORY_BYTES;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTS: usize = 3;
const STATS_VQ: u64 = 1 << 1;
const PAGE_REPORTING: u64 = 1 << 5;
const RAM: u64 = 8 << 20;

/// A driver in the first MiB of a guest that has eight.
fn balloon() -> Driver<BalloonDevice> {
    let device = BalloonDevice::new(Balloon::new(core::iter::once(0..RAM), true));
    Driver::new(device, EVENT_IDX | STATS_VQ | PAGE_REPORTING, 8)
}

impl Driver<BalloonDevice> {
    /// Sends page numbers on a queue.
    fn send(&mut self, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.memory.write(DATA, &bytes).unwrap();
        self.select(queue);
        self.transfer(&[Buffer::Read(DATA, bytes.len() as u32)]);
    }

    fn given(&self) -> u64 {
        self.device.device().balloon().given()
    }
}

#[test]
fn pages_go_and_come_back_by_number() {
    let mut driver = balloon();
    assert_eq!(driver.read(0x008), 5);
    driver.send(INFLATE, &[512, 513, 2047, 513]);
    assert_eq!(driver.given(), 3);
    driver.send(DEFLATE, &[513, 600]);
    assert_eq!(driver.given(), 2);
    driver.write(0x070, 0);
    assert_eq!(driver.given(), 0, "a reset gives all of it back");
}

#[test]
fn the_target_is_in_the_configuration_and_a_change_interrupts() {
    let mut driver = balloon();
    assert_eq!(driver.read(0x100), 0);
    assert!(driver.device.device_mut().set_target(4096));
    assert_eq!(driver.device.config_changed(), super::super::mmio::Line::Raised);
    assert_eq!((driver.read(0x100), driver.read(0x060)), (4096, 2));
    assert!(!driver.device.device_mut().set_target(4096));
    driver.write(0x104, 77);
    assert_eq!(driver.read(0x104), 77);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut driver = balloon();
    let statistic =
        |tag: u16, pages: u64| [&tag.to_le_bytes()[..], &(pages * PAGE_BYTES).to_le_bytes()].concat();
    let bytes = [statistic(5, 2000), statistic(77, 1), statistic(4, 300), statistic(6, 400)].concat();
    driver.memory.write(DATA, &bytes).unwrap();
    driver.select(STATISTICS);
    driver.offer(&[Buffer::Read(DATA, bytes.len() as u32)]);
    driver.notify();
    assert!(driver.take_used().is_empty(), "the device keeps the buffer");
    let stats = MemoryStats { free_pages: 300, available_pages: 400, total_pages: 2000 };
    assert_eq!(driver.device.device().balloon().stats(), stats);
    driver.poll();
    assert!(driver.take_used().is_empty());
    driver.device.device_mut().set_target(1);
    assert_eq!(driver.device.config_changed(), super::super::mmio::Line::Raised);
    driver.poll();
    assert_eq!(driver.take_used(), [(0, 0)]);
}

#[test]
fn pages_outside_of_ram_stop_the_device() {
    for (queue, page) in [(INFLATE, (RAM / PAGE_BYTES) as u32), (INFLATE, u32::MAX), (DEFLATE, 0x10_0000)] {
        let mut driver = balloon();
        driver.memory.write_u32(DATA, page).unwrap();
        driver.select(queue);
        driver.offer(&[Buffer::Read(DATA, 4)]);
        driver.notify();
        let gpa = u64::from(page) * PAGE_BYTES;
        let expected = DriverError::Memory(OutOfRange { gpa, len: PAGE_BYTES as usize });
        assert_eq!(driver.device.take_error(), Some(expected));
    }
    for gpa in [RAM, u64::MAX - 4095, RAM - PAGE_BYTES] {
        let mut driver = balloon();
        driver.select(REPORTS);
        driver.offer(&[Buffer::Write(gpa, 2 * PAGE_BYTES as u32)]);
        driver.notify();
        assert!(matches!(driver.device.take_error(), Some(DriverError::Memory(_))), "{gpa:#x}");
    }
}

#[test]
fn requests_of_strange_lengths_stop_the_device() {
    for len in [3, 5, 65_540] {
        let mut driver = balloon();
        driver.offer(&[Buffer::Read(DATA, len)]);
        driver.notify();
        assert_eq!(driver.device.take_error(), Some(DriverError::Request), "{len}");
    }
}

/// A guest's memory that takes away what it may: then it reads as zero.
struct Owned {
    memory: VecMemory,
    discarded: Vec<u64>,
}

impl GuestMemory for Owned {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        self.memory.read(gpa, into)
    }
    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        self.memory.write(gpa, from)
    }
    fn size_bytes(&self) -> u64 {
        self.memory.size_bytes()
    }
    fn discard(&mut self, gpa: u64, bytes: u64) {
        self.discarded.push(gpa);
        let there = (MEMORY_BYTES as u64).saturating_sub(gpa).min(bytes) as usize;
        if there > 0 {
            self.memory.write(gpa, &vec![0; there]).unwrap();
        }
    }
}

#[test]
fn free_memory_that_is_reported_goes_in_whole_pieces() {
    let mut driver = balloon();
    driver.select(REPORTS);
    driver.offer(&[
        Buffer::Write(PIECE_BYTES, PIECE_BYTES as u32),
        Buffer::Write(3 * PIECE_BYTES - 4096, PIECE_BYTES as u32 + 4096),
    ]);
    let mut owned = Owned { memory: driver.memory.clone(), discarded: Vec::new() };
    let _ = driver.device.write(0x050, 4, REPORTS as u64);
    let _ = driver.device.run(&mut owned);
    assert_eq!((driver.device.take_error(), owned.discarded), (None, vec![PIECE_BYTES, 3 * PIECE_BYTES]));
    assert_eq!(driver.given(), 0, "the pages stay the guest's");
}

#[test]
fn a_driver_that_gives_its_own_rings_loses_them_and_nothing_else() {
    let mut driver = balloon();
    let mut owned = Owned { memory: driver.memory.clone(), discarded: Vec::new() };
    driver.select(INFLATE);
    for first in (0..512).step_by(128) {
        let pages: Vec<u8> = (first..first + 128u32).flat_map(u32::to_le_bytes).collect();
        driver.memory.write(DATA, &pages).unwrap();
        driver.offer(&[Buffer::Read(DATA, pages.len() as u32)]);
        owned.memory = driver.memory.clone();
        let _ = driver.device.write(0x050, 4, INFLATE as u64);
        let _ = driver.device.run(&mut owned);
        driver.memory = owned.memory.clone();
        driver.take_used();
    }
    // The available index is 0 now, which is not ahead of the device's: it is too far behind.
    assert_eq!(owned.discarded, [0]);
    let _ = driver.device.write(0x050, 4, INFLATE as u64);
    let _ = driver.device.run(&mut owned);
    assert_eq!(driver.device.take_error(), Some(DriverError::AvailableIndex(0)));
}
