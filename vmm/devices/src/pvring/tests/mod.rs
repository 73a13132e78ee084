//! Devices as a driver sees them that writes registers and memory by hand.

mod hostile;

use super::*;
use crate::Request as MachineRequest;
use crate::block::{Backend, Completion as Ended, Disk, Geometry, MemoryDisk, Token};
use crate::entropy::Words;
use crate::guest_mem::{GuestMemory, VecMemory};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::task::Poll;
use hypercall_abi::guest::device::{Fault, Interrupt, Kind, State, feature, reg};
use hypercall_abi::guest::op::{self, Status};
use hypercall_abi::guest::ring::{self, Completion, INDIRECT, Request, Segment, Word};

const MEMORY: usize = 0x4_0000;
const RING: u64 = 0x1000;
const SIZE: u32 = 4;
const DATA: u64 = 0x8000;
const VECTOR: u8 = 0x41;

#[derive(Debug, Default)]
struct Wires {
    interrupts: Vec<Interrupt>,
    requests: Vec<MachineRequest>,
    faults: Vec<(Kind, Fault)>,
}

impl Board for Wires {
    fn raise(&mut self, interrupt: Interrupt) {
        self.interrupts.push(interrupt);
    }

    fn request(&mut self, request: MachineRequest) {
        self.requests.push(request);
    }

    fn report(&mut self, kind: Kind, fault: Fault) {
        self.faults.push((kind, fault));
    }
}

/// A device, and its driver.
struct Rig<M = VecMemory> {
    device: Device,
    memory: M,
    wires: Wires,
    submitted: [u32; 2],
    collected: [u32; 2],
}

fn disk() -> Core {
    let mut bytes = vec![0u8; 64 * 512];
    bytes.chunks_mut(512).zip(0u8..).for_each(|(sector, number)| sector.fill(number));
    Core::Block(Block::new(Disk::new(Box::new(MemoryDisk::writable(bytes.leak())))))
}

fn cores() -> [Core; 6] {
    let source = Words(|| Some(0x0102_0304_0506_0708));
    [
        disk(),
        Core::console(),
        Core::Entropy(Box::new(source)),
        Core::Clock(7),
        balloon(),
        Core::Control(Control::default()),
    ]
}

/// All memory but the half of a piece at its end.
fn balloon() -> Core {
    Core::Balloon(crate::balloon::Balloon::new(core::iter::once(0..MEMORY as u64), true))
}

fn ring_of(queue: usize) -> u64 {
    RING + 0x1000 * queue as u64
}

impl Rig {
    /// A device that runs, with two queues if it has so many.
    fn new(core: Core) -> Self {
        let mut rig = Self::stopped(core);
        rig.start();
        rig
    }

    fn stopped(core: Core) -> Self {
        let (device, memory) = (Device::new(core, 8), VecMemory::new(MEMORY));
        Rig { device, memory, wires: Wires::default(), submitted: [0; 2], collected: [0; 2] }
    }

    fn start(&mut self) {
        for queue in 0..2 {
            self.memory.write(ring_of(queue), &[0; 0x1000]).unwrap();
            let base = reg::QUEUE + reg::QUEUE_STRIDE * queue as u64;
            self.device.write(base + reg::QUEUE_ADDRESS, 8, ring_of(queue));
            self.device.write(base + reg::QUEUE_SIZE, 4, SIZE.into());
            let interrupt = Interrupt { vector: VECTOR + queue as u8, apic_id: 0 };
            self.device.write(base + reg::QUEUE_INTERRUPT, 8, interrupt.encode());
        }
        (self.submitted, self.collected) = ([0; 2], [0; 2]);
        self.device.write(reg::STATE, 4, State::Running as u64);
    }
}

impl<M: GuestMemory> Rig<M> {
    fn register(&self, register: u64) -> u32 {
        self.device.read(register, 4, 0) as u32
    }

    fn ring(&mut self, queue: usize) {
        self.device.ring(queue, &mut self.memory, &mut self.wires);
    }

