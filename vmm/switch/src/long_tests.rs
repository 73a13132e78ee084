//! The switch and long frames, between cards that take them and cards that do not.

use crate::forward::BATCH;
use crate::tests::{ALL, Net, card, mac};
use alloc::vec;
use alloc::vec::Vec;
use net_channel::End;
use vdev::net::{Checksum, IpVersion, IpVersions, Link, Long};
use vdev::tso::fake;
use vmm_protocol::net::{MAX_FRAME, MAX_LONG, SLOT_BYTES};
use vmm_protocol::process::PortConfig;

/// The first takes none, as a guest's own driver; the next two take all; then there is an uplink.
fn net() -> Net {
    let mut net = Net::new(&[card(0), card(1), card(2), PortConfig::Uplink]);
    net.cards[1].take_long(IpVersions::ALL);
    net.cards[2].take_long(IpVersions::ALL);
    net
}

/// A long frame from one card to another.
fn frame(to: [u8; 6], from: [u8; 6], number: u32, payload: usize) -> (Vec<u8>, Long) {
    let (mut frame, long) = fake::long(IpVersion::V4, number, payload);
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    (frame, long)
}

fn send(net: &mut Net, from: usize, (frame, long): &(Vec<u8>, Long)) {
    assert!(net.cards[from].peer_takes(long.version()), "a switch takes all");
    assert!(net.cards[from].put_long(*long, frame));
    End::flush(&mut net.cards[from]);
}

fn receive(net: &mut Net, at: usize) -> Option<(Vec<u8>, Long)> {
    assert_eq!(net.receive(at), None);
    let mut bytes = vec![0; MAX_LONG];
    let long = Link::receive_long(&mut net.cards[at], &mut bytes)?;
    bytes.truncate(long.bytes());
    Some((bytes, long))
}

/// The payloads of the pieces that come, together; each is handed to `check` with what is missing in it.
fn join(net: &mut Net, at: usize, mut check: impl FnMut(&mut [u8], Option<Checksum>)) -> Vec<u8> {
    let mut joined = Vec::new();
    let mut bytes = [0; MAX_FRAME];
    while let Some((len, missing)) = Link::receive(&mut net.cards[at], &mut bytes) {
        check(&mut bytes[..len], missing);
        joined.extend(&bytes[54..len]);
    }
    joined
}

#[test]
fn a_long_frame_goes_whole_to_a_vm_that_takes_it_and_in_pieces_to_one_that_does_not() {
    let mut net = net();
    for number in 0..20 {
        let long = frame(mac(2), mac(1), number, 64_000);
        send(&mut net, 1, &long);
        net.run(0);
        assert_eq!(receive(&mut net, 2), Some(long));
        let (bytes, long) = frame(mac(0), mac(1), number, 64_000);
        send(&mut net, 1, &(bytes.clone(), long));
        net.run(0);
        let joined = join(&mut net, 0, |piece, missing| {
            assert_eq!(missing, Some(Checksum { start: 34, offset: 16 }));
            assert_eq!(piece[..12], bytes[..12]);
        });
        assert_eq!(joined, bytes[54..]);
        assert_eq!([2, 3].map(|other| receive(&mut net, other)), [None, None]);
    }
}

#[test]
fn each_port_gets_a_frame_for_all_as_it_takes_it_and_the_uplink_with_checksums_whatever_it_says() {
    for says in [IpVersions::NONE, IpVersions::ALL] {
        let mut net = net();
        net.cards[3].take_long(says);
        let long = frame(ALL, mac(1), 1, 5000);
        send(&mut net, 1, &long);
        net.run(0);
        assert_eq!(receive(&mut net, 2).as_ref(), Some(&long));
        assert_eq!(join(&mut net, 0, |_, missing| assert!(missing.is_some())), long.0[54..]);
        let joined = join(&mut net, 3, |piece, missing| {
            assert_eq!(missing, None);
            let whole = piece.to_vec();
            // The sum of the pseudo header: TCP, its bytes, and the addresses.
            let addresses = piece[26..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
            let mut sum = addresses.sum::<u32>() + 6 + (piece.len() as u32 - 34);
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            piece[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
            Checksum { start: 34, offset: 16 }.fill_in(piece);
            assert_eq!(piece, whole, "the checksum is right");
        });
        assert_eq!(joined, long.0[54..]);
        assert_eq!(receive(&mut net, 1), None);
    }
}

#[test]
fn a_long_frame_from_anothers_address_goes_nowhere() {
    let mut net = net();
    send(&mut net, 1, &frame(ALL, mac(2), 1, 5000));
    net.run(0);
    assert!((0..4).all(|at| receive(&mut net, at).is_none()));
}

#[test]
fn what_a_card_takes_may_change_between_two_frames() {
    let mut net = net();
    for (number, takes) in [IpVersions::ALL, IpVersions::NONE, IpVersions::ALL].into_iter().enumerate() {
        net.cards[2].take_long(takes);
        net.run(0);
        assert!(net.cards[2].is_up());
        let long = frame(mac(2), mac(1), number as u32, 3000);
        send(&mut net, 1, &long);
        net.run(0);
        if takes == IpVersions::ALL {
            assert_eq!(receive(&mut net, 2), Some(long));
        } else {
            assert_eq!(join(&mut net, 2, |_, _| ()), long.0[54..]);
        }
    }
}

#[test]
fn long_frames_count_in_a_turn_as_their_slots_do() {
    let mut net = net();
    for number in 0..3 {
        send(&mut net, 1, &frame(mac(2), mac(1), number, 64_000));
    }
    send(&mut net, 0, &frame(mac(2), mac(0), 3, 1000));
    const { assert!(64_000 / SLOT_BYTES + 1 >= BATCH) };
    assert_eq!(net.switch.round(u64::MAX, 0), 1 << 1, "only the busy one has more");
    let senders = [(); 3].map(|()| receive(&mut net, 2).map(|(bytes, _)| bytes[11]));
    assert_eq!(senders, [Some(0), Some(1), None]);
}

#[test]
fn a_card_whose_ring_has_no_room_for_a_long_frame_loses_it_and_delays_nobody() {
    let mut net = net();
    for number in 0..20 {
        send(&mut net, 1, &frame(mac(2), mac(1), number, 60_000));
        net.run(0);
    }
    for number in 0..4 {
        assert_eq!(receive(&mut net, 2), Some(frame(mac(2), mac(1), number, 60_000)));
    }
    assert_eq!(receive(&mut net, 2), None);
    send(&mut net, 1, &frame(mac(2), mac(1), 20, 60_000));
    net.run(0);
    assert!(receive(&mut net, 2).is_some());
}
