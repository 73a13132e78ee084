//! The driver's state machine and a card.

use crate::card::{Card, Failure};
use crate::fake::{Behaviour, FakeCard};
use crate::registers::page1;
use alloc::vec::Vec;
use uplink::Card as _;
use vdev::net::MAX_FRAME;

fn card(behaviour: Behaviour) -> Card<FakeCard> {
    Card::new(FakeCard::new(behaviour)).unwrap()
}

fn frame(bytes: usize, salt: u8) -> Vec<u8> {
    (0..bytes).map(|index| (index / 3) as u8 ^ salt).collect()
}

fn receive(card: &mut Card<FakeCard>) -> Option<Vec<u8>> {
    let mut into = [0; MAX_FRAME];
    card.receive(&mut into).unwrap().map(|bytes| into[..bytes].to_vec())
}

#[test]
fn a_card_is_found_by_its_address_and_listens_to_everybody() {
    let mut card = card(Behaviour::default());
    assert_eq!(card.address(), [0x52, 0x54, 0, 1, 2, 3]);
    let first = usize::from(page1::ADDRESS);
    assert_eq!(card.bus().page1[first..first + 6], [0x52, 0x54, 0, 1, 2, 3]);
    assert_eq!(card.bus().page1[8..16], [0xff; 8]);
    assert!(!card.bus().interrupts());
}

#[test]
fn what_is_no_card_is_an_error() {
    let absent = Behaviour { is_absent: true, ..Behaviour::default() };
    assert_eq!(Card::new(FakeCard::new(absent)).map(drop), Err(Failure::Absent));
    for address in [[1, 2, 3, 4, 5, 6], [0; 6], [0xff; 6]] {
        let odd = Behaviour { address, ..Behaviour::default() };
        assert_eq!(Card::new(FakeCard::new(odd)).map(drop), Err(Failure::Address));
    }
    let hung = Behaviour { hangs: true, ..Behaviour::default() };
    assert_eq!(Card::new(FakeCard::new(hung)).map(drop), Err(Failure::Transfer));
}

#[test]
fn frames_of_every_length_arrive_as_they_were_and_the_ring_wraps() {
    let mut card = card(Behaviour::default());
    for round in 0..3 {
        for bytes in (14..=MAX_FRAME).step_by(7) {
            let (one, other) = (frame(bytes, round), frame(MAX_FRAME - bytes + 14, !round));
            assert!(card.bus().arrive(&one) && card.bus().arrive(&other));
            assert!(card.bus().interrupts());
            card.look();
            assert_eq!(receive(&mut card), Some(one));
            assert_eq!(receive(&mut card), Some(other));
            assert_eq!(receive(&mut card), None);
            assert!(!card.bus().interrupts());
        }
    }
    assert_eq!(card.counts().overflows, 0);
}

#[test]
fn frames_leave_in_their_order_and_short_ones_are_filled_up() {
    let mut card = card(Behaviour { is_slow: true, ..Behaviour::default() });
    assert_eq!(card.send(&frame(14, 1)), Ok(true));
    assert_eq!(card.send(&frame(61, 2)), Ok(true));
    assert_eq!(card.send(&frame(100, 3)), Ok(false));
    card.bus().finish_transmission(false);
    card.look();
    assert_eq!(card.send(&frame(MAX_FRAME, 4)), Ok(true));
    card.bus().finish_transmission(false);
    card.look();
    card.bus().finish_transmission(false);
    card.look();
    assert!(card.leaving().is_none() && !card.bus().interrupts());
    let mut short = frame(14, 1);
    short.resize(60, 0);
    assert_eq!(card.bus().sent, [short, frame(61, 2), frame(MAX_FRAME, 4)]);
    assert_eq!((card.send(&[0; 13]), card.send(&[0; MAX_FRAME + 1])), (Ok(false), Ok(false)));
}

#[test]
fn a_frame_that_cannot_leave_does_not_hold_up_the_next() {
    let mut card = card(Behaviour { is_slow: true, ..Behaviour::default() });
    assert_eq!((card.send(&frame(70, 1)), card.send(&frame(80, 2))), (Ok(true), Ok(true)));
    card.bus().finish_transmission(true);
    card.look();
    card.bus().finish_transmission(false);
    card.look();
    assert_eq!(card.bus().sent, [frame(80, 2)]);
    assert_eq!(card.counts().not_sent, 1);
}

