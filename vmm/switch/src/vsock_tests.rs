//! The relay between socket devices that behave, that stop and that lie.

use crate::relay::{PATIENCE_MS, Relay};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering;
use net_channel::{End, Signal, Sockets};
use proptest::prelude::*;
use usys::Window;
use vdev::vsock::packet::{HEADER, Header, op};
use vdev::vsock::{Arrival, Link, MAX_DATA, MAX_PACKET, Room};
use vmm_protocol::net::{self, CHANNEL_BYTES, SLOTS, Side};
use vmm_protocol::vsock::HALF;

/// A flag that a signal sets.
#[derive(Clone, Debug, Default)]
struct Bell(Rc<Cell<u64>>, u64);

impl Signal for Bell {
    fn signal(&self) {
        self.0.set(self.0.get() | self.1);
    }
}

/// VMs 3, 4, …, of which each is given a turn only when it is signalled, as is the relay.
struct Net {
    relay: Relay<Bell>,
    vms: Vec<Sockets<Bell>>,
    windows: Vec<Window>,
    relay_bell: Rc<Cell<u64>>,
    vm_bell: Rc<Cell<u64>>,
    rest: u64,
    now: u64,
}

const FIRST_CID: u32 = 3;
/// Ticks a second.
const HZ: u64 = 1000;

impl Net {
    fn new(count: usize) -> Self {
        let (relay_bell, vm_bell) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let windows: Vec<_> = (0..count).map(|_| Window::leak(CHANNEL_BYTES)).collect();
        let at = |index: usize| (FIRST_CID + index as u32, 1u64 << index);
        let ports = (0..count).map(|index| {
            let bell = Bell(vm_bell.clone(), at(index).1);
            (at(index).0, End::new(windows[index], Side::Switch, bell).unwrap())
        });
        let relay = Relay::new(ports.collect(), HZ);
        let vms = (0..count).map(|index| Self::vm(windows[index], &relay_bell, index));
        let vms = vms.collect();
        let mut net = Net { relay, vms, windows, relay_bell, vm_bell, rest: 0, now: 0 };
        net.run();
        net.vms.iter_mut().for_each(Link::open);
        net.run();
        net
    }

    fn vm(window: Window, relay: &Rc<Cell<u64>>, index: usize) -> Sockets<Bell> {
        Sockets::new(End::new(window, Side::Card, Bell(relay.clone(), 1 << index)).unwrap())
    }

    /// Lets the relay run as long as it has something to do.
    fn run(&mut self) {
        for _ in 0..1000 {
            let pending = self.rest | self.relay_bell.take();
            let is_due = self.relay.deadline().is_some_and(|deadline| deadline <= self.now);
            if pending == 0 && !is_due {
                return;
            }
            self.rest = self.relay.round(pending, self.now);
        }
        panic!("the relay does not come to rest");
    }

    /// Sends if there is room.
    fn send(&mut self, from: usize, to: u32, number: u32, len: usize) -> Room {
        let link = &mut self.vms[from];
        let room = link.room();
        if room == Room::Free {
            link.send(&packet(FIRST_CID + from as u32, to, number, len));
            link.flush();
        }
        room
    }

    /// What arrives at a VM: numbers of packets.
    fn receive(&mut self, at: usize) -> Option<Result<u32, Arrival>> {
        let mut bytes = [0; MAX_PACKET];
        Some(match self.vms[at].receive(&mut bytes)? {
            Arrival::Packet(len) => {
                let header = Header::decode(bytes.first_chunk().unwrap());
                let from = header.src_cid as u32;
                assert!(bytes[..len] == packet(from, FIRST_CID + at as u32, header.src_port, len - HEADER));
                Ok(header.src_port)
            }
            other => Err(other),
        })
    }

    /// Sends until there is no room.
    fn fill(&mut self, from: usize, to: u32) -> u32 {
        for number in 0..1000 {
            if self.send(from, to, number, 100) != Room::Free {
                return number;
            }
            self.run();
        }
        panic!("there is room for everything");
    }
}

fn packet(from: u32, to: u32, number: u32, len: usize) -> Vec<u8> {
    let header = Header {
        src_cid: from.into(),
        dst_cid: to.into(),
        src_port: number,
        len: len as u32,
        kind: 1,
        op: op::RW,
        ..Header::default()
    };
    let data = (0..len).map(|at| (at as u32 * 3 + number) as u8);
    header.encode().into_iter().chain(data).collect()
}

