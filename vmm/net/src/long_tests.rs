//! Long frames: between both ends, and from a peer that means harm.

use crate::tests::{Bell, Fixture, frame, receive, send};
use crate::{End, LongFrame};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use proptest::prelude::*;
use usys::Window;
use vdev::net::{IpVersion, IpVersions, Link, Long};
use vdev::tso::fake::long;
use vmm_protocol::net::*;

const V4: IpVersions = IpVersions { v4: true, v6: false };

/// Two ends that take long frames.
fn connected() -> Fixture {
    let mut fixture = Fixture::connected();
    fixture.card.take_long(IpVersions::ALL);
    fixture.switch.take_long(IpVersions::ALL);
    fixture
}

/// Whether a frame whose payload has so many bytes was sent whole.
fn send_long(end: &mut End<Bell>, version: IpVersion, number: u32, payload: usize) -> bool {
    let (frame, long) = long(version, number, payload);
    let is_sent = end.peer_takes(version) && end.put_long(long, &frame);
    Link::flush(end);
    is_sent
}

/// What comes next, if it is a long frame.
fn receive_long(end: &mut End<Bell>) -> Option<(Vec<u8>, Long)> {
    assert_eq!(receive(end), None);
    let mut bytes = vec![0; MAX_LONG];
    let long = Link::receive_long(end, &mut bytes)?;
    bytes.truncate(long.bytes());
    Some((bytes, long))
}

#[test]
fn long_frames_pass_both_ways_in_order_among_others() {
    let mut fixture = connected();
    for number in 0..200 {
        let payload = 1 + number as usize * 1733 % 65_000;
        for version in [IpVersion::V4, IpVersion::V6] {
            let (one, other) = match number % 2 {
                0 => (&mut fixture.card, &mut fixture.switch),
                _ => (&mut fixture.switch, &mut fixture.card),
            };
            assert!(send(one, number, 60));
            assert!(send_long(one, version, number, payload));
            assert!(send(one, number + 1, 61));
            assert_eq!(receive(other), Some(frame(number, 60)));
            assert_eq!(receive_long(other), Some(long(version, number, payload)));
            assert_eq!(receive(other), Some(frame(number + 1, 61)));
            assert_eq!(receive_long(other), None);
        }
    }
}

#[test]
fn a_ring_without_room_for_all_of_a_frame_loses_all_of_it() {
    let mut fixture = connected();
    for number in 0..3 {
        assert!(send_long(&mut fixture.card, IpVersion::V4, number, 65_000));
    }
    // There are 32 slots left, and this takes 33.
    assert!(!send_long(&mut fixture.card, IpVersion::V6, 3, 65_461));
    assert!(send_long(&mut fixture.card, IpVersion::V4, 4, 2000) && send(&mut fixture.card, 5, 60));
    for number in 0..3 {
        assert_eq!(receive_long(&mut fixture.switch), Some(long(IpVersion::V4, number, 65_000)));
    }
    assert_eq!(receive_long(&mut fixture.switch), Some(long(IpVersion::V4, 4, 2000)));
    assert_eq!(receive(&mut fixture.switch), Some(frame(5, 60)));
}

#[test]
fn an_end_that_waits_is_signalled_for_a_long_frame_and_finds_it() {
    let mut fixture = connected();
    assert_eq!(receive_long(&mut fixture.switch), None);
    fixture.switch_bell.take();
    assert!(send_long(&mut fixture.card, IpVersion::V4, 1, 30_000));
    assert_eq!(fixture.switch_bell.take(), 1);
    assert!(receive_long(&mut fixture.switch).is_some());
    assert!(fixture.switch.prepare_to_wait());
}

#[test]
fn a_frame_is_forwarded_wherever_it_lies_in_either_ring_with_the_start_that_was_checked() {
    let (mut from, mut to) = (connected(), connected());
    for number in 0..300 {
        let (mut expected, said) = long(IpVersion::V4, number, 1 + number as usize * 977 % 65_000);
        // The rings do not keep step.
        if number % 5 == 0 {
            assert!(send(&mut to.switch, number, 60) && receive(&mut to.card).is_some());
        }
        assert!(from.card.put_long(said, &expected));
        Link::flush(&mut from.card);
        assert!(from.switch.peek().is_none());
        let there: LongFrame = from.switch.peek_long().unwrap();
        let mut start = there.start();
        start[0] ^= 0xff;
        assert!(to.switch.forward_long(&there, start));
        from.switch.release_long();
        Link::flush(&mut to.switch);
        expected[0] ^= 0xff;
        assert_eq!(receive_long(&mut to.card), Some((expected, said)));
    }
}

