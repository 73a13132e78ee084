//! The drivers against the devices of the VMM, in one process: what goes in comes out, in every order of their steps.

use core::ptr::NonNull;
use guest_pv_driver::abi::DOORBELL_CALL;
use guest_pv_driver::abi::device::{Fault, Interrupt, Kind};
use guest_pv_driver::abi::op;
use guest_pv_driver::{
    Block, BlockDevice, Console, ConsoleMemory, Control, Error, Hal, Net, NetMemory, QueueMemory,
};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use vdev::Request;
use vdev::block::{Backend, Completion, Disk, Geometry, MemoryDisk, Token};
use vdev::guest_mem::{GuestMemory, OutOfRange};
use vdev::net::{Checksum, Link, Long};
use vdev::pvring::{self, Board, Core, Device};

const ARENA: usize = 256 << 10;

/// The guest's memory: a piece of this process's, from address 0 on.
#[derive(Clone, Copy)]
struct Arena(NonNull<u8>);

impl Arena {
    fn new() -> Self {
        let words = Box::leak(vec![0u128; ARENA / 16].into_boxed_slice());
        // Page-aligned addresses of the guest are aligned here as well: a page is lost for it.
        let base = words.as_mut_ptr().cast::<u8>();
        Arena(NonNull::new(base.wrapping_add(base.align_offset(4096))).unwrap())
    }

    fn place<T: Default>(self, at: usize) -> &'static mut T {
        assert!(at + size_of::<T>() <= ARENA - 4096);
        let pointer = self.0.as_ptr().wrapping_add(at).cast::<T>();
        // SAFETY: inside the arena, aligned, and every test gives each place away once.
        unsafe {
            pointer.write(T::default());
            &mut *pointer
        }
    }

    /// What a driver that means harm does.
    fn write_spoiled(mut self, gpa: u64, value: u64) {
        let _ = GuestMemory::write(&mut self, gpa, &value.to_le_bytes());
    }

    fn at(self, gpa: u64, len: usize) -> Result<*mut u8, OutOfRange> {
        let end = gpa.checked_add(len as u64).filter(|end| *end <= (ARENA - 4096) as u64);
        end.map(|_| self.0.as_ptr().wrapping_add(gpa as usize)).ok_or(OutOfRange { gpa, len })
    }
}

impl GuestMemory for Arena {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        // SAFETY: inside the arena; one thread, in which driver and device take turns.
        unsafe { self.at(gpa, into.len())?.copy_to(into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        // SAFETY: as above.
        unsafe { self.at(gpa, from.len())?.copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        (ARENA - 4096) as u64
    }
}

#[derive(Default)]
struct Wires {
    interrupts: usize,
    requests: Vec<Request>,
    faults: Vec<Fault>,
}

impl Board for Wires {
    fn raise(&mut self, _: Interrupt) {
        self.interrupts += 1;
    }

    fn request(&mut self, request: Request) {
        self.requests.push(request);
    }

    fn report(&mut self, _: Kind, fault: Fault) {
        self.faults.push(fault);
    }
}

/// A VM with one device.
struct Host {
    arena: Arena,
    device: RefCell<Device>,
    wires: RefCell<Wires>,
    /// Doorbells are answered at once; else they are noted in `rung`.
    is_prompt: Cell<bool>,
    rung: Cell<u64>,
}

impl Host {
    fn new(core: Core) -> Self {
        Host {
            arena: Arena::new(),
            device: RefCell::new(Device::new(core, 0x40)),
            wires: RefCell::default(),
            is_prompt: Cell::new(true),
            rung: Cell::new(0),
        }
    }

    fn answer(&self, queue: usize) {
        self.device.borrow_mut().ring(queue, &mut { self.arena }, &mut *self.wires.borrow_mut());
    }

    fn step(&self) {
        let mut device = self.device.borrow_mut();
        let (memory, wires) = (&mut { self.arena }, &mut *self.wires.borrow_mut());
        let rung = self.rung.take();
        (0..8).filter(|queue| rung >> queue & 1 != 0).for_each(|queue| device.ring(queue, memory, wires));
        device.collect(memory, wires);
        device.catch_up(memory, wires);
    }

    /// The buffer of a sector.
    fn sector_buffer(&self, sector: u64) -> *mut u8 {
        self.arena.0.as_ptr().wrapping_add(0x1_0000 + sector as usize * 512)
    }
}

// SAFETY: the guest's memory is the arena, in one piece.
unsafe impl Hal for Host {
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize) {
        (pointer.addr().wrapping_sub(self.arena.0.addr().get()) as u64, len)
    }

    fn read_register(&self, address: u64) -> u32 {
        self.device.borrow().read(address, 4, 0) as u32
    }

    fn write_register(&self, address: u64, value: u32) {
        self.device.borrow_mut().write(address, 4, value.into());
    }

    fn ring(&self, call: u64) {
        let queue = call - DOORBELL_CALL - 0x40;
        if self.is_prompt.get() {
            self.answer(queue as usize);
        } else {
            self.rung.set(self.rung.get() | 1 << queue);
        }
    }

    fn keep_waiting(&self) -> bool {
        self.step();
        self.wires.borrow().faults.is_empty()
    }
}

fn memory_disk() -> Core {
    let disk = MemoryDisk::writable(vec![0; 64 * 512].leak());
    Core::Block(pvring::Block::new(Disk::new(Box::new(disk))))
}

#[test]
fn a_disk_keeps_what_is_written() {
    let host = Host::new(memory_disk());
    let mut disk = Block::new(&host, 0, host.arena.place::<QueueMemory>(0)).unwrap();
    assert_eq!(disk.sectors(), 64);
    let buffer = host.arena.place::<[[u8; 32]; 32]>(0x8000).as_flattened_mut();
    for round in 0..200u64 {
        buffer.fill(round as u8);
        disk.write(round % 63, buffer).unwrap();
        buffer.fill(0);
        disk.read(round % 63, buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == round as u8));
    }
    assert_eq!(host.wires.borrow().interrupts, 0, "who waits needs no interrupts");
    // A buffer that is no guest memory stops the device; opening it anew helps.
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Stopped(Some(Fault::Address))));
    host.wires.borrow_mut().faults.clear();
    drop(disk);
    let mut disk = Block::new(&host, 0, host.arena.place::<QueueMemory>(0)).unwrap();
    disk.read(199 % 63, buffer).unwrap();
    assert_eq!(buffer[0], 199);
}