    /// Writes requests, and the driver's word, which asks for an interrupt behind `threshold`.
    fn submit(&mut self, queue: usize, requests: &[Request], threshold: u32) {
        for request in requests {
            let place = u64::from(self.submitted[queue] & (SIZE - 1));
            for (word, at) in request.encode().into_iter().zip((0..).step_by(8)) {
                let to = ring_of(queue) + (ring::REQUESTS + ring::REQUEST_BYTES * place as usize) as u64 + at;
                self.memory.write_u64(to, word).unwrap();
            }
            self.submitted[queue] += 1;
        }
        let word = Word { produced: self.submitted[queue], threshold };
        self.memory.write_u64(ring_of(queue), word.encode()).unwrap();
    }

    fn device_word(&self, queue: usize) -> Word {
        Word::decode(self.memory.read_u64(ring_of(queue) + ring::DEVICE_WORD as u64).unwrap())
    }

    fn collect(&mut self, queue: usize) -> Vec<Completion> {
        let mut completions = Vec::new();
        while self.collected[queue] != self.device_word(queue).produced {
            let place = (self.collected[queue] & (SIZE - 1)) as usize * ring::COMPLETION_BYTES;
            let from = ring_of(queue) + (ring::completions(SIZE) + place) as u64;
            completions.push(Completion::decode(self.memory.read_u64(from).unwrap()));
            self.collected[queue] += 1;
        }
        completions
    }

    /// Carries out one request.
    fn run(&mut self, queue: usize, request: Request) -> (Status, u32) {
        self.submit(queue, &[request], u32::MAX);
        self.ring(queue);
        let completions = self.collect(queue);
        assert_eq!((completions.len(), completions[0].id), (1, request.id), "{:?}", self.wires);
        (Status::from_raw(completions[0].status), completions[0].len)
    }
}

fn request(op: u8, offset: u64, address: u64, len: u32) -> Request {
    Request { op, offset, address, len, id: 0x1234, ..Request::default() }
}

#[test]
fn a_disk_reads_and_writes_also_scattered() {
    let mut rig = Rig::new(disk());
    assert_eq!(rig.register(reg::OFFERED), feature::BLOCK_DISCARD as u32);
    for sector in [3, 9, 40, 63, 5, 6] {
        assert_eq!(rig.run(0, request(op::READ, sector, DATA, 512)), (Status::Done, 512));
        assert_eq!(rig.memory.read_u8(DATA + 511), Ok(sector as u8));
    }
    let pieces = [Segment { address: DATA, len: 500 }, Segment { address: DATA + 0x1000, len: 524 }];
    for (piece, at) in pieces.into_iter().zip((0..).step_by(16)) {
        let [address, len] = piece.encode();
        rig.memory.write_u64(0x7000 + at, address).unwrap();
        rig.memory.write_u64(0x7008 + at, len).unwrap();
    }
    let scattered = Request { flags: INDIRECT, ..request(op::READ, 10, 0x7000, 32) };
    assert_eq!(rig.run(0, scattered), (Status::Done, 1024));
    assert_eq!(
        (rig.memory.read_u8(DATA + 0x1000 + 11), rig.memory.read_u8(DATA + 0x1000 + 12)),
        (Ok(10), Ok(11))
    );
    assert_eq!(rig.run(0, Request { op: op::WRITE, ..scattered }), (Status::Done, 1024));
    assert_eq!(
        rig.run(0, Request { op: op::WRITE_ZEROES, argument: 1, ..request(0, 20, 0, 0) }),
        (Status::Done, 0)
    );
    assert_eq!(rig.run(0, request(op::READ, 64, DATA, 512)), (Status::OutOfRange, 0));
    assert_eq!(rig.run(0, request(op::READ, 0, DATA, 100)), (Status::OutOfRange, 0));
    assert_eq!(rig.run(0, request(op::POWER_OFF, 0, DATA, 512)), (Status::Unsupported, 0));
    assert_eq!(rig.wires.faults, []);
}

/// A disk that holds one request, and completes it when it is asked.
#[derive(Default)]
struct Slow(Option<Token>);

impl Backend for Slow {
    fn geometry(&self) -> Geometry {
        Geometry { sectors: 64, is_read_only: false, can_discard: false, has_cache: true }
    }

