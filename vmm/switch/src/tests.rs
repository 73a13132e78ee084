//! The switch between cards that behave and cards that do not.

use crate::forward::{BATCH, Switch};
use alloc::vec::Vec;
use net_channel::{End, Signal};
use proptest::prelude::*;
use usys::Window;
use vdev::net::Link;
use vmm_protocol::manifest::MacAddress;
use vmm_protocol::net::{CHANNEL_BYTES, Header, MAX_FRAME, SLOTS, Side};
use vmm_protocol::process::PortConfig;

/// Every end is looked at in every round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent;

impl Signal for Silent {
    fn signal(&self) {}
}

pub(crate) struct Net {
    pub(crate) switch: Switch<Silent>,
    pub(crate) cards: Vec<End<Silent>>,
}

pub(crate) fn mac(number: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, number as u8]
}

pub(crate) const ALL: [u8; 6] = [0xff; 6];
const STRANGER: [u8; 6] = [2, 1, 1, 1, 1, 1];

pub(crate) fn card(number: usize) -> PortConfig {
    PortConfig::Card { address: MacAddress(mac(number)), is_bridge: false }
}

fn bridge(number: usize) -> PortConfig {
    PortConfig::Card { address: MacAddress(mac(number)), is_bridge: true }
}

impl Net {
    pub(crate) fn new(ports: &[PortConfig]) -> Self {
        let windows: Vec<_> = ports.iter().map(|_| Window::leak(CHANNEL_BYTES)).collect();
        let end = |side| move |&window: &Window| End::new(window, side, Silent).unwrap();
        let switches = windows.iter().map(end(Side::Switch));
        let switch = Switch::new(ports.iter().copied().zip(switches).collect(), 1);
        let mut net = Net { switch, cards: windows.iter().map(end(Side::Card)).collect() };
        net.run(0);
        net.cards.iter_mut().for_each(|card| assert!(card.is_up()));
        net
    }

    pub(crate) fn run(&mut self, now: u64) {
        let mut pending = u64::MAX;
        for _ in 0..SLOTS {
            pending = self.switch.round(pending, now);
        }
        assert_eq!(pending, 0);
    }

    fn send(&mut self, from: usize, frame: &[u8]) {
        assert!(self.cards[from].put(Header { len: frame.len() as u16, missing: None }, frame));
        End::flush(&mut self.cards[from]);
    }

    pub(crate) fn receive(&mut self, at: usize) -> Option<Vec<u8>> {
        let mut bytes = [0; MAX_FRAME];
        let (len, _) = Link::receive(&mut self.cards[at], &mut bytes)?;
        Some(bytes[..len].to_vec())
    }

    /// Which cards get the frame.
    fn pass(&mut self, from: usize, frame: &[u8]) -> Vec<usize> {
        self.send(from, frame);
        self.run(0);
        (0..self.cards.len())
            .filter(|&at| {
                let got = self.receive(at);
                assert!(got.is_none() || got.as_deref() == Some(frame), "{got:?}");
                got.is_some() && self.receive(at).is_none()
            })
            .collect()
    }
}

fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(0..46);
    frame
}

#[test]
fn a_frame_reaches_whom_it_is_for_and_a_group_reaches_all_but_its_sender() {
    let mut net = Net::new(&[card(0), card(1), card(2), PortConfig::Uplink]);
    assert_eq!(net.pass(0, &frame(mac(2), mac(0))), [2]);
    assert_eq!(net.pass(2, &frame(ALL, mac(2))), [0, 1, 3]);
    assert_eq!(net.pass(1, &frame([0x33, 0x33, 0, 0, 0, 1], mac(1))), [0, 2, 3]);
    assert_eq!(net.pass(1, &frame(mac(1), mac(1))), [0; 0], "it is for the sender itself");
}

#[test]
fn a_stranger_behind_the_uplink_is_looked_for_everywhere_until_it_was_heard() {
    let mut net = Net::new(&[card(0), card(1), PortConfig::Uplink]);
    assert_eq!(net.pass(0, &frame(STRANGER, mac(0))), [1, 2]);
    assert_eq!(net.pass(2, &frame(mac(0), STRANGER)), [0]);
    assert_eq!(net.pass(0, &frame(STRANGER, mac(0))), [2]);
}

