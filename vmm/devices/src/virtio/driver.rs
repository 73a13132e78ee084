//! A driver for tests: what virtio's specification asks of one, and, on request, what it forbids.

use super::mirror::Mirror;
use super::mmio::{Line, MMIO_BYTES, Transport};
use super::{Device, EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::guest_mem::{GuestMemory, VecMemory};
use crate::segment::Segment;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;

pub(super) const MEMORY_BYTES: usize = 1 << 20;
/// Queue 0 lies here, queue n `n * QUEUE_STRIDE` further.
const QUEUES: u64 = 0x1000;
const QUEUE_STRIDE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TABLES: u64 = 0x8_0000;
/// Memory from here on is for buffers.
pub(super) const BUFFERS: u64 = 0xa_0000;

/// A buffer as a driver offers it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffer {
    Read(u64, u32),
    Write(u64, u32),
}

impl Buffer {
    fn descriptor(self, is_last: bool, next: u16) -> (u64, u64) {
        let (segment, flags) = match self {
            Buffer::Read(gpa, len) => (Segment { gpa, len }, 0),
            Buffer::Write(gpa, len) => (Segment { gpa, len }, 2),
        };
        let flags = flags | u64::from(!is_last);
        (segment.gpa, u64::from(segment.len) | flags << 32 | u64::from(next) << 48)
    }
}

/// The registers of the device as the guest reads them.
#[derive(Debug)]
struct Registers(Box<[Cell<u32>; MMIO_BYTES as usize / 4]>);

impl Mirror for Registers {
    fn store(&self, device: usize, at: u64, value: u32) {
        assert_eq!((device, at % 4), (0, 0));
        self.0[at as usize / 4].set(value);
    }
}

/// What a driver knows of a queue.
#[derive(Clone, Default)]
struct Ring {
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A driver and the device that it drives.
pub(super) struct Driver<D> {
    pub(super) device: Transport<D>,
    pub(super) memory: VecMemory,
    registers: Rc<Registers>,
    features: u64,
    size: u16,
    /// The queue that everything is about.
    queue: usize,
    rings: Vec<Ring>,
    /// The interrupt line.
    pub(super) line: bool,
    /// Interrupts: rises of the line.
    pub(super) interrupts: usize,
}

impl<D: Device> Driver<D> {
    /// Brings the device up with queues of `size` descriptors each.
    pub(super) fn new(device: D, features: u64, size: u16) -> Self {
        let mut driver = Driver::raw(device);
        driver.start(features, size);
        driver
    }

    /// A device that nobody has touched.
    pub(super) fn raw(device: D) -> Self {
        let registers = Rc::new(Registers(Box::new([const { Cell::new(0) }; MMIO_BYTES as usize / 4])));
        let mut device = Transport::new(device).with_packed_queues();
        device.show_in(registers.clone(), 0);
        Driver {
            device,
            memory: VecMemory::new(MEMORY_BYTES),
            registers,
            features: 0,
            size: 0,
            queue: 0,
            rings: Vec::new(),
            line: false,
            interrupts: 0,
        }
    }

    /// The sequence of 3.1.1.
    pub(super) fn start(&mut self, features: u64, size: u16) {
        (self.features, self.size) = (features | VERSION_1, size);
        self.rings.clear();
        self.write(0x070, 0);
        self.write(0x070, 1);
        self.write(0x070, 3);
        for select in 0..2 {
            self.write(0x024, select);
            self.write(0x020, (self.features >> (32 * select)) as u32);
        }
        self.write(0x070, 11);
        assert_eq!(self.read(0x070), 11, "the device takes the features");
        for queue in 0..self.device.device().queue_sizes().len() {
            self.rings.push(Ring::default());
            self.select(queue);
            self.memory.write(self.base(), &[0; QUEUE_STRIDE as usize]).unwrap();
            self.write(0x030, queue as u32);
            self.write(0x038, size.into());
            self.write(0x080, self.base() as u32);
            self.write(0x090, (self.base() + AVAILABLE) as u32);
            self.write(0x0a0, (self.base() + USED) as u32);
            self.write(0x044, 1);
        }
        self.select(0);
        self.write(0x030, 0);
        self.write(0x070, 15);
        self.run();
    }

    /// From now on everything is about this queue.
    pub(super) fn select(&mut self, queue: usize) {
        self.queue = queue;
    }

    /// Where the queue is.
    fn base(&self) -> u64 {
        QUEUES + self.queue as u64 * QUEUE_STRIDE
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.rings[self.queue]
    }

    /// Reads a register, which is the same by an exit and without one.
    pub(super) fn read(&mut self, offset: u64) -> u32 {
        let value = self.device.read(offset, 4) as u32;
        assert_eq!(self.registers.0[offset as usize / 4].get(), value, "register {offset:#x}");
        value
    }