    fn submit(
        &mut self,
        _: &mut dyn GuestMemory,
        token: Token,
        _: &crate::block::Request<'_>,
    ) -> Poll<Ended> {
        assert_eq!(self.0.replace(token), None, "there was no room");
        Poll::Pending
    }

    fn has_room(&self) -> bool {
        self.0.is_none()
    }

    fn take_completed(&mut self, _: &mut dyn GuestMemory) -> Option<(Token, Ended)> {
        self.0.take().map(|token| (token, Ok(())))
    }
}

#[test]
fn requests_stay_in_the_ring_while_the_disk_has_no_room() {
    let mut rig = Rig::new(Core::Block(Block::new(Disk::new(Box::new(Slow::default())))));
    let requests = [7, 8, 9].map(|id| Request { id, ..request(op::READ, 0, DATA, 512) });
    rig.submit(0, &requests, 0);
    rig.ring(0);
    rig.ring(0);
    assert_eq!(rig.collect(0), []);
    for id in [7, 8, 9] {
        rig.device.collect(&mut rig.memory, &mut rig.wires);
        let ids: Vec<_> = rig.collect(0).iter().map(|completion| completion.id).collect();
        assert_eq!(ids, [id]);
    }
    rig.submit(0, &requests[..1], 0);
    rig.ring(0);
    rig.device.collect(&mut rig.memory, &mut rig.wires);
    assert_eq!(rig.collect(0).len(), 1);
}