#[test]
fn nobody_sends_from_an_address_that_is_not_its_own() {
    let mut net = Net::new(&[card(0), card(1), bridge(2), PortConfig::Uplink]);
    for (from, source) in [(0, mac(1)), (0, STRANGER), (0, ALL), (2, mac(1)), (3, mac(1)), (3, ALL)] {
        assert_eq!(net.pass(from, &frame(ALL, source)), [0; 0], "{from} as {source:?}");
    }
    assert_eq!(net.pass(2, &frame(mac(0), STRANGER)), [0], "a bridge has other stations behind it");
    assert_eq!(net.pass(0, &frame(mac(1), mac(0))), [1], "and nobody's frames were drawn away");
}

#[test]
fn a_checksum_that_is_missing_is_filled_in_for_the_uplink_and_left_between_vms() {
    let mut net = Net::new(&[card(0), card(1), PortConfig::Uplink]);
    let frame = frame(ALL, mac(0));
    let header = Header { len: frame.len() as u16, missing: Some((14, 6)) };
    assert!(net.cards[0].put(header, &frame));
    End::flush(&mut net.cards[0]);
    net.run(0);
    let (mut inside, mut outside) = ([0; MAX_FRAME], [0; MAX_FRAME]);
    let (_, missing) = Link::receive(&mut net.cards[1], &mut inside).unwrap();
    assert_eq!(missing.map(|missing| (missing.start, missing.offset)), Some((14, 6)));
    let (_, missing) = Link::receive(&mut net.cards[2], &mut outside).unwrap();
    assert_eq!(missing, None);
    let words = outside[14..60].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    // The place held part of the sum, as that of a pseudo header: it was added, and then replaced by the complement.
    let replaced = u32::from(inside[20]) << 8 | u32::from(inside[21]);
    let place = u32::from(outside[20]) << 8 | u32::from(outside[21]);
    let total = sum - place + replaced;
    assert_eq!(!((total & 0xffff) + (total >> 16)) & 0xffff, place);
    let differing: Vec<_> = (0..60).filter(|&at| outside[at] != inside[at]).collect();
    assert!(differing.iter().all(|at| [20, 21].contains(at)), "{differing:?}");
}

#[test]
fn a_card_that_sends_without_end_leaves_the_others_their_turn() {
    let mut net = Net::new(&[card(0), card(1), card(2)]);
    for _ in 0..SLOTS {
        net.send(0, &frame(mac(2), mac(0)));
    }
    net.send(1, &frame(mac(2), mac(1)));
    let pending = net.switch.round(u64::MAX, 0);
    assert_eq!(pending, 1, "only the busy one has more");
    let position = (0..).find(|_| net.receive(2).is_some_and(|frame| frame[6..12] == mac(1)));
    assert_eq!(position, Some(BATCH), "the other's frame waits for one turn");
}

#[test]
fn a_card_that_does_not_look_loses_frames_and_delays_nobody() {
    let mut net = Net::new(&[card(0), card(1), card(2)]);
    for _ in 0..3 * SLOTS {
        net.send(0, &frame(mac(1), mac(0)));
        net.run(0);
    }
    net.send(0, &frame(mac(2), mac(0)));
    net.run(0);
    assert!(net.receive(2).is_some());
}

proptest! {
    #[test]
    fn whatever_the_frames_say_nobody_gets_their_own_back_and_the_switch_comes_to_rest(
        frames in prop::collection::vec((0..4usize, prop::collection::vec(any::<u8>(), 14..80)), 1..60),
    ) {
        let mut net = Net::new(&[card(0), bridge(1), card(2), PortConfig::Uplink]);
        for (from, frame) in frames {
            net.send(from, &frame);
            net.run(0);
            prop_assert_eq!(net.receive(from), None);
            for at in 0..4 {
                while net.receive(at).is_some() {}
            }
        }
    }
}
