//! Chains and indices.

use super::*;
use crate::entropy::Words;
use crate::virtio::entropy::EntropyDevice;

const READ: [Buffer; 3] = [Buffer::Read(HEADER, 16), Buffer::Write(DATA, 512), Buffer::Write(STATUS, 1)];

#[test]
fn indices_run_over_their_sixteen_bits() {
    for features in [0, EVENT_IDX | INDIRECT_DESC] {
        let mut driver = Driver::new(block(false), features, 4);
        driver.header(0, 3);
        for _ in 0..70_000 {
            assert_eq!(driver.transfer(&READ), 513);
        }
    }
}

#[test]
fn a_driver_that_asks_for_no_interrupts_gets_none() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.set_available_flags(1);
    driver.request(0, 0, &[Buffer::Write(DATA, 512)]);
    assert_eq!(driver.interrupts, 0);
    driver.set_available_flags(0);
    driver.request(0, 0, &[Buffer::Write(DATA, 512)]);
    assert_eq!(driver.interrupts, 1);
}

#[test]
fn with_event_indices_one_interrupt_announces_the_whole_batch() {
    let mut driver = Driver::new(block(false), EVENT_IDX | INDIRECT_DESC, 16);
    driver.header(0, 1);
    driver.set_used_event(3);
    for _ in 0..3 {
        driver.offer(&READ);
    }
    driver.notify();
    assert_eq!((driver.take_used().len(), driver.interrupts), (3, 0), "the fourth is awaited");
    for _ in 0..4 {
        driver.offer(&READ);
    }
    driver.notify();
    assert_eq!((driver.take_used().len(), driver.interrupts), (4, 1));
}

#[test]
fn with_event_indices_one_notification_announces_the_whole_batch() {
    let mut driver = Driver::new(block(false), EVENT_IDX | INDIRECT_DESC, 16);
    driver.header(0, 1);
    let old = driver.available_index();
    driver.offer(&READ);
    assert!(driver.must_notify(old));
    let old = driver.available_index();
    driver.offer(&READ);
    assert!(!driver.must_notify(old), "the device was notified, and has not looked yet");
    driver.notify();
    assert_eq!(driver.take_used().len(), 2);
    let old = driver.available_index();
    driver.offer(&READ);
    assert!(driver.must_notify(old));
}

#[test]
fn a_queue_that_is_taken_back_yields_nothing() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.header(0, 0);
    driver.offer(&READ);
    driver.write(0x030, 0);
    driver.write(0x044, 0);
    driver.notify();
    assert!(driver.take_used().is_empty() && !driver.needs_reset());
}

#[test]
fn random_bytes_fill_what_the_driver_offers() {
    let mut word = 0u64;
    let source = Words(move || {
        word += 0x0101_0101_0101_0101;
        Some(word)
    });
    let mut driver = Driver::new(EntropyDevice::new(Box::new(source)), 0, 8);
    assert_eq!(driver.read(0x008), 4);
    assert_eq!(driver.transfer(&[Buffer::Write(DATA, 5), Buffer::Write(DATA + 100, 6)]), 11);
    assert_eq!(driver.bytes(DATA, 6), [1, 1, 1, 1, 1, 0]);
    assert_eq!(driver.bytes(DATA + 100, 7), [1, 1, 1, 2, 2, 2, 0]);
    assert_eq!(driver.transfer(&[Buffer::Write(DATA, 5000)]), 256);
    assert_eq!(driver.transfer(&[Buffer::Read(DATA, 50)]), 0);
}

#[test]
fn a_turn_ends_when_the_queue_was_served_once_around() {
    let mut driver = Driver::new(block(false), INDIRECT_DESC, 8);
    driver.header(0, 1);
    for _ in 0..8 {
        driver.offer(&READ);
    }
    driver.write(0x050, 0);
    assert_eq!(driver.device.run(&mut driver.memory), mmio::Line::Raised);
    assert!(driver.device.is_notified(), "another device comes first");
    driver.line = true;
    driver.run();
    assert_eq!(driver.take_used().len(), 8);
}
