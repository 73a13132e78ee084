//! What drivers must not do: the device stops with one error, asks for a reset, and works again after it.

use super::*;
use crate::net::{Cable, Checksum, IpVersion, Link};
use crate::tso::{MAX_LONG, fake};
use crate::virtio::console::ConsoleDevice;
use crate::virtio::driver::MEMORY_BYTES;
use crate::virtio::net::Net;
use proptest::prelude::*;

const NEXT: u64 = 1 << 32;
const WRITE: u64 = 2 << 32;
const INDIRECT: u64 = 4 << 32;

fn next(index: u64) -> u64 {
    NEXT | index << 48
}

/// What a driver does wrong, and what the device says.
fn check(features: u64, expected: impl Fn(DriverError) -> bool, wrong: impl FnOnce(&mut Driver<Block>)) {
    let mut driver = Driver::new(block(false), features, 8);
    wrong(&mut driver);
    driver.notify();
    assert!(driver.needs_reset());
    let error = driver.device.take_error().unwrap();
    assert!(expected(error), "{error}");
    assert_eq!((driver.interrupts, driver.take_interrupt()), (1, 2), "the driver is told");

    driver.header(0, 0);
    driver.notify();
    assert!(driver.take_used().is_empty(), "nothing is done any more");
    assert_eq!(driver.device.take_error(), None, "and it is said once");

    driver.start(features, 8);
    assert!(!driver.needs_reset());
    assert_eq!(driver.request(0, 3, &[Buffer::Write(DATA, 512)]), (OK, 513));
}

/// Offers chain 0 with these descriptors.
fn offer(driver: &mut Driver<Block>, descriptors: &[(u64, u64)]) {
    for (index, &descriptor) in (0..).zip(descriptors) {
        driver.write_descriptor(Driver::<Block>::descriptor(index), descriptor);
    }
    driver.put_available(0);
}

#[test]
fn an_available_index_that_jumps() {
    check(0, |e| e == DriverError::AvailableIndex(9), |driver| driver.set_available_index(9));
    check(
        EVENT_IDX,
        |e| e == DriverError::AvailableIndex(0xffff),
        |driver| driver.set_available_index(0xffff),
    );
}

#[test]
fn descriptors_that_do_not_exist() {
    check(0, |e| e == DriverError::Descriptor(8), |driver| driver.put_available(8));
    check(0, |e| e == DriverError::Descriptor(700), |driver| offer(driver, &[(HEADER, 16 | next(700))]));
}

#[test]
fn chains_without_end() {
    check(0, |e| e == DriverError::ChainLength, |driver| offer(driver, &[(HEADER, 16 | next(0))]));
    check(
        0,
        |e| e == DriverError::ChainLength,
        |driver| {
            offer(driver, &[(HEADER, 16 | next(1)), (HEADER, 16 | next(0))]);
        },
    );
    check(
        INDIRECT_DESC,
        |e| e == DriverError::ChainLength,
        |driver| {
            driver.write_descriptor(DATA, (HEADER, 16 | next(0)));
            offer(driver, &[(DATA, 16 | INDIRECT)]);
        },
    );
}

#[test]
fn chains_that_are_too_long_in_bytes() {
    check(
        0,
        |e| e == DriverError::ChainBytes,
        |driver| {
            let all = u64::from(u32::MAX);
            offer(driver, &[(HEADER, all | next(1)), (HEADER, all)]);
        },
    );
}

#[test]
fn buffers_in_the_wrong_order() {
    check(
        0,
        |e| e == DriverError::ChainOrder,
        |driver| {
            offer(driver, &[(STATUS, 1 | WRITE | next(1)), (HEADER, 16)]);
        },
    );
}

#[test]
fn buffers_outside_memory() {
    let is_memory = |e| matches!(e, DriverError::Memory(_));
    check(0, is_memory, |driver| offer(driver, &[(u64::MAX - 3, 16 | next(1)), (STATUS, 1 | WRITE)]));
    check(0, is_memory, |driver| offer(driver, &[(HEADER, 16 | next(1)), (1 << 50, 1 | WRITE)]));
    check(0, is_memory, |driver| {
        driver.header(0, 0);
        offer(
            driver,
            &[(HEADER, 16 | next(1)), (MEMORY_BYTES as u64 - 8, 512 | WRITE | next(2)), (STATUS, 1 | WRITE)],
        );
    });
    check(INDIRECT_DESC, is_memory, |driver| offer(driver, &[(u64::MAX - 8, 16 | INDIRECT)]));
}

