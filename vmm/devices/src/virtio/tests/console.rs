//! The console.

use super::*;
use crate::console::OUTPUT_BYTES;
use crate::virtio::console::ConsoleDevice;
use crate::virtio::mmio::Line;

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
fn a_driver_that_begins_is_told_the_size_and_hears_of_another() {
    const SIZE: u64 = 1;
    let mut driver = Driver::new(ConsoleDevice::new(), SIZE, 8);
    assert!(driver.device.device_mut().take_wants_size());
    assert!(driver.device.device_mut().set_size(132, 50));
    assert_eq!(driver.device.config_changed(), Line::Raised);
    assert_eq!((driver.read(0x060), driver.read(0x100)), (2, 50 << 16 | 132));
    assert!(!driver.device.device_mut().wants_size());
    assert_eq!(driver.device.write(0x064, 4, 2), Line::Lowered);
    driver.start(SIZE, 8);
    assert_eq!(driver.read(0x100), 50 << 16 | 132, "the terminal is the same");
    assert!(driver.device.device_mut().wants_size());
    let mut other = console();
    assert!(!other.device.device_mut().wants_size());
    assert!(!other.device.device_mut().set_size(80, 25), "it did not ask for that feature");
    other.device.config_changed_untold();
    assert_eq!((other.read(0x100), other.read(0x060)), (25 << 16 | 80, 0));
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
fn a_driver_writes_any_amount_and_the_device_holds_little_of_it() {
    for features in [0, INDIRECT_DESC] {
        let mut driver = Driver::new(ConsoleDevice::new(), features, 8);
        driver.select(TRANSMIT);
        let text: Vec<u8> = (0..100_000u32).map(|at| (at / 7) as u8).collect();
        driver.memory.write(DATA, &text).unwrap();
        for _ in 0..2 {
            driver.offer(&[
                Buffer::Read(DATA, 40_001),
                Buffer::Read(0, 0),
                Buffer::Read(DATA + 40_001, 59_999),
            ]);
        }
        driver.write(0x050, TRANSMIT as u32);
        let mut output = Vec::new();
        let mut most = 0;
        while driver.device.is_notified() {
            let _ = driver.device.run(&mut driver.memory);
            let before = output.len();
            output.extend(driver.device.device_mut().console_mut().take_output());
            most = most.max(output.len() - before);
        }
        assert!(output == text.repeat(2), "{} bytes of 200000", output.len());
        assert_eq!(most, OUTPUT_BYTES);
        assert_eq!(driver.take_used().len(), 2);
    }
}

#[test]
fn a_reset_forgets_what_waits_to_be_written() {
    let mut driver = console();
    driver.select(TRANSMIT);
    driver.offer(&[Buffer::Read(DATA, 60_000)]);
    driver.write(0x050, TRANSMIT as u32);
    let _ = driver.device.run(&mut driver.memory);
    driver.start(0, 8);
    let old = driver.device.device_mut().console_mut().take_output().count();
    assert_eq!(old, OUTPUT_BYTES);
    driver.select(TRANSMIT);
    driver.transfer(&[Buffer::Read(DATA, 3)]);
    assert_eq!(driver.device.device_mut().console_mut().take_output().count(), 3);
}