#[test]
fn a_peer_that_takes_no_long_frames_gets_pieces() {
    let mut fixture = connected();
    let (four, said_four) = long(IpVersion::V4, 1, 2500);
    let (six, said_six) = long(IpVersion::V6, 1, 2500);
    fixture.switch.take_long(V4);
    fixture.settle();
    Link::send_long(&mut fixture.card, &four, said_four);
    Link::send_long(&mut fixture.card, &six, said_six);
    Link::flush(&mut fixture.card);
    assert_eq!(receive_long(&mut fixture.switch), Some((four, said_four)));
    for part in six[74..].chunks(1000) {
        assert_eq!(receive(&mut fixture.switch).unwrap()[74..], *part);
    }
    assert_eq!(receive_long(&mut fixture.switch), None);
}

#[test]
fn what_an_end_takes_grows_at_any_time_and_shrinks_with_a_new_session_only() {
    let mut fixture = Fixture::connected();
    assert!(!send_long(&mut fixture.card, IpVersion::V4, 1, 3000), "it did not say that it takes any");
    let session = fixture.switch.session();
    fixture.switch.take_long(V4);
    assert!(send_long(&mut fixture.card, IpVersion::V4, 2, 3000));
    assert!(!send_long(&mut fixture.card, IpVersion::V6, 3, 3000));
    fixture.switch.take_long(IpVersions::ALL);
    assert!(send_long(&mut fixture.card, IpVersion::V6, 4, 3000));
    assert_eq!(fixture.switch.session(), session);
    assert_eq!(receive_long(&mut fixture.switch), Some(long(IpVersion::V4, 2, 3000)));
    // One is in the ring that it takes no more.
    fixture.switch.take_long(V4);
    assert_ne!(fixture.switch.session(), session);
    fixture.settle();
    assert_eq!(receive_long(&mut fixture.switch), None);
    assert!(!send_long(&mut fixture.card, IpVersion::V6, 5, 3000));
    assert!(send_long(&mut fixture.card, IpVersion::V4, 6, 3000));
    assert_eq!(receive_long(&mut fixture.switch), Some(long(IpVersion::V4, 6, 3000)));
}

#[test]
fn what_an_end_took_says_nothing_about_its_successor() {
    let mut fixture = connected();
    // The peer does not know yet.
    fixture.switch = End::new(fixture.window, Side::Switch, fixture.card_bell.clone()).unwrap();
    assert!(!fixture.card.peer_takes(IpVersion::V4));
    fixture.settle();
    let (bytes, said) = long(IpVersion::V4, 1, 1500);
    Link::send_long(&mut fixture.card, &bytes, said);
    Link::flush(&mut fixture.card);
    assert_eq!(receive(&mut fixture.switch).unwrap()[54..], bytes[54..1054]);
    assert_eq!(receive(&mut fixture.switch).unwrap()[54..], bytes[1054..]);
    // An end that begins anew goes on to take what it took.
    fixture.card.begin();
    fixture.settle();
    assert!(send_long(&mut fixture.switch, IpVersion::V4, 2, 5000));
    assert_eq!(receive_long(&mut fixture.card), Some(long(IpVersion::V4, 2, 5000)));
}

#[test]
fn a_frame_that_an_end_does_not_take_or_that_is_not_all_there_ends_the_session() {
    let (bytes, said) = long(IpVersion::V6, 1, 5000);
    for (takes, count) in [(IpVersions::NONE, 3), (V4, 3), (IpVersions::ALL, 2)] {
        let mut fixture = Fixture::connected();
        fixture.switch.take_long(takes);
        let session = fixture.switch.session();
        assert!(fixture.card.put_long(said, &bytes));
        Link::flush(&mut fixture.card);
        fixture.window.atomic_u32(Side::Card.put()).unwrap().store(count, Ordering::Release);
        assert_eq!(receive_long(&mut fixture.switch), None);
        assert_ne!(fixture.switch.session(), session);
        fixture.settle();
        assert!(send(&mut fixture.card, 2, 60), "it gets another chance");
        assert_eq!(receive(&mut fixture.switch), Some(frame(2, 60)));
    }
}

#[test]
fn a_frame_that_was_looked_at_goes_with_its_session() {
    let mut fixture = connected();
    assert!(send_long(&mut fixture.card, IpVersion::V4, 1, 5000));
    assert!(fixture.switch.peek().is_none() && fixture.switch.peek_long().is_some());
    fixture.card.begin();
    fixture.settle();
    assert!(fixture.switch.peek_long().is_none());
    fixture.switch.release_long();
    assert!(send(&mut fixture.card, 2, 60));
    assert_eq!(receive(&mut fixture.switch), Some(frame(2, 60)));
}

