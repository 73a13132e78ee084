//! The driver of a card that talks to its switch, against the switch's end of the channel, in one process.

use core::ptr::NonNull;
use guest_pv_driver::abi::channel::{CHANNEL_BYTES, Header, MAX_FRAME, SLOTS, Side};
use guest_pv_driver::abi::device::{Kind, MAGIC, State, config, feature, reg};
use guest_pv_driver::{DirectNet, Error, Hal};
use net_channel::{End, Signal};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use usys::Window;

const CHANNEL: u64 = 0xd200_0000;
const DOORBELL: u32 = 0x18;

/// A VM with one card: its registers, and the channel's memory.
#[derive(Debug)]
struct Vm {
    memory: NonNull<u8>,
    offered: u64,
    state: Cell<u32>,
    accepted: Cell<u32>,
    rung: RefCell<Vec<u64>>,
}

impl Vm {
    fn new(offered: u64) -> Self {
        let words = Box::leak(vec![0u64; CHANNEL_BYTES / 8].into_boxed_slice());
        Vm {
            memory: NonNull::from(words).cast(),
            offered,
            state: Cell::new(0),
            accepted: Cell::new(0),
            rung: RefCell::default(),
        }
    }

    fn window(&self) -> Window {
        // SAFETY: the leaked memory is reached through windows and the driver alone, which use raw pointers.
        unsafe { Window::from_raw(self.memory.as_ptr(), CHANNEL_BYTES) }
    }

    fn has_rung(&self) -> bool {
        !self.rung.take().is_empty()
    }
}

// SAFETY: nothing but the channel is shared, and it exists for ever.
unsafe impl Hal for Vm {
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize) {
        (pointer.addr() as u64, len)
    }

    fn map_shared(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        (address == CHANNEL && len <= CHANNEL_BYTES).then_some(self.memory)
    }

    fn read_register(&self, address: u64) -> u32 {
        match address {
            reg::MAGIC => MAGIC,
            reg::KIND => Kind::Net as u32,
            reg::STATE => self.state.get(),
            reg::OFFERED => self.offered as u32,
            reg::DOORBELL => DOORBELL,
            config::NET_CHANNEL => CHANNEL as u32,
            config::NET_MTU => 1500,
            _ => 0,
        }
    }

    fn write_register(&self, address: u64, value: u32) {
        match address {
            reg::STATE => self.state.set(value),
            reg::ACCEPTED => self.accepted.set(value),
            _ => {}
        }
    }

    fn ring(&self, call: u64) {
        self.rung.borrow_mut().push(call);
    }
}

#[derive(Clone, Default)]
struct Bell(Rc<Cell<u32>>);

impl Signal for Bell {
    fn signal(&self) {
        self.0.set(self.0.get() + 1);
    }
}

fn switch(vm: &Vm) -> (End<Bell>, Bell) {
    let bell = Bell::default();
    (End::new(vm.window(), Side::Switch, bell.clone()).unwrap(), bell)
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number as usize * 31 + at) as u8).collect()
}

fn send(net: &mut DirectNet<&Vm>, number: u32, len: usize) -> bool {
    let sent = net.send(len, |bytes| bytes.copy_from_slice(&frame(number, len)));
    net.flush();
    sent.is_ok()
}

fn take(end: &mut End<Bell>) -> Option<Vec<u8>> {
    let frame = end.peek()?;
    let mut bytes = vec![0; frame.header.len.into()];
    frame.read(&mut bytes);
    end.release();
    Some(bytes)
}

fn put(end: &mut End<Bell>, number: u32, len: usize) -> bool {
    let is_put = end.put(Header { len: len as u16, missing: None }, &frame(number, len));
    end.flush();
    is_put
}

/// Both ends look until each has seen the other.
fn settle(net: &mut DirectNet<&Vm>, end: &mut End<Bell>) {
    for _ in 0..4 {
        end.is_up();
        net.flush();
    }
}

#[test]
fn a_switch_is_followed_whose_predecessor_turned_its_number_back() {
    let vm = Vm::new(feature::NET_DIRECT);
    let mut net = DirectNet::new(&vm, 0).unwrap();
    for number in [92u64, 91] {
        vm.window().write(Side::Switch.session(), &number.to_le_bytes()).unwrap();
        if number == 92 {
            net.flush();
        }
    }
    let (mut end, _) = switch(&vm);
    settle(&mut net, &mut end);
    assert!(send(&mut net, 7, 60));
    assert_eq!(take(&mut end), Some(frame(7, 60)));
}

#[test]
fn a_card_without_a_channel_or_a_kernel_that_does_not_map_it_is_refused() {
    assert_eq!(DirectNet::new(&Vm::new(0), 0).unwrap_err(), Error::NoQueue);
    let vm = Vm::new(feature::NET_DIRECT);
    assert!(DirectNet::new(&vm, 0).is_ok());
    assert_eq!(vm.accepted.get(), feature::NET_DIRECT as u32);
    assert_eq!(vm.state.get(), State::Reset as u32, "dropping it resets the device");
}

