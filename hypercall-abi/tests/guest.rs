//! Pins the guest contract: a failure here breaks guests that exist, and belongs into CHANGELOG.md.

use hypercall_abi::guest::cpuid::{self, is_compatible};
use hypercall_abi::guest::device::{Fault, Interrupt, Kind, MAGIC, State, config, reg};
use hypercall_abi::guest::op::{self, Status};
use hypercall_abi::guest::ring::{self, Completion, Request, Segment, Word, is_due};

#[test]
fn a_queue_is_laid_out_as_ever() {
    assert_eq!((ring::DRIVER_WORD, ring::DEVICE_WORD, ring::FAULT, ring::REQUESTS), (0, 64, 72, 128));
    assert_eq!((ring::completions(64), ring::bytes(64)), (2176, 2688));
    assert_eq!(Word { produced: 0x1122_3344, threshold: 0x5566_7788 }.encode(), 0x5566_7788_1122_3344);
    let request = Request {
        address: 0x0102_0304_0506_0708,
        len: 0x1112_1314,
        id: 0x2122,
        op: 0x31,
        flags: 0x41,
        offset: 0x5152_5354_5556_5758,
        argument: 0x6162_6364_6566_6768,
    };
    let words = [0x0102_0304_0506_0708, 0x4131_2122_1112_1314, 0x5152_5354_5556_5758, 0x6162_6364_6566_6768];
    assert_eq!(request.encode(), words);
    assert_eq!(Request::decode(words), request);
    let completion = Completion { id: 0x1122, status: 0x3344, len: 0x5566_7788 };
    assert_eq!(completion.encode(), 0x5566_7788_3344_1122);
    assert_eq!(Completion::decode(completion.encode()), completion);
    assert_eq!(Segment { address: 7, len: 9 }.encode(), [7, 9]);
    assert_eq!(Segment::decode([7, 0xff00_0000_0000_0009]), Segment { address: 7, len: 9 });
}

#[test]
fn registers_and_numbers_are_as_ever() {
    assert_eq!((cpuid::BASE, &cpuid::SIGNATURE, MAGIC), (0x4000_0100, b"NacreGuestPv", 0x4456_504e));
    assert_eq!(
        [reg::MAGIC, reg::KIND, reg::STATE, reg::FAULT, reg::OFFERED, reg::ACCEPTED, reg::DOORBELL],
        [0, 4, 8, 12, 16, 24, 32]
    );
    assert_eq!(
        [reg::QUEUES, reg::QUEUE_SIZE_MAX, reg::GENERATION, reg::INTERRUPT, reg::CONFIG],
        [0x24, 0x28, 0x2c, 0x30, 0x40]
    );
    assert_eq!([reg::QUEUE, reg::QUEUE_STRIDE], [0x100, 0x20]);
    assert_eq!([reg::QUEUE_ADDRESS, reg::QUEUE_SIZE, reg::QUEUE_INTERRUPT], [0, 8, 16]);
    assert_eq!([config::NET_MTU, config::CLOCK_UNIX_NS], [0x48, 0x48]);
    for raw in 0..=8 {
        assert_eq!(Kind::from_raw(raw).is_some(), (1..=7).contains(&raw));
        assert_eq!(State::from_raw(raw).is_some(), raw <= 2);
        assert_eq!(Fault::from_raw(raw).is_some(), (1..=5).contains(&raw));
    }
    assert_eq!([op::READ, op::WRITE, op::FLUSH, op::DISCARD, op::WRITE_ZEROES], [0, 1, 2, 3, 4]);
    assert_eq!([op::GIVE, op::TAKE, op::REPORT, op::POWER_OFF, op::RESET, op::EXIT], [5, 6, 7, 8, 9, 10]);
    assert_eq!(op::MAX_WRITE, 4096);
    for raw in 0..=4 {
        assert_eq!(Status::from_raw(raw) as u16, raw);
    }
    let interrupt = Interrupt { vector: 0x41, apic_id: 3 };
    assert_eq!(interrupt.encode(), 0x3_0000_0141);
    assert_eq!(Interrupt::decode(interrupt.encode()), Some(interrupt));
    assert_eq!((Interrupt::decode(0x41), Interrupt::decode(0x10f)), (None, None));
}

#[test]
fn a_newer_minor_version_is_compatible_and_another_major_version_is_not() {
    assert!(is_compatible(cpuid::VERSION) && is_compatible(cpuid::VERSION + 1));
    assert!(!is_compatible(cpuid::VERSION - 1) && !is_compatible(cpuid::VERSION + 0x1_0000));
}

#[test]
fn a_threshold_is_passed_once_also_where_counts_wrap() {
    for base in [0u32, u32::MAX - 2] {
        let at = |offset: u32| base.wrapping_add(offset);
        assert!(is_due(at(0), at(0), at(1)), "the first behind the threshold");
        assert!(is_due(at(3), at(1), at(5)), "a batch that goes past it");
        assert!(!is_due(at(5), at(1), at(5)), "not there yet");
        assert!(!is_due(at(0), at(1), at(5)), "told before");
        assert!(!is_due(at(0), at(1), at(1)), "nothing new");
    }
}