#[test]
fn a_packet_goes_to_the_vm_that_it_names_and_to_nobody_else() {
    let mut net = Net::new(3);
    for (number, len) in [(0, 0), (1, 1), (2, MAX_DATA)] {
        assert_eq!(net.send(0, 5, number, len), Room::Free);
        net.run();
        assert_eq!(net.receive(2), Some(Ok(number)));
        assert_eq!((net.receive(0), net.receive(1), net.receive(2)), (None, None, None));
    }
}

#[test]
fn who_sends_to_a_vm_that_is_not_there_is_told() {
    let mut net = Net::new(2);
    net.send(0, 9, 1, 10);
    net.run();
    assert_eq!(net.receive(0), Some(Err(Arrival::Gone(9))));
    net.vms[1].close();
    net.run();
    assert_eq!(net.receive(0), Some(Err(Arrival::Gone(4))), "at once");
    net.send(0, 4, 1, 10);
    net.run();
    assert_eq!(net.receive(0), Some(Err(Arrival::Gone(4))), "and whenever it sends");
    net.vms[1].open();
    net.run();
    net.send(0, 4, 2, 10);
    net.run();
    assert_eq!((net.receive(0), net.receive(1)), (None, Some(Ok(2))));
}

#[test]
fn a_full_ring_holds_back_the_sender_and_loses_nothing() {
    let mut net = Net::new(2);
    let count = net.fill(0, 4);
    assert_eq!(count as usize, 2 * SLOTS);
    net.vm_bell.take();
    let mut came = 0;
    for _ in 0..HALF {
        assert_eq!(net.receive(1), Some(Ok(came)));
        came += 1;
    }
    net.run();
    assert_eq!(net.vm_bell.take() & 1, 1, "who waits for room is told");
    assert_eq!(net.send(0, 4, count, 100), Room::Free);
    net.run();
    for expected in came..=count {
        assert_eq!(net.receive(1), Some(Ok(expected)));
        net.run();
    }
    assert_eq!(net.receive(1), None);
}

#[test]
fn a_vm_that_takes_nothing_while_others_wait_is_cut_off_and_delays_nobody_for_longer() {
    let mut net = Net::new(3);
    net.fill(0, 4);
    net.send(0, 5, 7, 10);
    assert!(net.relay.deadline().is_some_and(|deadline| deadline == PATIENCE_MS * HZ / 1000));
    net.now = PATIENCE_MS * HZ / 1000 - 1;
    net.run();
    assert_eq!((net.receive(2), net.receive(0)), (None, None));
    net.now += 1;
    net.run();
    assert_eq!(net.receive(0), Some(Err(Arrival::Gone(4))));
    while net.receive(0).is_some() {}
    net.run();
    assert_eq!(net.send(0, 5, 8, 10), Room::Free);
    net.run();
    assert_eq!(net.receive(2), Some(Err(Arrival::Gone(4))));
    assert_eq!(net.receive(2), Some(Ok(8)));
    assert_eq!(net.receive(1), Some(Err(Arrival::Interrupted)));
    net.run();
    net.send(0, 4, 9, 10);
    net.run();
    assert_eq!(net.receive(1), Some(Ok(9)), "it has another chance");
}

#[test]
fn a_vm_that_ended_or_was_replaced_is_gone_before_its_successor_speaks() {
    let mut net = Net::new(2);
    let window = net.windows[1];
    // As the root task does it.
    window.atomic_u64(Side::Card.session()).unwrap().store(0, Ordering::Release);
    net.relay_bell.set(2);
    net.run();
    net.vms[1] = Net::vm(window, &net.relay_bell, 1);
    net.run();
    net.vms[1].open();
    net.run();
    assert_eq!(net.send(1, 3, 5, 10), Room::Free);
    net.run();
    assert_eq!(net.receive(0), Some(Err(Arrival::Gone(4))));
    assert_eq!(net.receive(0), Some(Ok(5)));
    assert_eq!(net.receive(1), None);
}

#[test]
fn a_switch_that_is_replaced_interrupts_every_connection() {
    let mut net = Net::new(2);
    net.send(0, 4, 1, 10);
    let ports = (0..2usize).map(|index| {
        let bell = Bell(net.vm_bell.clone(), 1 << index);
        (FIRST_CID + index as u32, End::new(net.windows[index], Side::Switch, bell).unwrap())
    });
    net.relay = Relay::new(ports.collect(), HZ);
    net.rest = u64::MAX;
    net.run();
    for vm in 0..2 {
        assert_eq!(net.receive(vm), Some(Err(Arrival::Interrupted)));
    }
    net.run();
    net.send(0, 4, 2, 10);
    net.run();
    assert_eq!(net.receive(1), Some(Ok(2)));
}

