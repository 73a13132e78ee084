//! The network card.

use super::*;
use crate::net::{Cable, Checksum, IpVersion, Link, MAX_FRAME};
use crate::tso::fake;
use crate::virtio::net::Net;
use proptest::prelude::*;

pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
pub(super) const CSUM: u64 = 1 << 0;
pub(super) const GUEST_CSUM: u64 = 1 << 1;
pub(super) const MRG_RXBUF: u64 = 1 << 15;

pub(super) fn card(features: u64, size: u16) -> (Driver<Net>, Cable) {
    let (near, far) = Cable::new();
    (Driver::new(Net::new(Box::new(near), MAC, 1), features, size), far)
}

/// What arrived at the other end.
pub(super) fn arrived(far: &mut Cable) -> Option<(Vec<u8>, Option<Checksum>)> {
    let mut frame = [0; MAX_FRAME];
    far.receive(&mut frame).map(|(len, missing)| (frame[..len].to_vec(), missing))
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7) as u8).collect()
}

#[test]
fn a_card_has_an_address_and_its_link_is_up() {
    let (mut driver, _) = card(0, 8);
    assert_eq!(driver.read(0x008), 1);
    assert_eq!(driver.device.read(0x100, 8).to_le_bytes(), [0x52, 0x54, 0, 0, 0, 1, 1, 0]);
    assert_eq!(driver.device.read(0x10a, 2), 1500);
}

#[test]
fn frames_go_out_however_the_driver_cuts_them() {
    let (mut driver, mut far) = card(CSUM, 8);
    driver.select(TRANSMIT);
    driver.memory.write(DATA, &[0; 12]).unwrap();
    driver.memory.write(DATA + 12, &frame(100)).unwrap();
    driver.transfer(&[Buffer::Read(DATA, 112)]);
    driver.transfer(&[Buffer::Read(DATA, 5), Buffer::Read(DATA + 5, 17), Buffer::Read(DATA + 22, 90)]);
    assert_eq!(arrived(&mut far), Some((frame(100), None)));
    assert_eq!(arrived(&mut far), Some((frame(100), None)));
    assert_eq!(arrived(&mut far), None);
}

/// A driver that has sent a frame, for which it wants an interrupt, as Linux does.
fn with_a_sent_frame() -> (Driver<Net>, Cable) {
    let (mut driver, far) = card(EVENT_IDX, 256);
    driver.select(TRANSMIT);
    driver.set_used_event(0);
    driver.memory.write(DATA, &[0; 12]).unwrap();
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    (driver, far)
}

#[test]
fn that_a_frame_was_sent_is_told_later() {
    let (mut driver, _far) = with_a_sent_frame();
    assert_eq!((driver.interrupts, driver.device.is_owing()), (0, true));
    driver.settle(true);
    assert_eq!((driver.take_interrupt(), driver.device.is_owing()), (1, false));
    driver.settle(true);
    assert_eq!(driver.interrupts, 1);
}

#[test]
fn a_driver_that_found_by_itself_what_was_sent_is_not_told() {
    let (mut driver, _far) = with_a_sent_frame();
    driver.set_used_event(1);
    driver.settle(true);
    assert_eq!((driver.interrupts, driver.device.is_owing()), (0, false));
}

#[test]
fn what_was_sent_is_told_with_a_frame_that_comes() {
    let (mut driver, mut far) = with_a_sent_frame();
    driver.select(RECEIVE);
    driver.set_used_event(0);
    driver.offer(&[Buffer::Write(DATA, 2000)]);
    far.send(&frame(60), None);
    driver.poll();
    assert_eq!((driver.take_interrupt(), driver.device.is_owing()), (1, false));
    driver.settle(true);
    assert_eq!(driver.interrupts, 1, "one interrupt is for both");
}

#[test]
fn a_driver_that_has_half_a_queue_to_take_back_is_told_at_once() {
    let (mut driver, _far) = with_a_sent_frame();
    for _ in 0..127 {
        driver.transfer(&[Buffer::Read(DATA, 72)]);
    }
    assert_eq!((driver.interrupts, driver.device.is_owing()), (0, true));
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    assert_eq!((driver.interrupts, driver.device.is_owing()), (1, false));
}