#[test]
fn a_console_shows_output_and_gets_input() {
    let host = Host::new(Core::console());
    let mut console = Console::new(&host, 0, host.arena.place::<ConsoleMemory>(0)).unwrap();
    let text = host.arena.place::<[u8; 32]>(0x8000);
    text[..5].copy_from_slice(b"hello");
    for _ in 0..100 {
        console.write(&text[..5]).unwrap();
    }
    let mut typed = Vec::new();
    for round in 0..50u8 {
        if let Core::Console(core, _) = host.device.borrow_mut().core() {
            let shown: Vec<u8> = core.take_output().collect();
            assert!(round > 0 || shown == b"hello".repeat(100));
            core.queue_input(&[round; 100]);
        }
        host.device.borrow_mut().nudge(0);
        host.step();
        let mut bytes = [0; 33];
        while let len @ 1.. = console.read(&mut bytes).unwrap() {
            typed.extend_from_slice(&bytes[..len]);
        }
    }
    let expected: Vec<u8> = (0..50).flat_map(|round| [round; 100]).collect();
    assert_eq!(typed, expected);
}

#[test]
fn the_machine_ends_with_a_code() {
    let host = Host::new(Core::Control(pvring::Control::default()));
    let mut control = Control::new(&host, 0, host.arena.place::<QueueMemory>(0)).unwrap();
    control.exit(42).unwrap();
    assert_eq!(host.wires.borrow().requests, [Request::Exit(42)]);
}

/// Ends its requests when it likes.
struct SlowDisk {
    disk: MemoryDisk,
    waiting: Vec<(Token, Completion)>,
    pace: u64,
}

