//! The network card and long frames (5.1.6.2.1, 5.1.6.4).

use super::net::{CSUM, GUEST_CSUM, MRG_RXBUF, RECEIVE, TRANSMIT, arrived, card};
use super::*;
use crate::net::{Cable, IpVersion, IpVersions, Link, Long};
use crate::tso::fake::{self, PUSH};
use crate::tso::{MAX_HEADERS, MAX_LONG};
use crate::virtio::net::Net;
use proptest::prelude::*;

const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const TAKES: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6;

/// What arrived at the other end, if it is a long frame.
fn arrived_long(far: &mut Cable) -> Option<(Vec<u8>, Long)> {
    let mut frame = vec![0; MAX_LONG];
    let long = far.receive_long(&mut frame)?;
    frame.truncate(long.bytes());
    Some((frame, long))
}

/// Sends what is in memory from `DATA` on.
fn send(driver: &mut Driver<Net>, header: [u8; 12], frame: &[u8], cut: u32) {
    driver.select(TRANSMIT);
    driver.memory.write(DATA, &header).unwrap();
    driver.memory.write(DATA + 12, frame).unwrap();
    let all = 12 + frame.len() as u32;
    driver.transfer(&[Buffer::Read(DATA, cut), Buffer::Read(DATA + u64::from(cut), all - cut)]);
}

#[test]
fn a_long_frame_goes_out_whole_if_that_was_agreed() {
    for (version, kind, feature) in [(IpVersion::V4, 1, HOST_TSO4), (IpVersion::V6, 4, HOST_TSO6)] {
        let (frame, long) = fake::long(version, 1, 60_000);
        let header = [1, kind, 54, 0, 0xe8, 3, long.tcp() as u8, 0, 16, 0, 0, 0];
        let (mut driver, mut far) = card(CSUM | feature, 8);
        send(&mut driver, header, &frame, 1300);
        assert_eq!(arrived_long(&mut far), Some((frame.clone(), long)));
        let (mut driver, mut far) = card(CSUM | (HOST_TSO4 | HOST_TSO6) & !feature, 8);
        send(&mut driver, header, &frame, 1300);
        assert_eq!((arrived_long(&mut far), arrived(&mut far)), (None, None));
    }
}