#[test]
fn nobody_sends_as_another_or_to_itself_or_before_it_is_open() {
    let mut net = Net::new(3);
    for (from, to) in [(4, 5), (0, 5), (3, 3)] {
        net.vms[0].send(&packet(from, to, 1, 10));
    }
    net.vms[0].send(&[3; HEADER - 1]);
    net.vms[0].flush();
    net.run();
    net.vms[1].close();
    net.run();
    assert_eq!(net.vms[1].room(), Room::Free);
    net.vms[1].send(&packet(4, 5, 1, 10));
    net.vms[1].flush();
    net.run();
    assert_eq!(net.receive(2), Some(Err(Arrival::Gone(4))));
    assert_eq!((net.receive(2), net.receive(0)), (None, Some(Err(Arrival::Gone(4)))));
}

/// What a VMM that means harm writes into its channel.
fn harm() -> impl Strategy<Value = (usize, u32)> {
    let words = vec![
        Side::Card.session(),
        Side::Card.session() + 4,
        Side::Card.put(),
        Side::Switch.taken(),
        Side::Switch.taken() + 4,
    ];
    let slot = (0..SLOTS as u32, 0..16usize).prop_map(|(index, word)| Side::Card.slot(index) + word * 4);
    let value = prop_oneof![0..300u32, any::<u32>(), Just(16), Just(60)];
    (prop_oneof![prop::sample::select(words), slot], value)
}

proptest! {
    #[test]
    fn no_vmm_harms_the_talk_of_others(harms in prop::collection::vec((harm(), 0..3u64), 1..60)) {
        let mut net = Net::new(3);
        let mut expected = VecDeque::new();
        for (number, ((offset, value), wait)) in (0..).zip(harms) {
            net.windows[2].atomic_u32(offset).unwrap().store(value, Ordering::Release);
            net.relay_bell.set(net.relay_bell.get() | 4);
            net.now += wait * 600;
            net.run();
            if net.send(0, 4, number, 50) == Room::Free {
                expected.push_back(number);
            }
            net.run();
            while let Some(arrival) = net.receive(1) {
                match arrival {
                    Ok(number) if number < 1000 => prop_assert_eq!(Some(number), expected.pop_front()),
                    // What the liar sends for itself, it may.
                    Ok(_) => {}
                    other => prop_assert_eq!(other, Err(Arrival::Gone(5))),
                }
                net.run();
            }
            prop_assert!(expected.is_empty());
        }
    }

    #[test]
    fn packets_arrive_in_order_under_any_schedule_with_signals_alone(
        turns in prop::collection::vec((0..4usize, 1..200u32), 1..60),
    ) {
        let mut net = Net::new(3);
        let (mut sent, mut came) = ([0; 2], [0; 2]);
        let mut is_waiting = [false; 2];
        for (who, count) in turns.into_iter().chain((0..200).map(|turn| (2 + turn % 2, 200))) {
            match who {
                // 0 and 1 send to the third, and wait for a signal where there is no room.
                0 | 1 if !is_waiting[who] || net.vm_bell.get() & 1 << who != 0 => {
                    net.vm_bell.set(net.vm_bell.get() & !(1 << who));
                    is_waiting[who] = false;
                    for _ in 0..count {
                        if net.send(who, 5, sent[who] << 1 | who as u32, 20) != Room::Free {
                            is_waiting[who] = true;
                            break;
                        }
                        sent[who] += 1;
                    }
                }
                2 => for _ in 0..count {
                    match net.receive(2) {
                        None => break,
                        Some(Ok(number)) => {
                            let from = number as usize & 1;
                            prop_assert_eq!(number >> 1, came[from]);
                            came[from] += 1;
                        }
                        other => prop_assert!(false, "{other:?}"),
                    }
                },
                _ => net.run(),
            }
        }
        prop_assert_eq!(came, sent);
        for (who, is_waiting) in is_waiting.into_iter().enumerate() {
            prop_assert!(!is_waiting || net.vm_bell.get() & 1 << who != 0, "who waited was told");
        }
    }
}

const _: () = assert!(net::MAX_FRAME >= MAX_PACKET);
