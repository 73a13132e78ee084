//! A card and a link for tests.

use crate::{BATCH, Card, Pump};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use vdev::net::{Cable, Checksum, Link, MAX_FRAME};

#[derive(Debug, Default)]
struct FakeCard {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    room: usize,
    is_broken: bool,
    published: u32,
}

impl Card for FakeCard {
    type Failure = &'static str;

    fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>, Self::Failure> {
        if self.is_broken {
            return Err("it is broken");
        }
        Ok(self.arrived.pop_front().map(|frame| {
            into[..frame.len()].copy_from_slice(&frame);
            frame.len()
        }))
    }

    fn send(&mut self, frame: &[u8]) -> Result<bool, Self::Failure> {
        if self.sent.len() == self.room {
            return Ok(false);
        }
        self.sent.push(frame.to_vec());
        Ok(true)
    }

    fn publish(&mut self) {
        self.published += 1;
    }

    fn restart(&mut self) -> Result<(), Self::Failure> {
        self.is_broken = false;
        Ok(())
    }
}

fn pump() -> (Pump<FakeCard, Cable>, Cable) {
    let (end, switch) = Cable::new();
    (Pump::new(FakeCard { room: usize::MAX, ..FakeCard::default() }, end), switch)
}

#[test]
fn frames_go_both_ways_a_bounded_number_in_a_turn() {
    let (mut pump, mut switch) = pump();
    for index in 0..BATCH as u8 + 1 {
        pump.card().arrived.push_back(vec![index; 60]);
        switch.send(&[!index; 61], None);
    }
    assert_eq!(pump.turn(), Ok(true));
    assert_eq!((pump.card().sent.len(), pump.card().arrived.len()), (BATCH, 1));
    assert_eq!(pump.turn(), Ok(false));
    assert_eq!((pump.card().sent.len(), pump.card().arrived.len()), (BATCH + 1, 0));
    assert_eq!(pump.card().published, 2);
    let mut into = [0; MAX_FRAME];
    for index in 0..BATCH as u8 + 1 {
        assert_eq!(switch.receive(&mut into), Some((60, None)));
        assert_eq!(into[0], index);
        assert_eq!(pump.card().sent[usize::from(index)], [!index; 61]);
    }
}

#[test]
fn a_frame_waits_for_the_card_and_is_not_lost() {
    let (mut pump, mut switch) = pump();
    pump.card().room = 0;
    switch.send(&[1; 60], None);
    switch.send(&[2; 60], None);
    assert_eq!(pump.turn(), Ok(false));
    pump.card().room = 2;
    assert_eq!(pump.turn(), Ok(false));
    assert_eq!(pump.card().sent, [[1; 60], [2; 60]]);
}

#[test]
fn what_is_no_frame_is_passed_over_and_a_checksum_is_filled_in() {
    let (mut pump, mut switch) = pump();
    switch.send(&[9; 13], None);
    switch.send(&[0; 60], Some(Checksum { start: 14, offset: 2 }));
    assert_eq!(pump.turn(), Ok(false));
    let mut expected = [0; 60];
    expected[16..18].fill(0xff);
    assert_eq!(pump.card().sent, [expected]);
}

#[test]
fn a_broken_card_is_reported_and_serves_on_after_a_restart() {
    let (mut pump, mut switch) = pump();
    pump.card().is_broken = true;
    switch.send(&[1; 60], None);
    assert_eq!(pump.turn(), Err("it is broken"));
    pump.card().restart().unwrap();
    assert_eq!(pump.turn(), Ok(false));
    assert_eq!(pump.card().sent, [[1; 60]]);
}