#[test]
fn tables_that_are_none() {
    let is_table = |e| e == DriverError::IndirectTable;
    check(INDIRECT_DESC, is_table, |driver| offer(driver, &[(DATA, INDIRECT)]));
    check(INDIRECT_DESC, is_table, |driver| offer(driver, &[(DATA, 17 | INDIRECT)]));
    check(INDIRECT_DESC, is_table, |driver| offer(driver, &[(DATA, 16 | INDIRECT | next(1)), (HEADER, 16)]));
    check(0, is_table, |driver| offer(driver, &[(DATA, 16 | INDIRECT)]));
    check(INDIRECT_DESC, is_table, |driver| {
        driver.write_descriptor(DATA, (DATA, 16 | INDIRECT));
        offer(driver, &[(DATA, 16 | INDIRECT)]);
    });
    check(
        INDIRECT_DESC,
        |e| e == DriverError::Descriptor(1),
        |driver| {
            driver.write_descriptor(DATA, (HEADER, 16 | next(1)));
            offer(driver, &[(DATA, 16 | INDIRECT)]);
        },
    );
}

#[test]
fn requests_without_room_for_header_or_status() {
    let is_request = |e| e == DriverError::Request;
    check(0, is_request, |driver| offer(driver, &[(HEADER, 15 | next(1)), (STATUS, 1 | WRITE)]));
    check(0, is_request, |driver| offer(driver, &[(HEADER, 16 | next(1)), (STATUS, WRITE)]));
    check(0, is_request, |driver| offer(driver, &[(HEADER, 16)]));
}

#[test]
fn queues_that_are_none() {
    type Registers = &'static [(u64, u32)];
    let cases: [(Registers, DriverError); 6] = [
        (&[(0x038, 0)], DriverError::QueueSize(0)),
        (&[(0x038, 3)], DriverError::QueueSize(3)),
        (&[(0x038, 512)], DriverError::QueueSize(512)),
        (&[(0x038, 0x1_0008)], DriverError::QueueSize(0)),
        (&[(0x080, 0x1008)], DriverError::QueueAddress(0x1008)),
        (&[(0x0a0, 2), (0x0a4, 1)], DriverError::QueueAddress(0x1_0000_0002)),
    ];
    for (registers, error) in cases {
        check(
            0,
            |e| e == error,
            |driver| {
                driver.write(0x044, 0);
                for &(offset, value) in registers {
                    driver.write(offset, value);
                }
                driver.write(0x044, 1);
                assert_eq!(driver.read(0x044), 0);
            },
        );
    }
    check(
        0,
        |e| matches!(e, DriverError::Memory(_)),
        |driver| {
            driver.write(0x044, 0);
            driver.write(0x094, 0x8000_0000);
            driver.write(0x044, 1);
        },
    );
}