impl Backend for SlowDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn submit(
        &mut self,
        memory: &mut dyn GuestMemory,
        token: Token,
        request: &vdev::block::Request<'_>,
    ) -> core::task::Poll<Completion> {
        let done = self.disk.submit(memory, token, request);
        self.pace = self.pace.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        match done {
            core::task::Poll::Ready(completion) if self.pace >> 62 == 0 => {
                self.waiting.push((token, completion));
                core::task::Poll::Pending
            }
            done => done,
        }
    }

    fn take_completed(&mut self, _: &mut dyn GuestMemory) -> Option<(Token, Completion)> {
        (!self.waiting.is_empty()).then(|| self.waiting.remove(self.pace as usize % self.waiting.len()))
    }

    fn abandon(&mut self) {
        self.waiting.clear();
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Submit { is_write: bool, sector: u64 },
    Publish,
    Device,
    Collect,
    Sleep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (any::<bool>(), 0u64..64).prop_map(|(is_write, sector)| Step::Submit { is_write, sector }),
        1 => Just(Step::Publish),
        1 => Just(Step::Device),
        2 => Just(Step::Collect),
        1 => Just(Step::Sleep),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn in_any_schedule_every_request_ends_once_with_its_data(steps in steps(), is_prompt in any::<bool>(), pace in any::<u64>()) {
        let disk = MemoryDisk::writable(vec![0; 64 * 512].leak());
        let slow = SlowDisk { disk, waiting: Vec::new(), pace };
        let host = Host::new(Core::Block(pvring::Block::new(Disk::new(Box::new(slow)))));
        let mut disk = Block::new(&host, 0, host.arena.place::<QueueMemory>(0)).unwrap();
        disk.device().set_queue_interrupt(0, Some(Interrupt { vector: 0x41, apic_id: 0 }));
        host.is_prompt.set(is_prompt);
        let mut content = [0u64; 64];
        let mut flying = BTreeMap::new();
        let mut stamp = 0;
        let mut busy = [false; 64];
        let collect = |disk: &mut Block<&Host>, flying: &mut BTreeMap<u16, (u64, u64)>, busy: &mut [bool; 64]| {
            while let Some(done) = disk.collect().unwrap() {
                let (sector, expected) = flying.remove(&done.id).expect("each request ends once");
                busy[sector as usize] = false;
                assert_eq!((done.status, done.len), (0, 512));
                // SAFETY: the request has ended, so the buffer is ours.
                assert_eq!(unsafe { host.sector_buffer(sector).cast::<u64>().read() }, expected);
            }
        };
        for step in steps {
            match step {
                // One request for each sector at a time, in the buffer of the sector: the order among requests is free.
                Step::Submit { is_write, sector } if !busy[sector as usize] => {
                    let buffer = host.sector_buffer(sector);
                    if is_write {
                        stamp += 1;
                        content[sector as usize] = stamp;
                        // SAFETY: the buffer is ours until it is submitted.
                        unsafe { buffer.cast::<u64>().write(stamp) };
                    }
                    let op = if is_write { op::WRITE } else { op::READ };
                    // SAFETY: the buffer stays, and is left alone until the request has ended.
                    let name = unsafe { disk.submit(op, sector, buffer, 512).unwrap() };
                    busy[sector as usize] = true;
                    flying.insert(name, (sector, content[sector as usize]));
                }
                Step::Submit { .. } => {}
                Step::Publish => disk.publish(),
                Step::Device => host.step(),
                Step::Collect => collect(&mut disk, &mut flying, &mut busy),
                Step::Sleep => {
                    disk.publish();
                    let before = host.wires.borrow().interrupts;
                    if disk.queue().request_interrupt().unwrap() && !flying.is_empty() {
                        // Nothing is there: when something is, the interrupt comes, with the doorbells that were rung.
                        while host.wires.borrow().interrupts == before {
                            host.step();
                        }
                    }
                    collect(&mut disk, &mut flying, &mut busy);
                    disk.queue().refuse_interrupts();
                }
            }
        }
        disk.publish();
        while !flying.is_empty() {
            host.step();
            collect(&mut disk, &mut flying, &mut busy);
        }
        prop_assert!(host.wires.borrow().faults.is_empty());
    }
}

/// A wire: what was sent, and what is going to come. A frame that comes has the length that is said, whatever that is.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<(Vec<Vec<u8>>, Arriving)>>);

/// Lengths of frames, and the checksums that are missing.
type Arriving = VecDeque<(usize, Option<Checksum>)>;

impl Link for Wire {
    fn send(&mut self, frame: &[u8], _: Option<Checksum>) {
        self.0.borrow_mut().0.push(frame.to_vec());
    }

