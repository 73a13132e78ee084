//! The console.

use super::*;
use crate::virtio::console::ConsoleDevice;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn console() -> Driver<ConsoleDevice> {
    Driver::new(ConsoleDevice::new(), EVENT_IDX, 8)
}

#[test]
fn what_the_driver_writes_comes_out_in_order() {
    let mut driver = console();
    assert_eq!(driver.read(0x008), 3);
    driver.select(TRANSMIT);
    let text: Vec<u8> = (0..700u16).map(|at| at as u8).collect();
    driver.memory.write(DATA, &text).unwrap();
    driver.transfer(&[Buffer::Read(DATA, 1), Buffer::Read(DATA + 1, 699)]);
    driver.transfer(&[Buffer::Read(DATA, 2)]);
    let output: Vec<u8> = driver.device.device_mut().console_mut().take_output().collect();
    assert_eq!(output, [&text[..], &text[..2]].concat());
}

#[test]
fn input_waits_until_the_driver_has_buffers() {
    let mut driver = console();
    driver.select(RECEIVE);
    driver.device.device_mut().console_mut().queue_input(b"hello");
    driver.poll();
    assert_eq!(driver.interrupts, 0);
    let old = driver.available_index();
    driver.offer(&[Buffer::Write(DATA, 3)]);
    assert!(driver.must_notify(old), "input waits for it");
    driver.offer(&[Buffer::Write(DATA + 3, 100)]);
    driver.notify();
    assert_eq!(driver.take_used(), [(0, 3), (1, 2)]);
    assert_eq!((driver.bytes(DATA, 6), driver.interrupts), (b"hello\0".to_vec(), 1));
    driver.offer(&[Buffer::Write(DATA, 3)]);
    driver.notify();
    assert!(driver.take_used().is_empty());
    driver.device.device_mut().console_mut().queue_input(b"!");
    driver.poll();
    assert_eq!(driver.take_used(), [(2, 1)]);
}

#[test]
fn a_driver_that_writes_more_than_any_buffer_holds_is_stopped() {
    let mut driver = console();
    driver.select(TRANSMIT);
    driver.offer(&[Buffer::Read(DATA, 40_000), Buffer::Read(DATA, 40_000)]);
    driver.notify();
    assert_eq!(driver.device.take_error(), Some(DriverError::Request));
}
