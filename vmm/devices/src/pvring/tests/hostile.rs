//! Drivers that break the contract: their device stops, says why, and works again after a reset.

use super::*;
use crate::guest_mem::OutOfRange;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;

/// Asserts that the device stopped because of `fault`, said so everywhere, and is as new after a reset.
fn assert_stopped(mut rig: Rig, fault: Fault) {
    assert_eq!(rig.wires.faults, [(Kind::Block, fault)]);
    assert_eq!((rig.register(reg::STATE), rig.register(reg::FAULT)), (State::Failed as u32, fault as u32));
    assert_eq!(rig.wires.interrupts.len(), 1, "the driver is woken");
    assert_eq!(rig.memory.read_u32(RING + ring::FAULT as u64), Ok(fault as u32));
    let seen = rig.collect(0);
    rig.ring(0);
    assert_eq!((rig.collect(0), rig.wires.faults.len()), (Vec::new(), 1), "it serves nothing more; {seen:?}");
    rig.device.write(reg::STATE, 4, State::Running as u64);
    assert_eq!(rig.register(reg::STATE), State::Failed as u32);
    rig.device.write(reg::STATE, 4, 0);
    assert_eq!((rig.register(reg::STATE), rig.register(reg::FAULT)), (0, 0));
    rig.start();
    assert_eq!(rig.run(0, request(op::READ, 7, DATA, 512)), (Status::Done, 512));
    assert_eq!(rig.memory.read_u8(DATA), Ok(7));
}

#[test]
fn a_count_beyond_the_queue_stops_the_device() {
    for produced in [SIZE + 1, 1 << 31, u32::MAX] {
        let mut rig = Rig::new(disk());
        rig.memory.write_u64(RING, Word { produced, threshold: 0 }.encode()).unwrap();
        rig.ring(0);
        assert_stopped(rig, Fault::Index);
    }
}

#[test]
fn a_count_that_goes_back_stops_the_device() {
    let mut rig = Rig::new(disk());
    for _ in 0..3 {
        rig.run(0, request(op::READ, 0, DATA, 512));
    }
    rig.memory.write_u64(RING, Word { produced: 2, threshold: 0 }.encode()).unwrap();
    rig.ring(0);
    assert_stopped(rig, Fault::Index);
}

#[test]
fn buffers_and_tables_outside_memory_stop_the_device() {
    let cases = [
        (request(op::READ, 0, MEMORY as u64 - 511, 512), Fault::Address),
        (request(op::WRITE, 0, u64::MAX - 5, 512), Fault::Address),
        (Request { flags: INDIRECT, ..request(op::READ, 0, MEMORY as u64, 16) }, Fault::Address),
        (Request { flags: INDIRECT, ..request(op::READ, 0, DATA, 0) }, Fault::Segments),
        (Request { flags: INDIRECT, ..request(op::READ, 0, DATA, 24) }, Fault::Segments),
        (Request { flags: INDIRECT, ..request(op::READ, 0, DATA, 65 * 16) }, Fault::Segments),
    ];
    for (request, fault) in cases {
        let mut rig = Rig::new(disk());
        rig.submit(0, &[request], 0);
        rig.ring(0);
        assert_stopped(rig, fault);
    }
}