#[derive(Clone, Debug)]
enum Step {
    Register(u64, u32),
    Config(u64, u8, u64),
    Memory(u64, Vec<u8>),
    Offer(u16),
    Start(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let register = prop_oneof![0u64..0x40, Just(0x11u64), Just(0x1c), Just(0x14), Just(0xc)];
    let value = prop_oneof![0u32..16, any::<u32>()];
    prop_oneof![
        (register, value).prop_map(|(register, value)| Step::Register(register * 4, value)),
        (0u64..0x1000, 1u8..9, any::<u64>()).prop_map(|(at, size, value)| Step::Config(at, size, value)),
        (0x1000u64..0x8000, prop::collection::vec(any::<u8>(), 1..32))
            .prop_map(|(at, bytes)| Step::Memory(at, bytes)),
        (0x1000u64..0x1080, prop::collection::vec(0u8..3, 1..32))
            .prop_map(|(at, bytes)| Step::Memory(at, bytes)),
        (0x5000u64..0x5080, prop::collection::vec(0u8..3, 1..32))
            .prop_map(|(at, bytes)| Step::Memory(at, bytes)),
        (0u16..10).prop_map(Step::Offer),
        any::<bool>().prop_map(Step::Start),
    ]
}

/// Lets a driver do all of this to a device that is offered `features`; `outside` is what happens behind the device meanwhile.
fn torment<D: Device>(
    driver: &mut Driver<D>,
    features: u64,
    steps: Vec<Step>,
    mut outside: impl FnMut(&mut Driver<D>),
) {
    let queues = driver.device.device().queue_sizes().len();
    for step in steps {
        match step {
            Step::Register(offset, value) => {
                driver.read(offset);
                driver.write(offset, value);
            }
            Step::Config(at, size, value) => {
                driver.device.read(at, size);
                let _ = driver.device.write(at, size, value);
            }
            Step::Memory(at, bytes) => driver.memory.write(at, &bytes).unwrap(),
            Step::Offer(head) => {
                let queue = usize::from(head) % queues;
                driver.select(queue);
                driver.put_available(head);
                driver.write(0x050, queue as u32);
            }
            Step::Start(has_all) => {
                let more = if has_all { EVENT_IDX | INDIRECT_DESC } else { 0 };
                driver.start(features | more, 8);
            }
        }
        outside(driver);
        let _ = driver.device.run(&mut driver.memory);
        let _ = driver.device.poll(&mut driver.memory);
        if driver.device.is_owing() {
            let _ = driver.device.settle(&mut driver.memory, driver.line);
        }
        driver.read_all();
        driver.line = driver.read(0x060) != 0;
    }
}

/// A driver that has begun, or not.
fn begun<D: Device>(device: D, features: u64, has_begun: bool) -> Driver<D> {
    let mut driver = Driver::raw(device);
    driver.start(features, 8);
    if !has_begun {
        driver.write(0x070, 0);
    }
    driver
}

fn ring(is_packed: bool) -> u64 {
    if is_packed { RING_PACKED } else { 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_a_driver_does_the_device_survives_and_works_after_a_reset(
        steps in prop::collection::vec(step(), 1..60),
        starts in any::<bool>(),
        is_packed in any::<bool>(),
    ) {
        let mut driver = begun(block(false), ring(is_packed), starts);
        torment(&mut driver, ring(is_packed), steps, |_| {});
        driver.start(0, 8);
        prop_assert_eq!(driver.request(4, 0, &[]), (OK, 1));
    }

    #[test]
    fn a_card_survives_whatever_a_driver_does(
        steps in prop::collection::vec(step(), 1..60),
        starts in any::<bool>(),
        is_packed in any::<bool>(),
    ) {
        const ALL: u64 = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 22;
        let (near, mut far) = Cable::new();
        let features = ALL | ring(is_packed);
        let mut driver = begun(Net::new(Box::new(near), [2; 6], 2), features, starts);
        let mut frame = vec![0; MAX_LONG];
        let (bytes, long) = fake::long(IpVersion::V6, 1, 4000);
        let mut empty = |far: &mut Cable| while far.receive(&mut frame).is_some() || far.receive_long(&mut frame).is_some() {};
        torment(&mut driver, features, steps, |_| {
            far.send(&[7; 100], Some(Checksum { start: 14, offset: 6 }));
            far.send_long(&bytes, long);
            empty(&mut far);
        });
        driver.start(0, 8);
        empty(&mut far);
        driver.select(1);
        driver.memory.write(DATA, &[0; 12]).unwrap();
        driver.transfer(&[Buffer::Read(DATA, 32)]);
        prop_assert_eq!(far.receive(&mut frame), Some((20, None)));
    }

    #[test]
    fn a_console_survives_whatever_a_driver_does(
        steps in prop::collection::vec(step(), 1..60),
        starts in any::<bool>(),
        is_packed in any::<bool>(),
    ) {
        let mut driver = begun(ConsoleDevice::new(), ring(is_packed), starts);
        torment(&mut driver, ring(is_packed), steps, |driver| {
            let console = driver.device.device_mut().console_mut();
            console.queue_input(b"typed");
            console.take_output().for_each(drop);
        });
        driver.start(0, 8);
        // What the last step said.
        driver.device.device_mut().console_mut().take_output().for_each(drop);
        driver.select(1);
        driver.memory.write(DATA, b"said").unwrap();
        driver.transfer(&[Buffer::Read(DATA, 4)]);
        let output: Vec<u8> = driver.device.device_mut().console_mut().take_output().collect();
        prop_assert_eq!(output, b"said");
    }
}