    /// Reads all registers.
    pub(super) fn read_all(&mut self) {
        for offset in (0..0x200).step_by(4) {
            self.read(offset);
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        let line = self.device.write(offset, 4, value.into());
        self.follow(line);
        self.read_all();
    }

    pub(super) fn run(&mut self) {
        while self.device.is_notified() {
            let line = self.device.run(&mut self.memory);
            self.follow(line);
        }
    }

    pub(super) fn poll(&mut self) {
        let line = self.device.poll(&mut self.memory);
        self.follow(line);
    }

    /// What the driver was to be told some time is due; `is_silent` says whether it notified nothing for long.
    pub(super) fn settle(&mut self, is_silent: bool) {
        let line = self.device.settle(&mut self.memory, is_silent);
        self.follow(line);
    }

    /// Acknowledges as if nothing followed from that; whether it was so.
    pub(super) fn acknowledge_quietly(&mut self, reasons: u32) -> bool {
        let line = self.device.acknowledge_quietly(reasons);
        line.into_iter().for_each(|line| self.follow(line));
        self.read_all();
        line.is_some()
    }

    fn follow(&mut self, line: Line) {
        match line {
            Line::Same => return,
            Line::Raised => assert!(!self.line),
            Line::Lowered | Line::Pulsed => assert!(self.line),
        }
        self.line = line != Line::Lowered;
        self.interrupts += usize::from(self.line);
        self.read_all();
    }

    /// Offers a chain, through a table of its own if that was negotiated; returns its name. Nothing is notified yet.
    pub(super) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.ring().next_descriptor;
        if self.features & INDIRECT_DESC != 0 {
            let table = TABLES + self.queue as u64 * 0x4000 + u64::from(head) * 16 * 16;
            self.write_descriptors(table, buffers, |at| at as u16 + 1);
            let len = buffers.len() as u64 * 16;
            self.write_descriptor(self.base() + u64::from(head) * 16, (table, len | 4 << 32));
            self.ring().next_descriptor = (head + 1) % self.size;
        } else {
            let size = self.size;
            for (at, buffer) in (0..).zip(buffers) {
                let here = (head + at) % size;
                let is_last = usize::from(at) + 1 == buffers.len();
                self.write_descriptor(
                    self.base() + u64::from(here) * 16,
                    buffer.descriptor(is_last, (here + 1) % size),
                );
            }
            self.ring().next_descriptor = (head + buffers.len() as u16) % size;
        }
        self.put_available(head);
        head
    }

    fn write_descriptors(&mut self, table: u64, buffers: &[Buffer], next: impl Fn(usize) -> u16) {
        for (at, buffer) in buffers.iter().enumerate() {
            let descriptor = buffer.descriptor(at + 1 == buffers.len(), next(at));
            self.write_descriptor(table + at as u64 * 16, descriptor);
        }
    }

    /// Writes a descriptor: address; length, flags, next.
    pub(super) fn write_descriptor(&mut self, gpa: u64, (address, rest): (u64, u64)) {
        self.memory.write_u64(gpa, address).unwrap();
        self.memory.write_u64(gpa + 8, rest).unwrap();
    }

    /// Where descriptor `index` of queue 0 is.
    pub(super) fn descriptor(index: u16) -> u64 {
        QUEUES + u64::from(index) * 16
    }

    /// Puts any number into the available ring.
    pub(super) fn put_available(&mut self, head: u16) {
        let slot = u64::from(self.rings[self.queue].available % self.size);
        self.memory.write_u16(self.base() + AVAILABLE + 4 + 2 * slot, head).unwrap();
        let index = self.available_index().wrapping_add(1);
        self.ring().available = index;
        self.set_available_index(index);
    }

    pub(super) fn set_available_index(&mut self, index: u16) {
        self.memory.write_u16(self.base() + AVAILABLE + 2, index).unwrap();
    }

    pub(super) fn set_available_flags(&mut self, flags: u16) {
        self.memory.write_u16(self.base() + AVAILABLE, flags).unwrap();
    }

    /// Wants an interrupt when the used index passes this one.
    pub(super) fn set_used_event(&mut self, index: u16) {
        self.memory.write_u16(self.base() + AVAILABLE + 4 + 2 * u64::from(self.size), index).unwrap();
    }

    /// Whether the device wants a notification for what was offered since `old`.
    pub(super) fn must_notify(&self, old: u16) -> bool {
        if self.features & EVENT_IDX == 0 {
            return self.memory.read_u16(self.base() + USED).unwrap() & 1 == 0;
        }
        let event = self.memory.read_u16(self.base() + USED + 4 + 8 * u64::from(self.size)).unwrap();
        self.available_index().wrapping_sub(event).wrapping_sub(1) < self.available_index().wrapping_sub(old)
    }

    pub(super) fn available_index(&self) -> u16 {
        self.rings[self.queue].available
    }

    pub(super) fn notify(&mut self) {
        self.write(0x050, self.queue as u32);
        self.run();
    }

    /// Offers a chain and takes it back; returns the bytes written.
    pub(super) fn transfer(&mut self, buffers: &[Buffer]) -> u32 {
        let head = self.offer(buffers);
        self.notify();
        match *self.take_used() {
            [(used, len)] if used == u32::from(head) => len,
            ref other => panic!("chain {head} came back as {other:?}"),
        }
    }

    /// What came back since this was last asked: names and bytes written.
    pub(super) fn take_used(&mut self) -> Vec<(u32, u32)> {
        let index = self.memory.read_u16(self.base() + USED + 2).unwrap();
        let mut used = Vec::new();
        while self.ring().used != index {
            let element = self.base() + USED + 4 + 8 * u64::from(self.rings[self.queue].used % self.size);
            used.push((self.memory.read_u32(element).unwrap(), self.memory.read_u32(element + 4).unwrap()));
            self.ring().used = self.ring().used.wrapping_add(1);
        }
        used
    }

    /// Takes the interrupt as Linux does: reads the reasons and acknowledges them.
    pub(super) fn take_interrupt(&mut self) -> u32 {
        let reasons = self.read(0x060);
        self.write(0x064, reasons);
        reasons
    }

    pub(super) fn needs_reset(&mut self) -> bool {
        self.read(0x070) & 64 != 0
    }
}