#[test]
fn what_cannot_be_a_queue_stops_the_device_at_its_start_or_at_its_use() {
    for (address, size) in [(RING, 3), (RING, 512), (RING + 8, 4), (u64::MAX - 63, 4), (RING, u32::MAX)] {
        let mut rig = Rig::stopped(disk());
        rig.device.write(reg::QUEUE + reg::QUEUE_ADDRESS, 8, address);
        rig.device.write(reg::QUEUE + reg::QUEUE_SIZE, 4, size.into());
        rig.device.write(reg::STATE, 4, 1);
        assert_eq!(rig.register(reg::STATE), State::Failed as u32, "{address:#x} {size}");
        assert_eq!(rig.register(reg::FAULT), Fault::Queue as u32);
    }
    for address in [MEMORY as u64, 1 << 62] {
        let mut rig = Rig::stopped(disk());
        rig.device.write(reg::QUEUE + reg::QUEUE_ADDRESS, 8, address);
        rig.device.write(reg::QUEUE + reg::QUEUE_SIZE, 4, 4);
        rig.device.write(reg::STATE, 4, 1);
        rig.ring(0);
        assert_eq!(rig.wires.faults, [(Kind::Block, Fault::Queue)]);
    }
    let mut rig = Rig::stopped(disk());
    rig.device.write(reg::ACCEPTED, 8, 1 << 63);
    rig.device.write(reg::STATE, 4, 1);
    assert_eq!(rig.register(reg::FAULT), Fault::Features as u32);
}

/// Memory whose ring changes whenever somebody looks.
struct Restless {
    memory: RefCell<VecMemory>,
    noise: Vec<(u16, u64)>,
    next: Cell<usize>,
}

impl Restless {
    fn stir(&self) {
        let Some((at, value)) = self.noise.get(self.next.get() % self.noise.len().max(1)) else { return };
        self.next.set(self.next.get() + 1);
        let _ = self.memory.borrow_mut().write_u64(RING + u64::from(at % 0x180 / 8 * 8), *value);
    }
}

impl GuestMemory for Restless {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        self.stir();
        self.memory.borrow().read(gpa, into)
    }

    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        self.stir();
        self.memory.get_mut().write(gpa, from)
    }

    fn size_bytes(&self) -> u64 {
        self.memory.borrow().size_bytes()
    }
}

/// Values that are near what a ring would hold, and values that are not.
fn values() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..8, 0x7ff0u64..0x9000, any::<u64>(), any::<u32>().prop_map(u64::from)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_ring_and_no_change_under_the_reader_does_more_than_stop_the_device(
        kind in 0usize..5,
        words in prop::collection::vec(values(), 64),
        noise in prop::collection::vec((any::<u16>(), values()), 0..6),
        writes in prop::collection::vec((0u64..0x200, prop::sample::select(vec![1u8, 2, 4, 8]), values()), 0..8),
        typed in prop::collection::vec(any::<u8>(), 0..100),
        turns in prop::collection::vec(0usize..9, 1..8),
    ) {
        let core = cores().into_iter().nth(kind).unwrap();
        let Rig { mut device, mut memory, .. } = Rig::new(core);
        for (word, at) in words.into_iter().zip((0..).step_by(8)) {
            memory.write_u64(RING + at, word).unwrap();
            memory.write_u64(ring_of(1) + at, word).unwrap();
        }
        let mut memory = Restless { memory: RefCell::new(memory), noise, next: Cell::new(0) };
        let mut wires = Wires::default();
        if let Core::Console(console, _) = device.core() {
            console.queue_input(&typed);
        }
        for (turn, write) in turns.iter().zip(writes.iter().map(Some).chain(core::iter::repeat(None))) {
            device.ring(*turn, &mut memory, &mut wires);
            device.nudge(*turn);
            device.catch_up(&mut memory, &mut wires);
            device.collect(&mut memory, &mut wires);
            if let Some(&(register, size, value)) = write {
                device.write(register, size, value);
                device.read(register, size, 0);
            }
            prop_assert!(wires.faults.len() <= 1 + writes.len());
        }
        // A driver that behaves finds a device that works.
        let mut rig = Rig { device, memory: memory.memory.into_inner(), wires: Wires::default(), submitted: [0; 2], collected: [0; 2] };
        rig.device.write(reg::STATE, 4, 0);
        rig.start();
        prop_assert_eq!(rig.register(reg::STATE), State::Running as u32);
        if kind == 0 {
            prop_assert_eq!(rig.run(0, request(op::FLUSH, 0, 0, 0)).0, Status::Done);
        }
    }
}