    fn send_long(&mut self, _: &[u8], _: Long) {
        panic!("native rings have no long frames");
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<(usize, Option<Checksum>)> {
        let (len, missing) = self.0.borrow_mut().1.pop_front()?;
        into.iter_mut().zip(frame(len)).for_each(|(byte, of_frame)| *byte = of_frame);
        Some((len, missing))
    }
}

/// The bytes of every frame of this length.
fn frame(len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(move |at| (len * 7 + at) as u8)
}

#[derive(Clone, Copy, Debug)]
enum NetStep {
    Send(usize),
    Flush,
    Arrive(usize, Option<(u16, u16)>),
    Receive,
    Sleep,
    Device,
    /// A driver that means harm writes this into its memory.
    Spoil(u64, u64),
}

fn net_step(is_hostile: bool) -> impl Strategy<Value = NetStep> {
    let frames = || 14..1519usize;
    let honest = prop_oneof![
        frames().prop_map(NetStep::Send),
        Just(NetStep::Flush),
        frames().prop_map(|len| NetStep::Arrive(len, None)),
        Just(NetStep::Receive),
        Just(NetStep::Sleep),
        Just(NetStep::Device),
    ];
    if !is_hostile {
        return honest.boxed();
    }
    let any_frame =
        (any::<u16>(), any::<Option<(u16, u16)>>()).prop_map(|(len, sum)| NetStep::Arrive(len.into(), sum));
    // The two queues are first in the memory of a card.
    let spoil = (0..1024u64, any::<u64>()).prop_map(|(word, value)| NetStep::Spoil(word * 8, value));
    prop_oneof![4 => honest, 1 => any_frame, 1 => spoil].boxed()
}

fn card(wire: &Wire) -> (Host, &'static mut NetMemory) {
    let host = Host::new(Core::Net(pvring::Net::new(Box::new(wire.clone()), [2, 0, 0, 0, 0, 1])));
    let memory = host.arena.place::<NetMemory>(0);
    (host, memory)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..Default::default() })]

    #[test]
    fn in_any_schedule_frames_pass_both_ways_whole_and_in_order(
        steps in proptest::collection::vec(net_step(false), 1..300),
        is_prompt in any::<bool>(),
    ) {
        let wire = Wire::default();
        let (host, memory) = card(&wire);
        host.is_prompt.set(is_prompt);
        let mut net = Net::new(&host, 0, memory).unwrap();
        net.set_interrupt(Some(Interrupt { vector: 0x40, apic_id: 0 }));
        let (mut sent, mut due) = (Vec::new(), VecDeque::new());
        for step in steps {
            match step {
                NetStep::Send(len) => {
                    let result = net.send(len, |bytes| bytes.iter_mut().zip(frame(len)).for_each(|(to, byte)| *to = byte));
                    sent.extend(result.is_ok().then_some(len));
                }
                NetStep::Flush => net.flush(),
                NetStep::Arrive(len, _) => {
                    wire.0.borrow_mut().1.push_back((len, None));
                    due.push_back(len);
                }
                NetStep::Receive => {
                    if let Some(bytes) = net.receive(<[u8]>::to_vec).unwrap() {
                        let len = due.pop_front().expect("only what came");
                        prop_assert!(bytes.into_iter().eq(frame(len)));
                    }
                }
                NetStep::Sleep => {
                    let before = host.wires.borrow().interrupts;
                    let is_safe = net.sleep_is_safe().unwrap();
                    host.step();
                    let is_woken = host.wires.borrow().interrupts > before;
                    // What was sent and not collected may end now, too.
                    prop_assert!(!is_safe || is_woken || due.is_empty());
                }
                NetStep::Device => host.step(),
                NetStep::Spoil(..) => {}
            }
        }
        net.flush();
        host.step();
        prop_assert!(host.wires.borrow().faults.is_empty());
        let lens: Vec<_> = wire.0.borrow().0.iter().map(Vec::len).collect();
        prop_assert_eq!(lens, sent);
        prop_assert!(wire.0.borrow().0.iter().all(|bytes| bytes.iter().copied().eq(frame(bytes.len()))));
        while let Some(len) = net.receive(<[u8]>::len).unwrap() {
            prop_assert_eq!(Some(len), due.pop_front());
            host.step();
        }
        prop_assert!(due.is_empty());
    }

    #[test]
    fn a_hostile_driver_or_wire_costs_its_own_card_and_a_reset_makes_it_as_new(
        steps in proptest::collection::vec(net_step(true), 1..200),
    ) {
        let wire = Wire::default();
        let (host, memory) = card(&wire);
        let mut net = Net::new(&host, 0, memory).unwrap();
        for step in steps {
            match step {
                NetStep::Send(len) => {
                    let _ = net.send(len, |_| ());
                }
                NetStep::Flush => net.flush(),
                NetStep::Arrive(len, sum) => {
                    let missing = sum.map(|(start, offset)| Checksum { start, offset });
                    wire.0.borrow_mut().1.push_back((len, missing));
                }
                NetStep::Receive => {
                    let _ = net.receive(|bytes| assert!(bytes.len() <= 2048));
                }
                NetStep::Sleep => {
                    let _ = net.sleep_is_safe();
                }
                NetStep::Device => host.step(),
                NetStep::Spoil(at, value) => host.arena.write_spoiled(at, value),
            }
        }
        drop(net);
        wire.0.borrow_mut().1.clear();
        let mut net = Net::new(&host, 0, host.arena.place::<NetMemory>(0)).unwrap();
        wire.0.borrow_mut().1.push_back((100, None));
        host.step();
        prop_assert_eq!(net.receive(<[u8]>::len), Ok(Some(100)));
    }
}