#[test]
fn a_frame_that_changes_while_it_is_cut_is_cut_as_it_was_said() {
    let mut fixture = connected();
    let (bytes, said) = long(IpVersion::V4, 1, 2500);
    assert!(fixture.card.put_long(said, &bytes));
    Link::flush(&mut fixture.card);
    assert!(fixture.switch.peek().is_none());
    let there = fixture.switch.peek_long().unwrap();
    let start = there.start();
    let slot = Side::Card.slot(0);
    let mut pieces = Vec::new();
    there.cut(start, &mut [0; MAX_FRAME], |piece, _| {
        pieces.push((piece.len(), piece[..54].to_vec()));
        // The header, the addresses, and where the TCP header ends.
        fixture.window.write(slot, &[0xff; FRAME + 54]).unwrap();
    });
    assert_eq!(pieces.iter().map(|piece| piece.0).collect::<Vec<_>>(), [1054, 1054, 554]);
    assert!(pieces.iter().all(|(_, headers)| headers[..14] == bytes[..14]));
    // What it has become is no frame any more.
    let mut none = 0;
    there.cut(there.start(), &mut [0; MAX_FRAME], |_, _| none += 1);
    assert_eq!(none, 0);
}

/// What a stranger writes: headers of long frames, and all that there are counts of.
fn harm() -> impl Strategy<Value = (usize, u64)> {
    let slot = (0..SLOTS as u32).prop_map(|index| Side::Card.slot(index));
    let header = (prop::sample::select(vec![0u64, 4, 6, 60]), 0..1600u64, 0..300u64, any::<u16>()).prop_map(
        |(version, payload, tcp, bytes)| version | payload << 16 | tcp << 32 | u64::from(bytes) << 48,
    );
    let words = vec![Side::Card.session(), Side::Card.takes(), Side::Switch.takes(), Side::Switch.taken()];
    let value = prop_oneof![0..200u64, any::<u64>()];
    prop_oneof![
        4 => (slot, header),
        2 => (Just(Side::Card.put()), 0..100u64),
        1 => (prop::sample::select(words), value),
    ]
}

fn store(window: &Window, (offset, value): (usize, u64)) {
    match offset == Side::Card.put() {
        // A word of its own, and the next one is another's.
        true => window.atomic_u32(offset).unwrap().store(value as u32, Ordering::Release),
        false => window.atomic_u64(offset).unwrap().store(value, Ordering::Release),
    }
}

proptest! {
    #[test]
    fn no_card_makes_a_switch_take_what_is_no_frame_or_work_without_end(
        harms in prop::collection::vec(prop::collection::vec(harm(), 1..20), 1..40), takes in 0..4u32,
    ) {
        let (mut fixture, mut to) = (Fixture::connected(), connected());
        fixture.switch.take_long(IpVersions::decode(takes));
        let mut scratch = [0; MAX_FRAME];
        for (number, harms) in harms.into_iter().enumerate() {
            send(&mut fixture.card, number as u32, 60);
            harms.into_iter().for_each(|harm| store(&fixture.window, harm));
            for _ in 0..2 * SLOTS {
                if let Some(frame) = fixture.switch.peek() {
                    prop_assert!((MIN_FRAME..=MAX_FRAME).contains(&frame.header.len.into()));
                    fixture.switch.release();
                } else if let Some(frame) = fixture.switch.peek_long() {
                    prop_assert!(IpVersions::decode(takes).has(frame.long.version()));
                    prop_assert!(frame.long.bytes() <= MAX_LONG);
                    let mut pieces = 0;
                    frame.cut(frame.start(), &mut scratch, |piece, missing| {
                        assert!(piece.len() <= MAX_FRAME && missing.fits(piece.len()));
                        pieces += 1;
                    });
                    prop_assert!(pieces <= MAX_LONG / usize::from(MIN_PAYLOAD));
                    to.switch.forward_long(&frame, frame.start());
                    fixture.switch.release_long();
                } else if fixture.switch.prepare_to_wait() {
                    break;
                }
            }
            Link::flush(&mut to.switch);
            let mut bytes = vec![0; MAX_LONG];
            while receive(&mut to.card).is_some() || Link::receive_long(&mut to.card, &mut bytes).is_some() {}
            prop_assert!(fixture.card_bell.take() < 200);
        }
    }

    #[test]
    fn no_frame_is_lost_doubled_or_mixed_up_however_the_ends_take_turns(
        turns in prop::collection::vec((any::<bool>(), 1..9u32, 0..20_000usize), 1..100),
    ) {
        let mut fixture = connected();
        let mut waiting = alloc::collections::VecDeque::new();
        for (is_card, count, payload) in turns {
            for step in 0..count {
                if !is_card {
                    let came = receive(&mut fixture.switch).or_else(|| Some(receive_long(&mut fixture.switch)?.0));
                    prop_assert_eq!(came, waiting.pop_front());
                } else if step % 2 == 0 && payload > 0 {
                    if send_long(&mut fixture.card, IpVersion::V6, step, payload) {
                        waiting.push_back(long(IpVersion::V6, step, payload).0);
                    }
                } else if send(&mut fixture.card, step, 60) {
                    waiting.push_back(frame(step, 60));
                }
            }
        }
    }
}
