//! Both ends together, and each with a peer that means harm.

use crate::{End, Signal};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering;
use proptest::prelude::*;
use usys::Window;
use vdev::net::{Checksum, Link};
use vmm_protocol::net::*;

#[derive(Clone, Debug, Default)]
pub(crate) struct Bell(Rc<Cell<u32>>);

impl Signal for Bell {
    fn signal(&self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Bell {
    pub(crate) fn take(&self) -> u32 {
        self.0.take()
    }
}

pub(crate) struct Fixture {
    pub(crate) window: Window,
    pub(crate) card: End<Bell>,
    pub(crate) switch: End<Bell>,
    /// What wakes the card, and the switch.
    pub(crate) card_bell: Bell,
    pub(crate) switch_bell: Bell,
}

impl Fixture {
    fn new() -> Self {
        let window = Window::leak(CHANNEL_BYTES);
        let (card_bell, switch_bell) = (Bell::default(), Bell::default());
        let card = End::new(window, Side::Card, switch_bell.clone()).unwrap();
        let switch = End::new(window, Side::Switch, card_bell.clone()).unwrap();
        Fixture { window, card, switch, card_bell, switch_bell }
    }

    pub(crate) fn connected() -> Self {
        let mut fixture = Self::new();
        fixture.settle();
        fixture.card_bell.take();
        fixture.switch_bell.take();
        fixture
    }

    /// Each end looks as long as it is signalled.
    pub(crate) fn settle(&mut self) {
        while self.card_bell.take() + self.switch_bell.take() > 0 {
            self.card.is_up();
            self.switch.is_up();
        }
    }
}

pub(crate) fn frame(number: u32, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u32 * 31 + number * 7) as u8).collect()
}

pub(crate) fn send(end: &mut End<Bell>, number: u32, len: usize) -> bool {
    let frame = frame(number, len);
    let is_sent = end.put(Header { len: len as u16, missing: None }, &frame);
    end.flush();
    is_sent
}

pub(crate) fn receive(end: &mut End<Bell>) -> Option<Vec<u8>> {
    let mut bytes = [0; MAX_FRAME];
    Link::receive(end, &mut bytes).map(|(len, _)| bytes[..len].to_vec())
}

#[test]
fn two_ends_find_each_other_by_signals_alone_whoever_begins() {
    for is_card_first in [false, true] {
        let window = Window::leak(CHANNEL_BYTES);
        let (one, other) =
            if is_card_first { (Side::Card, Side::Switch) } else { (Side::Switch, Side::Card) };
        let bell = Bell::default();
        let mut first = End::new(window, one, bell.clone()).unwrap();
        assert!(!first.is_up() && !send(&mut first, 1, 60), "nobody is there");
        let mut second = End::new(window, other, bell.clone()).unwrap();
        while bell.take() > 0 {
            first.is_up();
            second.is_up();
        }
        assert!(first.is_up() && second.is_up());
        assert_eq!(bell.take(), 0);
    }
}

#[test]
fn frames_pass_both_ways_in_order_with_what_is_said_about_them() {
    let mut fixture = Fixture::connected();
    let missing = Checksum { start: 34, offset: 16 };
    for number in 0..1000 {
        let len = 14 + number as usize % 1505;
        assert!(send(&mut fixture.card, number, len));
        assert_eq!(receive(&mut fixture.switch), Some(frame(number, len)));
        Link::send(&mut fixture.switch, &frame(number, 60), Some(missing));
        Link::flush(&mut fixture.switch);
        let mut bytes = [0; MAX_FRAME];
        assert_eq!(Link::receive(&mut fixture.card, &mut bytes), Some((60, Some(missing))));
    }
    assert_eq!(receive(&mut fixture.card), None);
}

#[test]
fn a_frame_is_forwarded_with_the_start_that_was_checked() {
    let (mut from, mut to) = (Fixture::connected(), Fixture::connected());
    for len in [14, 15, 16, 17, 60, 1518] {
        assert!(send(&mut from.card, 1, len));
        let frame_there = from.switch.peek().unwrap();
        let mut start = frame_there.start();
        start[0] = start[0] & !0xff | 0x55;
        assert!(to.switch.forward(&frame_there, start));
        from.switch.release();
        to.switch.flush();
        let mut expected = frame(1, len);
        expected[0] = 0x55;
        assert_eq!(receive(&mut to.card), Some(expected), "{len} bytes");
    }
}

#[test]
fn a_card_that_only_sends_follows_a_switch_that_began_anew() {
    let mut fixture = Fixture::connected();
    fixture.switch = End::new(fixture.window, Side::Switch, fixture.card_bell.clone()).unwrap();
    // The first frame is the last switch's, and lost with it.
    for number in 0..3 {
        Link::send(&mut fixture.card, &frame(number, 60), None);
        Link::flush(&mut fixture.card);
        fixture.switch.is_up();
    }
    assert_eq!([1, 2].map(|_| receive(&mut fixture.switch)), [1, 2].map(|number| Some(frame(number, 60))));
}

#[test]
fn a_full_ring_loses_the_newest_frames_and_no_others() {
    let mut fixture = Fixture::connected();
    for number in 0..SLOTS as u32 {
        assert!(send(&mut fixture.card, number, 60));
    }
    assert!(!send(&mut fixture.card, 1000, 60));
    assert_eq!(receive(&mut fixture.switch), Some(frame(0, 60)));
    assert!(send(&mut fixture.card, SLOTS as u32, 60), "there is room again");
    for number in 1..=SLOTS as u32 {
        assert_eq!(receive(&mut fixture.switch), Some(frame(number, 60)));
    }
    assert_eq!(receive(&mut fixture.switch), None);
}