#[test]
fn frames_pass_both_ways_in_order_and_the_doorbell_is_the_channels() {
    let vm = Vm::new(feature::NET_DIRECT);
    let mut net = DirectNet::new(&vm, 0).unwrap();
    assert_eq!(vm.rung.take(), [0x4e43_0000 + u64::from(DOORBELL) + 2]);
    let (mut end, _) = switch(&vm);
    settle(&mut net, &mut end);
    for number in 0..1000 {
        let len = 14 + number as usize % 1505;
        assert!(send(&mut net, number, len));
        assert_eq!(take(&mut end), Some(frame(number, len)));
        assert!(put(&mut end, number, len));
        assert_eq!(net.receive(|_, bytes| bytes.to_vec()), Some(frame(number, len)));
    }
    assert_eq!(net.receive(|_, _| ()), None);
    assert_eq!(net.send(MAX_FRAME + 1, |_| ()), Err(Error::TooScattered));
}

#[test]
fn a_full_ring_says_so_and_has_room_again_when_frames_were_taken() {
    let vm = Vm::new(feature::NET_DIRECT);
    let mut net = DirectNet::new(&vm, 0).unwrap();
    assert!(!send(&mut net, 0, 60), "nobody is there");
    let (mut end, _) = switch(&vm);
    settle(&mut net, &mut end);
    for number in 0..SLOTS as u32 {
        assert!(send(&mut net, number, 60));
    }
    assert!(net.is_full() && !send(&mut net, 999, 60));
    assert_eq!(take(&mut end), Some(frame(0, 60)));
    assert!(!net.is_full());
}

#[test]
fn a_switch_that_is_started_again_loses_frames_and_goes_on() {
    let vm = Vm::new(feature::NET_DIRECT);
    let mut net = DirectNet::new(&vm, 0).unwrap();
    let (mut end, _) = switch(&vm);
    settle(&mut net, &mut end);
    assert!(send(&mut net, 1, 60) && put(&mut end, 2, 60));
    let (mut end, bell) = switch(&vm);
    assert!(bell.0.get() > 0, "it tells the card");
    settle(&mut net, &mut end);
    assert_eq!((take(&mut end), net.receive(|_, _| ())), (None, None));
    assert!(send(&mut net, 3, 60) && put(&mut end, 4, 60));
    assert_eq!(take(&mut end), Some(frame(3, 60)));
    assert_eq!(net.receive(|_, bytes| bytes.to_vec()), Some(frame(4, 60)));
    // And the other way round: a driver that is started again.
    drop(net);
    let mut net = DirectNet::new(&vm, 0).unwrap();
    settle(&mut net, &mut end);
    assert!(send(&mut net, 5, 60));
    assert_eq!(take(&mut end), Some(frame(5, 60)));
}

#[cfg(feature = "smoltcp")]
mod phy {
    use super::*;
    use guest_pv_driver::Ethernet;
    use guest_pv_driver::abi::channel::checksum::internet_sum;
    use smoltcp::phy::{Device, RxToken, TxToken};
    use smoltcp::time::Instant;

    const START: u16 = 34;
    const OFFSET: u16 = 16;

    #[test]
    fn a_stack_answers_while_it_reads_a_frame_whose_checksum_was_missing() {
        let vm = Vm::new(feature::NET_DIRECT);
        let mut net = DirectNet::new(&vm, 0).unwrap();
        let (mut end, _) = switch(&vm);
        settle(&mut net, &mut end);
        for number in 0..2 * SLOTS as u32 {
            let mut sent = frame(number, 60);
            // No pseudo header.
            sent[50..52].fill(0);
            end.put(Header { len: 60, missing: Some((START, OFFSET)) }, &sent);
            end.flush();
            let (frame_there, room) = Device::receive(&mut net, Instant::ZERO).unwrap();
            let sum = frame_there.consume(|bytes| {
                room.consume(bytes.len(), |answer| answer.copy_from_slice(bytes));
                internet_sum(&bytes[START.into()..], 0)
            });
            assert_eq!(sum, 0xffff);
            assert_eq!(take(&mut end).map(|answer| answer.len()), Some(60));
        }
        assert!(Device::receive(&mut net, Instant::ZERO).is_none());
    }

    #[test]
    fn an_answer_without_room_is_lost_and_nothing_is_sent_without_a_switch() {
        let vm = Vm::new(feature::NET_DIRECT);
        let mut net = DirectNet::new(&vm, 0).unwrap();
        assert!(net.transmit(Instant::ZERO).is_none());
        let (mut end, _) = switch(&vm);
        settle(&mut net, &mut end);
        while send(&mut net, 1, 60) {}
        assert!(put(&mut end, 2, 60));
        let (frame_there, room) = Device::receive(&mut net, Instant::ZERO).unwrap();
        frame_there.consume(|bytes| room.consume(bytes.len(), |answer| answer.copy_from_slice(bytes)));
        assert_eq!(take(&mut end), Some(frame(1, 60)));
        assert!(net.transmit(Instant::ZERO).is_some());
    }