#[test]
fn a_batch_costs_one_interrupt_and_only_where_one_is_wanted() {
    let mut rig = Rig::new(disk());
    let reads: Vec<Request> =
        (0..4).map(|id| Request { id, ..request(op::READ, id.into(), DATA, 512) }).collect();
    rig.submit(0, &reads, 3);
    rig.ring(0);
    assert_eq!(rig.collect(0).iter().map(|completion| completion.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(rig.wires.interrupts, [Interrupt { vector: VECTOR, apic_id: 0 }]);
    assert_eq!(rig.device_word(0), Word { produced: 4, threshold: 4 }, "the next request needs the doorbell");
    rig.submit(0, &reads, 3);
    rig.ring(0);
    assert_eq!((rig.collect(0).len(), rig.wires.interrupts.len()), (4, 1));
    rig.ring(0);
    assert_eq!(rig.wires.interrupts.len(), 1, "a doorbell without a request does nothing");
}

#[test]
fn input_waits_for_a_buffer_and_a_buffer_for_input() {
    let mut rig = Rig::new(Core::console());
    let buffers = [0, 1].map(|id| Request { id, ..request(op::READ, 0, DATA + 0x100 * u64::from(id), 4) });
    rig.submit(0, &buffers, 0);
    rig.ring(0);
    assert_eq!(rig.collect(0), []);
    let type_in = |rig: &mut Rig, text: &[u8]| {
        let Core::Console(console, _) = rig.device.core() else { panic!() };
        assert_eq!(console.queue_input(text), text.len());
        rig.device.nudge(0);
        rig.device.catch_up(&mut rig.memory, &mut rig.wires);
    };
    type_in(&mut rig, b"hello, world");
    assert_eq!(rig.collect(0).iter().map(|completion| completion.len).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(rig.memory.read_u32(DATA + 0x100), Ok(u32::from_le_bytes(*b"o, w")));
    assert_eq!(rig.wires.interrupts.len(), 1);
    // The rest waits for a buffer, of whose coming the device wants to know.
    assert_eq!(rig.device_word(0).threshold, 2);
    assert_eq!(rig.run(0, buffers[0]), (Status::Done, 4));
    assert_eq!(rig.memory.read_u32(DATA), Ok(u32::from_le_bytes(*b"orld")));
}

#[test]
fn output_that_nobody_takes_stays_in_the_ring() {
    let mut rig = Rig::new(Core::console());
    let text = request(op::WRITE, 0, DATA, 0x1000);
    let mut shown = 0;
    while rig.collect(1).len() + shown < 100 && !rig.device.is_behind() {
        rig.submit(1, &[text], u32::MAX);
        rig.ring(1);
        shown += 1;
    }
    assert_eq!(shown, 2, "8 KiB wait");
    rig.submit(1, &[text], u32::MAX);
    rig.ring(1);
    assert_eq!(rig.collect(1), []);
    let Core::Console(console, _) = rig.device.core() else { panic!() };
    assert_eq!(console.take_output().count(), 0x2000);
    rig.device.catch_up(&mut rig.memory, &mut rig.wires);
    assert_eq!(rig.collect(1).len(), 1);
    assert_eq!(rig.run(1, request(op::WRITE, 0, DATA, 0x1001)), (Status::OutOfRange, 0));
}

#[test]
fn random_bytes_the_log_and_the_end_of_the_machine() {
    let mut rig = Rig::new(Core::Entropy(Box::new(Words(|| Some(0x5555_5555_5555_5555)))));
    assert_eq!(rig.run(0, request(op::READ, 0, DATA, 700)), (Status::Done, 700));
    assert_eq!((rig.memory.read_u8(DATA + 699), rig.memory.read_u8(DATA + 700)), (Ok(0x55), Ok(0)));
    let mut rig = Rig::new(Core::Control(Control::default()));
    rig.memory.write(DATA, b"all\x1b is \xff well").unwrap();
    assert_eq!(rig.run(0, request(op::WRITE, 0, DATA, 14)), (Status::Done, 14));
    let Core::Control(control) = rig.device.core() else { panic!() };
    assert_eq!(control.take_lines(), [String::from("all is \u{fffd} well")]);
    rig.run(0, Request { argument: 0x1_0000_0007, ..request(op::EXIT, 0, 0, 0) });
    assert_eq!(rig.wires.requests, [MachineRequest::Exit(7)]);
}

#[test]
fn a_clock_has_registers_only() {
    let rig = Rig::new(Core::Clock(0x1_2345_6789));
    assert_eq!((rig.register(reg::QUEUES), rig.register(reg::STATE)), (0, State::Running as u32));
    assert_eq!(rig.device.read(0x40, 8, 0), 0x1_2345_6789);
    assert_eq!(rig.device.read(0x48, 8, 0x1234_5678_9abc_def0), 0x1234_5678_9abc_def0);
    assert_eq!(rig.device.read(0x4c, 4, 0x1234_5678_9abc_def0), 0x1234_5678);
    assert_eq!((rig.device.read(0x41, 4, 0), rig.device.read(0x40, 2, 0)), (0, 0));
}

#[test]
fn a_balloon_takes_pages_and_gives_them_back_zeroed() {
    let mut rig = Rig::new(balloon());
    assert_eq!(rig.register(reg::OFFERED), feature::BALLOON_REPORT as u32);
    let page = |op, offset, argument| Request { op, offset, argument, ..Request::default() };
    rig.memory.write_u64(0x2_0000, 7).unwrap();
    let requests = [
        page(op::GIVE, 0x2_0000, 2),
        page(op::TAKE, 0x2_0000, 1),
        page(op::GIVE, MEMORY as u64 - 0x1000, 2),
        page(op::REPORT, 0x800, 1),
    ];
    rig.submit(0, &requests, 0);
    rig.ring(0);
    let ends: Vec<_> = rig.collect(0).iter().map(|completion| completion.status).collect();
    let (done, refused) = (Status::Done as u16, Status::OutOfRange as u16);
    assert_eq!(ends, [done, done, refused, refused]);
    assert_eq!(rig.memory.read_u64(0x2_0000), Ok(0));
}

#[test]
fn a_new_target_of_a_balloon_changes_its_generation_and_interrupts() {
    let mut rig = Rig::new(balloon());
    let interrupt = Interrupt { vector: 0x60, apic_id: 0 };
    rig.device.write(reg::INTERRUPT, 8, interrupt.encode());
    let before = rig.register(reg::GENERATION);
    rig.device.set_balloon_target(1 << 33, &mut rig.wires);
    rig.device.set_balloon_target(1 << 33, &mut rig.wires);
    assert_eq!(rig.device.read(reg::CONFIG, 8, 0), 1 << 33);
    assert_eq!((rig.register(reg::GENERATION), &*rig.wires.interrupts), (before + 1, &[interrupt][..]));
}