/// Fills the ring until a frame is lost; returns what is in it.
fn fill(card: &mut Card<FakeCard>) -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    loop {
        let next = frame(700, kept.len() as u8);
        if !card.bus().arrive(&next) {
            return kept;
        }
        kept.push(next);
    }
}

#[test]
fn a_full_ring_is_emptied_as_the_data_sheet_says_and_then_receives_again() {
    for round in 0..5 {
        let mut card = card(Behaviour::default());
        // Wherever the ring begins.
        for _ in 0..round * 7 {
            assert!(card.bus().arrive(&frame(200, 0)) && receive(&mut card).is_some());
        }
        let kept = fill(&mut card);
        assert!(kept.len() > 10);
        card.look();
        assert!(card.pause_ms().is_some() && !card.bus().interrupts());
        assert_eq!(card.send(&frame(60, 0)), Ok(false));
        assert_eq!(receive(&mut card), None);
        card.resume();
        assert!(!card.bus().arrive(&frame(99, 9)), "nothing arrives before the ring is empty");
        for expected in kept {
            assert_eq!(receive(&mut card), Some(expected));
        }
        assert_eq!(receive(&mut card), None);
        assert_eq!((card.send(&frame(60, 0)), card.counts().overflows), (Ok(true), 1));
        assert!(card.bus().arrive(&frame(100, 1)) && card.bus().interrupts());
        assert_eq!(receive(&mut card), Some(frame(100, 1)));
    }
}

#[test]
fn a_frame_that_an_overflow_cut_off_leaves_again_and_one_that_left_does_not() {
    for has_left in [false, true] {
        let mut card = card(Behaviour { is_slow: true, ..Behaviour::default() });
        assert_eq!((card.send(&frame(70, 1)), card.send(&frame(80, 2))), (Ok(true), Ok(true)));
        fill(&mut card);
        if has_left {
            // Between the reason to interrupt and the look at it.
            card.bus().finish_transmission(false);
        }
        card.look();
        card.resume();
        while receive(&mut card).is_some() {}
        card.look();
        while card.bus().is_transmitting() {
            card.bus().finish_transmission(false);
            card.look();
        }
        assert_eq!(card.bus().sent, [frame(70, 1), frame(80, 2)], "{has_left}");
        assert_eq!(card.leaving(), None);
    }
}

#[test]
fn a_damaged_ring_is_noticed_and_a_restart_mends_it() {
    let damages: &[(usize, u8)] = &[(1, 0x4b), (1, 0x80), (1, 0x4d), (2, 0), (3, 0x10)];
    for &(offset, value) in damages {
        let mut card = card(Behaviour::default());
        assert!(card.bus().arrive(&frame(300, 1)));
        card.bus().memory[0x4d00 + offset] = value;
        if offset == 2 {
            card.bus().memory[0x4d00 + 3] = 0;
        }
        assert_eq!(card.receive(&mut [0; MAX_FRAME]), Err(Failure::Ring), "{offset} {value:#x}");
        card.restart().unwrap();
        assert_eq!(card.bus().resets, 2);
        assert!(card.bus().arrive(&frame(300, 2)));
        assert_eq!(receive(&mut card), Some(frame(300, 2)));
    }
    let mut card = card(Behaviour::default());
    card.bus().page1[usize::from(page1::CURRENT)] = 0x20;
    assert_eq!(card.receive(&mut [0; MAX_FRAME]), Err(Failure::Ring));
}

#[test]
fn what_is_no_whole_frame_is_passed_over() {
    let mut card = card(Behaviour::default());
    assert!(
        card.bus().arrive(&frame(200, 1))
            && card.bus().arrive(&frame(10, 2))
            && card.bus().arrive(&frame(1600, 3))
    );
    assert!(card.bus().arrive(&frame(201, 4)));
    // The first was damaged on the wire.
    card.bus().memory[0x4d00] = 0;
    assert_eq!(receive(&mut card), Some(frame(201, 4)));
    assert_eq!(receive(&mut card), None);
}