#[test]
fn a_driver_that_waits_for_what_it_sent_waits_once_until_it_gets_frames() {
    let (mut driver, mut far) = with_a_sent_frame();
    driver.set_used_event(0);
    driver.settle(true);
    assert_eq!(driver.take_interrupt(), 1);
    for sent in 1..3 {
        driver.set_used_event(sent);
        driver.transfer(&[Buffer::Read(DATA, 72)]);
        assert_eq!((driver.take_interrupt(), driver.device.is_owing()), (1, false));
    }
    driver.select(RECEIVE);
    driver.set_used_event(0);
    driver.offer(&[Buffer::Write(DATA + 0x1000, 2000)]);
    far.send(&frame(60), None);
    driver.poll();
    assert_eq!(driver.take_interrupt(), 1);
    driver.select(TRANSMIT);
    driver.set_used_event(3);
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    assert_eq!((driver.line, driver.device.is_owing()), (false, true));
    driver.settle(false);
    assert_eq!(driver.take_interrupt(), 1);
    driver.set_used_event(4);
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    assert_eq!((driver.line, driver.device.is_owing()), (false, true), "it went on sending");
}

#[test]
fn a_driver_with_few_descriptors_is_told_before_it_has_none() {
    let (mut driver, _far) = card(0, 8);
    driver.select(TRANSMIT);
    driver.memory.write(DATA, &[0; 12]).unwrap();
    for sent in 1..=8 {
        driver.transfer(&[Buffer::Read(DATA, 72)]);
        assert_eq!(driver.interrupts, usize::from(sent > 4), "after {sent} frames");
    }
}

#[test]
fn a_reset_forgets_what_was_to_be_told() {
    let (mut driver, _far) = with_a_sent_frame();
    driver.start(EVENT_IDX, 256);
    driver.settle(true);
    assert_eq!((driver.interrupts, driver.device.is_owing()), (0, false));
}

#[test]
fn a_checksum_that_the_driver_leaves_out_travels_as_a_note() {
    let (mut driver, mut far) = card(CSUM, 8);
    driver.select(TRANSMIT);
    driver.memory.write(DATA, &[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]).unwrap();
    driver.memory.write(DATA + 12, &frame(60)).unwrap();
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    assert_eq!(arrived(&mut far), Some((frame(60), Some(Checksum { start: 34, offset: 16 }))));
    // One that lies outside the frame is no checksum.
    driver.memory.write_u8(DATA + 8, 25).unwrap();
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    assert_eq!(arrived(&mut far), None);
    // Nor is one in the sender's address.
    driver.memory.write(DATA + 6, &[10, 0, 0, 0]).unwrap();
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    assert_eq!(arrived(&mut far), None);
}

#[test]
fn what_is_no_frame_is_lost() {
    let (mut driver, mut far) = card(0, 8);
    driver.select(TRANSMIT);
    for len in [0, 13, MAX_FRAME as u32 + 1, 70_000] {
        driver.transfer(&[Buffer::Read(DATA, 12), Buffer::Read(DATA, len)]);
        assert_eq!(arrived(&mut far), None, "{len} bytes");
    }
    driver.offer(&[Buffer::Read(DATA, 11)]);
    driver.notify();
    assert_eq!(driver.device.take_error(), Some(DriverError::Request), "not even a header");
}

#[test]
fn a_frame_waits_for_a_buffer_and_comes_with_a_header() {
    let (mut driver, mut far) = card(GUEST_CSUM | EVENT_IDX, 8);
    far.send(&frame(80), Some(Checksum { start: 34, offset: 6 }));
    far.send(&frame(14), None);
    driver.poll();
    assert!(driver.take_used().is_empty());
    driver.offer(&[Buffer::Write(DATA, 12), Buffer::Write(DATA + 0x1000, 1518)]);
    driver.notify();
    assert_eq!(driver.take_used(), [(0, 92)]);
    assert_eq!(driver.bytes(DATA, 12), [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0]);
    assert_eq!(driver.bytes(DATA + 0x1000, 80), frame(80));
    driver.offer(&[Buffer::Write(DATA, 1530)]);
    driver.notify();
    assert_eq!(driver.take_used(), [(2, 26)]);
    assert_eq!(driver.bytes(DATA, 26), [vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], frame(14)].concat());
}