    #[test]
    fn the_channel_is_taken_where_there_is_one() {
        let vm = Vm::new(feature::NET_DIRECT);
        let memory = Box::leak(Box::default());
        assert!(matches!(Ethernet::new(&vm, 0, memory), Ok(Ethernet::Direct(_))));
        let memory = Box::leak(Box::default());
        // This one has no queues, either.
        assert_eq!(Ethernet::new(&Vm::new(0), 0, memory).unwrap_err(), Error::NoQueue);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Receive,
    Sleep,
    SwitchPut(usize),
    SwitchTake,
    SwitchSleep,
    /// A hostile switch writes this somewhere into its words.
    Spoil(usize, u64),
}

fn step(hostile: bool) -> impl Strategy<Value = Step> {
    let len = 14..=MAX_FRAME;
    let honest = prop_oneof![
        len.clone().prop_map(Step::Send),
        Just(Step::Receive),
        Just(Step::Sleep),
        len.prop_map(Step::SwitchPut),
        Just(Step::SwitchTake),
        Just(Step::SwitchSleep),
    ];
    let slots = (0..SLOTS as u32).prop_map(|slot| Side::Switch.slot(slot));
    let words = prop_oneof![Just(64usize), Just(192), Just(256), slots];
    let spoil = (words, prop_oneof![any::<u64>(), 0..300u64]).prop_map(|(at, value)| Step::Spoil(at, value));
    if hostile { prop_oneof![honest, spoil].boxed() } else { honest.boxed() }
}

proptest! {
    #[test]
    fn in_every_order_of_steps_nothing_is_lost_and_no_sleeper_is_forgotten(
        steps in proptest::collection::vec(step(false), 1..400),
    ) {
        let vm = Vm::new(feature::NET_DIRECT);
        let mut net = DirectNet::new(&vm, 0).unwrap();
        let (mut end, bell) = switch(&vm);
        settle(&mut net, &mut end);
        vm.has_rung();
        bell.0.set(0);
        let (mut sent, mut taken, mut put_count, mut received) = (Vec::new(), 0, Vec::new(), 0);
        let (mut net_sleeps, mut switch_sleeps) = (false, false);
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u32;
            match step {
                Step::Send(len) => {
                    if send(&mut net, number, len) {
                        sent.push((number, len));
                        prop_assert!(vm.has_rung() || !switch_sleeps);
                        switch_sleeps = false;
                    }
                }
                Step::SwitchPut(len) => {
                    if put(&mut end, number, len) {
                        put_count.push((number, len));
                        prop_assert!(bell.0.take() > 0 || !net_sleeps);
                        net_sleeps = false;
                    }
                }
                Step::Receive => {
                    let expected = put_count.get(received).map(|&(number, len)| frame(number, len));
                    prop_assert_eq!(net.receive(|_, bytes| bytes.to_vec()), expected.clone());
                    received += usize::from(expected.is_some());
                }
                Step::SwitchTake => {
                    let expected = sent.get(taken).map(|&(number, len)| frame(number, len));
                    prop_assert_eq!(take(&mut end), expected.clone());
                    taken += usize::from(expected.is_some());
                }
                Step::Sleep => {
                    net_sleeps = net.sleep_is_safe();
                    prop_assert_eq!(net_sleeps, received == put_count.len());
                }
                Step::SwitchSleep => {
                    switch_sleeps = end.prepare_to_wait();
                    prop_assert_eq!(switch_sleeps, taken == sent.len());
                }
                Step::Spoil(..) => {}
            }
        }
    }

    #[test]
    fn a_hostile_switch_loses_frames_and_does_no_more(steps in proptest::collection::vec(step(true), 1..400)) {
        let vm = Vm::new(feature::NET_DIRECT);
        let mut net = DirectNet::new(&vm, 0).unwrap();
        let (mut end, _) = switch(&vm);
        settle(&mut net, &mut end);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Send(len) => {
                    send(&mut net, number as u32, len);
                }
                Step::Receive => {
                    let len = net.receive(|header, bytes| (usize::from(header.len), bytes.len()));
                    prop_assert!(len.is_none_or(|(said, is)| said == is && (14..=MAX_FRAME).contains(&is)));
                }
                Step::Sleep => {
                    net.sleep_is_safe();
                }
                Step::SwitchPut(len) => {
                    put(&mut end, number as u32, len);
                }
                Step::SwitchTake => {
                    take(&mut end);
                }
                Step::SwitchSleep => {
                    end.prepare_to_wait();
                }
                Step::Spoil(at, value) => vm.window().write(at, &value.to_le_bytes()).unwrap(),
            }
        }
        // An honest one behind it finds a card that works.
        let (mut end, _) = switch(&vm);
        settle(&mut net, &mut end);
        prop_assert!(send(&mut net, 7, 60));
        prop_assert_eq!(take(&mut end), Some(frame(7, 60)));
    }
}