#[test]
fn only_an_end_that_waits_is_signalled() {
    let mut fixture = Fixture::connected();
    assert!(fixture.switch.prepare_to_wait());
    for number in 0..3 {
        send(&mut fixture.card, number, 60);
    }
    assert_eq!(fixture.switch_bell.take(), 1, "the first frame wakes it; it sees the others then");
    assert!(fixture.switch.peek().is_some());
    fixture.switch.release();
    send(&mut fixture.card, 3, 60);
    assert_eq!(fixture.switch_bell.take(), 0, "it does not wait");
    assert!(!fixture.switch.prepare_to_wait(), "there is more");
    while fixture.switch.peek().is_some() {
        fixture.switch.release();
    }
    assert!(fixture.switch.prepare_to_wait());
    send(&mut fixture.card, 4, 60);
    assert_eq!(fixture.switch_bell.take(), 1);
}

#[test]
fn an_end_that_is_replaced_costs_the_frames_in_the_rings_and_nothing_else() {
    for replaced in [Side::Card, Side::Switch] {
        let mut fixture = Fixture::connected();
        for number in 0..77 {
            send(&mut fixture.card, number, 60);
            send(&mut fixture.switch, number, 60);
        }
        match replaced {
            Side::Card => {
                fixture.card = End::new(fixture.window, Side::Card, fixture.switch_bell.clone()).unwrap()
            }
            Side::Switch => {
                fixture.switch = End::new(fixture.window, Side::Switch, fixture.card_bell.clone()).unwrap();
            }
        }
        // The one that stayed does not know yet.
        let stayed = if replaced == Side::Card { &mut fixture.switch } else { &mut fixture.card };
        stayed.put(Header { len: 60, missing: None }, &frame(99, 60));
        fixture.settle();
        assert_eq!((receive(&mut fixture.card), receive(&mut fixture.switch)), (None, None));
        for number in 200..500 {
            send(&mut fixture.card, number, 60);
            send(&mut fixture.switch, number, 60);
            assert_eq!(receive(&mut fixture.card), Some(frame(number, 60)));
            assert_eq!(receive(&mut fixture.switch), Some(frame(number, 60)));
        }
    }
}

#[test]
fn a_peer_that_loses_count_or_says_nonsense_has_to_begin_again() {
    for lie in 0..2 {
        let mut fixture = Fixture::connected();
        match lie {
            0 => fixture.window.atomic_u32(Side::Card.put()).unwrap().store(1000, Ordering::Release),
            _ => {
                send(&mut fixture.card, 1, 60);
                fixture.window.atomic_u64(Side::Card.slot(0)).unwrap().store(13, Ordering::Release);
            }
        }
        assert_eq!(receive(&mut fixture.switch), None);
        fixture.settle();
        assert!(send(&mut fixture.card, 2, 60), "it gets another chance");
        assert_eq!(receive(&mut fixture.switch), Some(frame(2, 60)));
    }
}

#[test]
fn memory_that_is_too_short_is_no_channel() {
    let window = Window::leak(CHANNEL_BYTES - 8);
    assert!(End::new(window, Side::Card, Bell::default()).is_err());
}

/// What a stranger writes.
fn harm() -> impl Strategy<Value = (usize, u32)> {
    let words = vec![
        Side::Card.session(),
        Side::Card.session() + 4,
        Side::Card.put(),
        Side::Switch.taken(),
        Side::Switch.taken() + 4,
    ];
    let slot = (0..SLOTS as u32, 0..4usize).prop_map(|(index, word)| Side::Card.slot(index) + word * 4);
    let value = prop_oneof![0..200u32, any::<u32>(), Just(60 | 1 << 16)];
    (prop_oneof![prop::sample::select(words), slot], value)
}

proptest! {
    #[test]
    fn no_card_makes_a_switch_take_what_is_no_frame_or_work_without_end(
        harms in prop::collection::vec(harm(), 1..100),
    ) {
        let mut fixture = Fixture::connected();
        for (number, (offset, value)) in harms.into_iter().enumerate() {
            fixture.window.atomic_u32(offset).unwrap().store(value, Ordering::Release);
            send(&mut fixture.card, number as u32, 60);
            let mut bytes = [0; MAX_FRAME];
            for _ in 0..2 * SLOTS {
                let Some((len, missing)) = Link::receive(&mut fixture.switch, &mut bytes) else { break };
                prop_assert!((MIN_FRAME..=MAX_FRAME).contains(&len));
                prop_assert!(missing.is_none_or(|missing| missing.fits(len)));
            }
            send(&mut fixture.switch, number as u32, 60);
            prop_assert!(fixture.card_bell.take() < 100);
        }
    }

    #[test]
    fn no_frame_is_lost_doubled_or_mixed_up_however_the_ends_take_turns(
        turns in prop::collection::vec((any::<bool>(), 1..9u32), 1..200),
    ) {
        let mut fixture = Fixture::connected();
        let (mut sent, mut received) = (0, 0);
        prop_assert!(fixture.switch.prepare_to_wait());
        for (is_card, count) in turns {
            for _ in 0..count {
                if is_card {
                    sent += u32::from(send(&mut fixture.card, sent, 60));
                } else if let Some(bytes) = receive(&mut fixture.switch) {
                    prop_assert_eq!(bytes, frame(received, 60));
                    received += 1;
                } else {
                    prop_assert_eq!(sent, received);
                    fixture.switch_bell.take();
                }
            }
            // The switch waits only where everything was received.
            prop_assert!(sent - received <= SLOTS as u32);
        }
    }
}