#[test]
fn a_driver_that_takes_no_notes_gets_the_checksum() {
    let (mut driver, mut far) = card(0, 8);
    driver.offer(&[Buffer::Write(DATA, 1530)]);
    let missing = Checksum { start: 34, offset: 6 };
    far.send(&frame(80), Some(missing));
    driver.poll();
    let mut expected = frame(80);
    missing.fill_in(&mut expected);
    assert_eq!(driver.take_used(), [(0, 92)]);
    assert_eq!(driver.bytes(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(driver.bytes(DATA + 12, 80), expected);
}

#[test]
fn with_mergeable_buffers_a_frame_fills_as_many_as_it_needs() {
    let (mut driver, mut far) = card(MRG_RXBUF | INDIRECT_DESC, 16);
    far.send(&frame(1000), None);
    far.send(&frame(300), None);
    for at in 0..2 {
        driver.offer(&[Buffer::Write(DATA + at * 0x400, 400)]);
    }
    driver.notify();
    assert!(driver.take_used().is_empty(), "two buffers are too few, and none is used up");
    for at in 2..5 {
        driver.offer(&[Buffer::Write(DATA + at * 0x400, 400)]);
    }
    driver.notify();
    assert_eq!(driver.take_used(), [(0, 400), (1, 400), (2, 212), (3, 312)]);
    assert_eq!(driver.bytes(DATA + 10, 2), [3, 0]);
    assert_eq!(driver.bytes(DATA + 0xc00 + 10, 2), [1, 0]);
    let pieces =
        [driver.bytes(DATA + 12, 388), driver.bytes(DATA + 0x400, 400), driver.bytes(DATA + 0x800, 212)];
    assert_eq!(pieces.concat(), frame(1000));
}

#[test]
fn a_driver_whose_buffers_hold_no_header_is_stopped() {
    for features in [0, MRG_RXBUF] {
        let (mut driver, mut far) = card(features, 4);
        driver.offer(&[Buffer::Write(DATA, 11)]);
        far.send(&frame(80), None);
        driver.poll();
        assert_eq!(driver.device.take_error(), Some(DriverError::Request));
    }
}

#[test]
fn a_frame_that_is_longer_than_the_buffers_is_lost_and_the_next_one_comes() {
    // 1526 bytes hold a header and the longest frame without a VLAN tag. Of mergeable ones, all four are too small.
    for (features, len) in [(0, 1526), (MRG_RXBUF, 380)] {
        let (mut driver, mut far) = card(features | EVENT_IDX, 4);
        for at in 0..4 {
            driver.offer(&[Buffer::Write(DATA + at * 0x1000, len)]);
        }
        far.send(&frame(MAX_FRAME), None);
        far.send(&frame(300), None);
        driver.poll();
        assert!(!driver.needs_reset());
        assert_eq!(driver.take_used(), [(0, 312)]);
        assert_eq!(driver.bytes(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(driver.bytes(DATA + 12, 300), frame(300));
    }
}

#[test]
fn a_reset_forgets_the_frame_that_waited() {
    let (mut driver, mut far) = card(0, 8);
    far.send(&frame(20), None);
    driver.poll();
    driver.start(0, 8);
    far.send(&frame(30), None);
    driver.offer(&[Buffer::Write(DATA, 1530)]);
    driver.notify();
    assert_eq!(driver.take_used(), [(0, 42)]);
}

/// Something that one of the two sides does.
#[derive(Clone, Debug)]
enum Step {
    /// The driver sends a frame, cut after so many bytes with its header.
    Send(usize, u32),
    /// A frame comes.
    Come(usize),
    /// The driver has room for a frame.
    Offer,
    /// The driver notifies of a queue, whether the device asked for that or not.
    Notify(usize),
    /// The device looks whether something came.
    Poll,
    /// The driver takes what it was given.
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (14usize..=MAX_FRAME, 1u32..1000).prop_map(|(len, cut)| Step::Send(len, cut)),
        (14usize..=MAX_FRAME).prop_map(Step::Come),
        Just(Step::Offer),
        (0usize..2).prop_map(Step::Notify),
        Just(Step::Poll),
        Just(Step::Take),
    ]
}

/// A frame that says which one it is.
fn numbered(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + number * 7) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn frames_keep_their_order_both_ways_whoever_runs_when(
        steps in prop::collection::vec(step(), 1..120),
        features in prop::sample::select(vec![0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | MRG_RXBUF]),
    ) {
        const SLOT: u64 = 0x600;
        const OUT: u64 = DATA + 0x1_0000;
        let (mut driver, mut far) = card(features, 8);
        let (mut sent, mut seen, mut came, mut taken) = (Vec::new(), 0, Vec::new(), 0);
        let mut places = [None; 8];
        for step in steps.into_iter().chain([Step::Notify(0), Step::Notify(1), Step::Poll, Step::Take]) {
            match step {
                Step::Send(len, cut) => {
                    driver.select(TRANSMIT);
                    let frame = numbered(sent.len(), len);
                    driver.memory.write(OUT, &[0; 12]).unwrap();
                    driver.memory.write(OUT + 12, &frame).unwrap();
                    let all = len as u32 + 12;
                    let cut = cut.min(all - 1);
                    driver.transfer(&[Buffer::Read(OUT, cut), Buffer::Read(OUT + u64::from(cut), all - cut)]);
                    sent.push(frame);
                }
                Step::Come(len) => {
                    let frame = numbered(came.len(), len);
                    far.send(&frame, None);
                    came.push(frame);
                }
                Step::Offer => {
                    driver.select(RECEIVE);
                    if let Some(slot) = (0..4).find(|slot| !places.contains(&Some(*slot))) {
                        let old = driver.available_index();
                        let head = driver.offer(&[Buffer::Write(DATA + slot * SLOT, SLOT as u32)]);
                        places[usize::from(head)] = Some(slot);
                        if driver.must_notify(old) {
                            driver.notify();
                        }
                    }
                }
                Step::Notify(queue) => {
                    driver.select(queue);
                    driver.notify();
                }
                Step::Poll => driver.poll(),
                Step::Take => {
                    driver.select(RECEIVE);
                    for (head, len) in driver.take_used() {
                        let slot = places[head as usize].take().unwrap();
                        let frame = driver.bytes(DATA + slot * SLOT + 12, len as usize - 12);
                        prop_assert_eq!(Some(&frame), came.get(taken), "frame {}", taken);
                        taken += 1;
                    }
                }
            }
            while let Some((frame, missing)) = arrived(&mut far) {
                prop_assert_eq!((Some(&frame), missing), (sent.get(seen), None));
                seen += 1;
            }
        }
        prop_assert_eq!(seen, sent.len(), "all that was sent arrived");
        let waits = places.iter().any(Option::is_some);
        prop_assert!(taken == came.len() || !waits, "who has room gets what came");
        prop_assert!(!driver.needs_reset());
    }
}

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;

#[test]
fn what_one_pair_sends_does_not_silence_what_another_sent() {
    let (mut driver, _far) = card_with_pairs(2);
    driver.memory.write(DATA, &[0; 12]).unwrap();
    driver.select(TRANSMIT + 2);
    driver.transfer(&[Buffer::Read(DATA, 72)]);
    driver.select(TRANSMIT);
    driver.set_available_flags(1);
    for sent in 1..=4 {
        driver.transfer(&[Buffer::Read(DATA, 72)]);
        assert_eq!(driver.interrupts, usize::from(sent == 4), "after {sent} frames");
    }
}

/// A card with several pairs of queues, of which the driver knows.
fn card_with_pairs(pairs: u16) -> (Driver<Net>, Cable) {
    let (near, far) = Cable::new();
    (Driver::new(Net::new(Box::new(near), MAC, pairs), CTRL_VQ | MQ | MRG_RXBUF, 8), far)
}

/// The answer to a command on the control queue.
fn command(driver: &mut Driver<Net>, queue: usize, command: &[u8]) -> u8 {
    driver.select(queue);
    driver.memory.write(DATA, command).unwrap();
    driver.memory.write_u8(DATA + 100, 0xee).unwrap();
    let written = driver.transfer(&[Buffer::Read(DATA, command.len() as u32), Buffer::Write(DATA + 100, 1)]);
    assert_eq!(written, 1);
    driver.memory.read_u8(DATA + 100).unwrap()
}

#[test]
fn a_driver_says_how_many_pairs_it_uses_and_frames_come_where_it_sent() {
    let (mut driver, mut far) = card_with_pairs(3);
    assert_eq!(driver.device.read(0x108, 2), 3);
    let mut there = fake::long(IpVersion::V4, 0, 100).0;
    let mut back = there.clone();
    back[26..34].rotate_left(4);
    back[34..38].rotate_left(2);
    for (pairs, used) in [(1, 0), (3, 1), (3, 2), (1, 0), (2, 1)] {
        assert_eq!(command(&mut driver, 6, &[4, 0, pairs, 0]), 0);
        driver.select(2 * used + TRANSMIT);
        driver.memory.write(DATA, &[0; 12]).unwrap();
        there[0] = used as u8;
        driver.memory.write(DATA + 12, &there).unwrap();
        driver.transfer(&[Buffer::Read(DATA, 12 + there.len() as u32)]);
        assert_eq!(arrived(&mut far), Some((there.clone(), None)));
        driver.select(2 * used + RECEIVE);
        driver.offer(&[Buffer::Write(DATA, 2000)]);
        driver.take_interrupt();
        let before = driver.interrupts;
        far.send(&back, None);
        driver.poll();
        assert_eq!(driver.take_used().len(), 1, "{pairs} pairs, sent on {used}");
        assert!(driver.interrupts > before);
    }
}

#[test]
fn a_frame_for_a_queue_without_buffers_waits_for_one() {
    let (mut driver, mut far) = card_with_pairs(2);
    assert_eq!(command(&mut driver, 4, &[4, 0, 2, 0]), 0);
    let frames = (0..20u8).map(|port| {
        let mut frame = fake::long(IpVersion::V4, 0, 10).0;
        frame[35] = port;
        frame
    });
    frames.for_each(|frame| far.send(&frame, None));
    let mut came = 0;
    for _ in 0..20 {
        for queue in [0, 2] {
            driver.select(queue);
            driver.offer(&[Buffer::Write(DATA, 2000)]);
            driver.notify();
            came += driver.take_used().len();
        }
    }
    assert_eq!(came, 20);
}

#[test]
fn a_command_that_was_not_offered_is_an_error_and_changes_nothing() {
    let (mut driver, _) = card_with_pairs(2);
    for wrong in [&[4, 0, 0, 0], &[4, 0, 3, 0], &[4, 1, 2, 0], &[0, 0, 1, 0], &[1, 1, 0, 0]] {
        assert_eq!(command(&mut driver, 4, wrong), 1, "{wrong:?}");
    }
    // Who does not know of several pairs has the queue behind the first.
    let (near, _) = Cable::new();
    let mut driver = Driver::new(Net::new(Box::new(near), MAC, 2), CTRL_VQ, 8);
    assert_eq!(command(&mut driver, 2, &[4, 0, 2, 0]), 1);
    let (near, _) = Cable::new();
    assert_eq!(Driver::new(Net::new(Box::new(near), MAC, 1), 0, 8).device.device().queue_sizes().len(), 2);
}

#[test]
fn a_command_without_room_for_its_answer_stops_the_device() {
    let (mut driver, _) = card_with_pairs(2);
    driver.select(4);
    driver.memory.write(DATA, &[4, 0, 2, 0]).unwrap();
    driver.offer(&[Buffer::Read(DATA, 4)]);
    driver.notify();
    assert!(driver.needs_reset());
}