#[test]
fn a_long_frame_that_is_none_is_lost() {
    let (mut driver, mut far) = card(CSUM | HOST_TSO4, 8);
    let (frame, _) = fake::long(IpVersion::V4, 1, 3000);
    driver.select(TRANSMIT);
    driver.memory.write(DATA + 12, &frame).unwrap();
    for (header, len) in [
        ([1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 3066),
        ([1, 1, 0, 0, 0xff, 0xff, 34, 0, 16, 0, 0, 0], 3066),
        ([1, 1, 0, 0, 0xe8, 3, 0xff, 0xff, 16, 0, 0, 0], 3066),
        ([1, 1, 0, 0, 0xe8, 3, 38, 0, 16, 0, 0, 0], 3066),
        ([1, 3, 0, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0], 3066),
        ([1, 4, 0, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0], 3066),
        ([1, 1, 0, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0], 40),
        ([1, 1, 0, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0], 66),
        ([1, 1, 0, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0], 70_000),
    ] {
        driver.memory.write(DATA, &header).unwrap();
        driver.transfer(&[Buffer::Read(DATA, len)]);
        assert_eq!((arrived_long(&mut far), arrived(&mut far)), (None, None), "{header:?}, {len} bytes");
    }
}

#[test]
fn the_link_knows_what_the_driver_takes_and_that_a_reset_ends_it() {
    let (mut driver, far) = card(0, 8);
    for (features, takes) in [
        (0, IpVersions::NONE),
        (TAKES, IpVersions::ALL),
        (GUEST_CSUM | GUEST_TSO4, IpVersions { v4: true, v6: false }),
        (GUEST_CSUM | GUEST_TSO6 | MRG_RXBUF, IpVersions { v4: false, v6: true }),
        // It needs frames without checksums.
        (GUEST_TSO4 | GUEST_TSO6, IpVersions::NONE),
    ] {
        driver.start(features, 8);
        assert_eq!(far.peer_takes(), takes, "{features:#x}");
        driver.write(0x070, 0);
        assert_eq!(far.peer_takes(), IpVersions::NONE);
    }
}

#[test]
fn a_long_frame_comes_over_as_many_buffers_as_it_needs_with_a_note_of_its_pieces() {
    let (mut driver, mut far) = card(TAKES | MRG_RXBUF | INDIRECT_DESC, 64);
    let (frame, long) = fake::long(IpVersion::V6, 1, 60_000);
    far.send_long(&frame, long);
    far.send(&[3; 60], None);
    let offer = |driver: &mut Driver<Net>, buffers: core::ops::Range<u64>| {
        for at in buffers {
            driver.offer(&[Buffer::Write(DATA + at * 1536, 1536)]);
        }
    };
    offer(&mut driver, 0..39);
    driver.notify();
    assert!(driver.take_used().is_empty(), "39 buffers are too few, and none is used up");
    offer(&mut driver, 39..42);
    driver.notify();
    let used = driver.take_used();
    assert_eq!(used.len(), 41);
    let bytes: u32 = used[..40].iter().map(|(_, written)| written).sum();
    assert_eq!((bytes as usize, used[40].1), (12 + frame.len(), 72));
    assert_eq!(driver.bytes(DATA, 12), [1, 4, 74, 0, 0xe8, 3, 54, 0, 16, 0, 40, 0]);
    assert_eq!(driver.bytes(DATA + 12, frame.len()), frame);
    let next = DATA + 40 * 1536;
    assert_eq!(driver.bytes(next, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "nothing is left of the note");
    assert_eq!(driver.bytes(next + 12, 60), [3; 60]);
}

#[test]
fn without_mergeable_buffers_a_long_frame_comes_into_a_big_one_or_is_lost() {
    let (mut driver, mut far) = card(TAKES, 16);
    let (frame, long) = fake::long(IpVersion::V4, 1, 5000);
    let room = 12 + frame.len() as u32;
    for (len, fits) in [(room - 1, false), (room, true)] {
        far.send_long(&frame, long);
        far.send(&[3; 60], None);
        driver.select(RECEIVE);
        let first = driver.offer(&[Buffer::Write(DATA, 12), Buffer::Write(DATA + 0x1000, len - 12)]);
        let second = driver.offer(&[Buffer::Write(DATA + 0x8000, 1530)]);
        driver.notify();
        if fits {
            assert_eq!(driver.take_used(), [(first.into(), room), (second.into(), 72)]);
            assert_eq!(driver.bytes(DATA, 12), [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 1, 0]);
            assert_eq!(driver.bytes(DATA + 0x1000, frame.len()), frame);
        } else {
            assert_eq!(driver.take_used(), [(first.into(), 72)], "the next one has come");
            driver.start(TAKES, 16);
        }
    }
}

#[test]
fn a_long_frame_whose_headers_are_others_or_that_nobody_takes_is_dropped() {
    let (good, long) = fake::long(IpVersion::V4, 1, 3000);
    let (six, long_six) = fake::long(IpVersion::V6, 1, 3000);
    let mut udp = good.clone();
    udp[23] = 17;
    let all_headers = Long::new(IpVersion::V4, 1000, long.tcp(), 54).unwrap();
    for (features, frame, said) in [
        (TAKES, &six, long),
        (TAKES, &udp, long),
        (TAKES, &good, all_headers),
        (TAKES & !GUEST_TSO6, &six, long_six),
        (GUEST_CSUM, &good, long),
    ] {
        let (mut driver, mut far) = card(features, 8);
        far.send_long(&frame[..said.bytes()], said);
        far.send(&[3; 60], None);
        driver.offer(&[Buffer::Write(DATA, 8000)]);
        driver.notify();
        driver.poll();
        assert_eq!(driver.take_used(), [(0, 72)]);
        assert_eq!(driver.bytes(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}

proptest! {
    #[test]
    fn a_driver_gets_long_frames_that_can_be_cut_and_no_others(
        bytes in prop::collection::vec(any::<u8>(), 60..400), is_v4: bool, vlan: bool, tcp in 30u16..80, payload in 0u16..2000,
        options in 0usize..11, spoil in prop::option::of((0usize..60, any::<u8>())),
    ) {
        let version = if is_v4 { IpVersion::V4 } else { IpVersion::V6 };
        let (mut frame, right) = fake::frame(version, vlan, options, PUSH, &bytes);
        if let Some((at, byte)) = spoil {
            frame[at] = byte;
        }
        let tcp = if spoil.is_some() { tcp } else { right };
        let Some(long) = Long::new(version, payload, tcp, frame.len()) else { return Ok(()) };
        let (mut driver, mut far) = card(TAKES, 8);
        far.send_long(&frame, long);
        driver.offer(&[Buffer::Write(DATA, 8000)]);
        driver.notify();
        let used = driver.take_used();
        let headers = usize::from(tcp) + 20 + 4 * options;
        let fits = headers + usize::from(payload) <= 1518 && headers <= MAX_HEADERS;
        prop_assert!(spoil.is_some() || used.is_empty() != fits);
        if let [(_, written)] = used[..] {
            prop_assert_eq!(written as usize, 12 + frame.len());
            let said = u16::from_le_bytes(driver.bytes(DATA + 2, 2).try_into().unwrap());
            prop_assert!((usize::from(tcp) + 20..frame.len()).contains(&usize::from(said)));
        }
        prop_assert!(!driver.needs_reset());
    }
}
