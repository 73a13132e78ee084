//! Registers, features, status, interrupts.

use super::*;

#[test]
fn a_driver_finds_a_block_device_with_its_features_and_configuration() {
    let mut driver = Driver::raw(block(false));
    assert_eq!([0, 4, 8].map(|offset| driver.read(offset)), [0x7472_6976, 2, 2]);
    driver.write(0x014, 1);
    assert_eq!(driver.read(0x010), 0b101, "VERSION_1, RING_PACKED");
    driver.write(0x014, 0);
    let features = driver.read(0x010);
    assert_eq!(features & 1 << 5, 0, "the disk is writable");
    assert_eq!(features & (1 << 9 | 1 << 13 | 1 << 14), 1 << 9 | 1 << 13 | 1 << 14);
    driver.write(0x014, 2);
    assert_eq!(driver.read(0x010), 0);
    assert_eq!(driver.device.read(0x100, 8), SECTORS);
    assert_eq!(driver.device.read(0x10c, 4), 254);
    assert_eq!(driver.device.read(0x122, 2), 1);
    assert_eq!(driver.device.read(0x138, 1), 1);
    assert_eq!(driver.device.read(0xff8, 8), 0);
    assert_eq!(driver.read(0x0b0), u32::MAX, "no shared memory");
    assert_eq!(driver.device.read(0x000, 1), 0, "registers have 32 bits");
    driver.write(0x030, 1);
    assert_eq!(driver.read(0x034), 0, "there is no second queue");
}

#[test]
fn a_read_only_disk_says_so() {
    let mut driver = Driver::raw(block(true));
    assert_eq!(driver.read(0x010) & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(driver.device.read(0x124, 8), 0);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in [VERSION_1 | 1 << 5, VERSION_1 | 1 << 40, 0, u64::MAX] {
        let mut driver = Driver::raw(block(false));
        driver.write(0x070, 3);
        driver.write(0x024, 0);
        driver.write(0x020, features as u32);
        driver.write(0x024, 1);
        driver.write(0x020, (features >> 32) as u32);
        driver.write(0x070, 11);
        assert_eq!(driver.read(0x070), 3, "{features:#x}");
        driver.write(0x070, 15);
        assert_eq!(driver.read(0x070), 3, "no DRIVER_OK without FEATURES_OK");
    }
}

#[test]
fn a_device_that_stopped_before_it_was_set_up_serves_no_queue() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.write(0x070, 0);
    driver.write(0x070, 3);
    driver.write(0x024, 1);
    driver.write(0x020, 1);
    driver.write(0x070, 11);
    driver.write(0x038, 3);
    driver.write(0x044, 1);
    assert_eq!(driver.device.take_error(), Some(DriverError::QueueSize(3)));
    driver.write(0x070, 15);
    assert!(!driver.device.is_notified() && driver.needs_reset());
}

#[test]
fn what_was_negotiated_stays_until_a_reset() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.write(0x024, 0);
    driver.write(0x020, u32::MAX);
    driver.write(0x030, 0);
    driver.write(0x038, 3);
    driver.write(0x080, 1);
    assert_eq!(driver.request(0, 1, &[Buffer::Write(DATA, 512)]), (OK, 513));
    driver.write(0x044, 0);
    assert_eq!(driver.read(0x044), 0);
    driver.write(0x070, 0);
    assert_eq!(driver.read(0x070), 0);
    driver.start(0, 16);
    assert_eq!(driver.request(0, 1, &[Buffer::Write(DATA, 512)]), (OK, 513));
}

#[test]
fn nothing_is_served_before_the_driver_is_ready() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.start(0, 8);
    driver.write(0x070, 0);
    driver.header(0, 0);
    driver.offer(&[Buffer::Read(HEADER, 16), Buffer::Write(DATA, 512), Buffer::Write(STATUS, 1)]);
    driver.notify();
    assert!(driver.take_used().is_empty());
    assert_eq!(driver.interrupts, 0);
}

#[test]
fn an_interrupt_is_a_line_that_the_driver_lowers() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.request(0, 0, &[Buffer::Write(DATA, 512)]);
    assert_eq!((driver.line, driver.interrupts), (true, 1));
    assert_eq!(driver.take_interrupt(), 1);
    assert!(!driver.line);
    driver.request(0, 0, &[Buffer::Write(DATA, 512)]);
    assert_eq!(driver.interrupts, 2);
}

#[test]
fn a_second_reason_interrupts_again_when_the_first_is_acknowledged() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.request(0, 0, &[Buffer::Write(DATA, 512)]);
    let reasons = driver.read(0x060);
    let generation = driver.read(0x0fc);
    assert_eq!(driver.device.config_changed(), mmio::Line::Same);
    assert_ne!(driver.read(0x0fc), generation);
    assert!(!driver.acknowledge_quietly(reasons), "the guest has to be interrupted again");
    assert_eq!(driver.read(0x060), reasons | 2);
    driver.write(0x064, reasons);
    assert_eq!((driver.line, driver.interrupts), (true, 2));
    assert_eq!(driver.take_interrupt(), 2);
}

#[test]
fn an_acknowledgement_that_lowers_the_line_is_quiet() {
    let mut driver = Driver::new(block(false), 0, 8);
    driver.request(0, 0, &[Buffer::Write(DATA, 512)]);
    assert!(driver.acknowledge_quietly(2), "of another reason");
    assert!(driver.line);
    assert!(driver.acknowledge_quietly(1));
    assert_eq!((driver.line, driver.read(0x060)), (false, 0));
}
