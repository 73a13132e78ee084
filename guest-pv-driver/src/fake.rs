//! A device without hypervisor, for tests: the ring and the registers are real, what requests do is a closure.

extern crate std;

use crate::hal::Hal;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::guest::DOORBELL_CALL;
use hypercall_abi::guest::device::{Kind, MAGIC, MAX_QUEUES, State, reg};
use hypercall_abi::guest::op::Status;
use hypercall_abi::guest::ring::{self, Completion, INDIRECT, Request, Segment, Word};
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;

/// What the closure says about a request: how it ended and how many bytes it moved; `None` if it has not ended.
pub type Answer = Option<(Status, u32)>;

type Handler = Box<dyn FnMut(u32, &Request, &mut [u8]) -> Answer>;

/// A device whose page is at any address. `&Fake` is a [`Hal`] for single-threaded tests.
///
/// ```
/// use guest_pv_driver::{Block, BlockDevice, QueueMemory, fake::Fake};
/// use guest_pv_driver::abi::device::{Kind, config};
/// use guest_pv_driver::abi::op::{self, Status};
///
/// let fake = Fake::new(Kind::Block, |_queue, request, buffer| {
///     if request.op == op::READ {
///         buffer.fill(request.offset as u8);
///     }
///     Some((Status::Done, buffer.len() as u32))
/// });
/// fake.set(config::BLOCK_SECTORS, 100);
/// let mut disk = Block::new(&fake, 0, Box::leak(Box::default())).unwrap();
/// let mut sector = [0; 512];
/// disk.read(7, &mut sector).unwrap();
/// assert_eq!((disk.sectors(), sector), (100, [7; 512]));
/// ```
pub struct Fake {
    registers: RefCell<BTreeMap<u64, u32>>,
    seen: RefCell<[u32; MAX_QUEUES]>,
    pending: RefCell<VecDeque<(u32, Request)>>,
    handler: RefCell<Handler>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake").field("registers", &self.registers).finish_non_exhaustive()
    }
}

impl Fake {
    /// A device of this kind. The closure gets the queue, the request, and its buffer in one piece.
    pub fn new(kind: Kind, handler: impl FnMut(u32, &Request, &mut [u8]) -> Answer + 'static) -> Self {
        let registers = [
            (reg::MAGIC, MAGIC),
            (reg::KIND, kind as u32),
            (reg::QUEUES, MAX_QUEUES as u32),
            (reg::QUEUE_SIZE_MAX, ring::PAGE_SIZE_MAX),
        ];
        Fake {
            registers: RefCell::new(registers.into_iter().collect()),
            seen: RefCell::default(),
            pending: RefCell::default(),
            handler: RefCell::new(Box::new(handler)),
        }
    }

    /// Sets a 64-bit register.
    pub fn set(&self, register: u64, value: u64) {
        let mut registers = self.registers.borrow_mut();
        registers.insert(register, value as u32);
        registers.insert(register + 4, (value >> 32) as u32);
    }

    /// Writes 64 bits into the memory of a queue, as a device that went mad may.
    pub fn poke(&self, queue: u32, offset: usize, value: u64) {
        self.word(queue, offset).store(value, Ordering::Release);
    }

    /// Asks the closure again about the requests that have not ended.
    pub fn poll(&self) {
        let pending = core::mem::take(&mut *self.pending.borrow_mut());
        pending.iter().for_each(|(queue, request)| self.carry_out(*queue, request));
    }

    fn carry_out(&self, queue: u32, request: &Request) {
        let segments = self.segments(request);
        // SAFETY: drivers promise that what their requests name is memory until it is completed; so that requests may name the
        // same memory twice, the closure gets a copy.
        let mut bytes: Vec<u8> = segments
            .iter()
            .flat_map(|segment| unsafe {
                (0..segment.len as usize).map(|at| pointer(segment.address).add(at).read())
            })
            .collect();
        let answer = (self.handler.borrow_mut())(queue, request, &mut bytes);
        let Some((status, len)) = answer else {
            return self.pending.borrow_mut().push_back((queue, *request));
        };
        if request.op == hypercall_abi::guest::op::READ {
            let places = segments.iter().flat_map(|segment| {
                (0..segment.len as usize).map(|at| pointer(segment.address).wrapping_add(at))
            });
            for (place, byte) in places.zip(bytes) {
                // SAFETY: as above; a request that fills its buffer lets the device write it.
                unsafe { place.write(byte) };
            }
        }
        let device = Word::decode(self.word(queue, ring::DEVICE_WORD).load(Ordering::Relaxed));
        let size = self.register(queue_register(queue) + reg::QUEUE_SIZE);
        let place =
            ring::completions(size) + (device.produced & (size - 1)) as usize * ring::COMPLETION_BYTES;
        let completion = Completion { id: request.id, status: status as u16, len };
        self.word(queue, place).store(completion.encode(), Ordering::Relaxed);
        let produced = device.produced.wrapping_add(1);
        let word = Word { produced, threshold: self.seen.borrow()[queue as usize] };
        self.word(queue, ring::DEVICE_WORD).store(word.encode(), Ordering::Release);
    }

    fn segments(&self, request: &Request) -> Vec<Segment> {
        if request.flags & INDIRECT == 0 {
            return [Segment { address: request.address, len: request.len }].into();
        }
        let entries = request.len as usize / ring::SEGMENT_BYTES;
        // SAFETY: drivers promise that the table is memory until the request is completed.
        let word = |at| unsafe { pointer(request.address).cast::<u64>().add(at).read_unaligned() };
        (0..entries).map(|entry| Segment::decode([word(entry * 2), word(entry * 2 + 1)])).collect()
    }

    fn register(&self, register: u64) -> u32 {
        self.registers.borrow().get(&register).copied().unwrap_or(0)
    }

    fn word(&self, queue: u32, offset: usize) -> &AtomicU64 {
        let address = queue_register(queue) + reg::QUEUE_ADDRESS;
        let base = u64::from(self.register(address)) | u64::from(self.register(address + 4)) << 32;
        // SAFETY: the driver gave the queue's memory for ever; offsets are of the layout.
        unsafe { AtomicU64::from_ptr(pointer(base).add(offset).cast()) }
    }
}

fn queue_register(queue: u32) -> u64 {
    reg::QUEUE + reg::QUEUE_STRIDE * u64::from(queue)
}

fn pointer(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

// SAFETY: the only memory there is has the same address on both sides.
unsafe impl Hal for Fake {
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize) {
        (pointer.expose_provenance() as u64, len)
    }

    fn read_register(&self, address: u64) -> u32 {
        self.register(address)
    }

    fn write_register(&self, address: u64, value: u32) {
        if address == reg::STATE && value == State::Reset as u32 {
            self.pending.borrow_mut().clear();
            *self.seen.borrow_mut() = [0; MAX_QUEUES];
        }
        self.registers.borrow_mut().insert(address, value);
    }

    fn ring(&self, call: u64) {
        let queue = (call - DOORBELL_CALL) as u32;
        if self.register(reg::STATE) != State::Running as u32 {
            return;
        }
        let size = self.register(queue_register(queue) + reg::QUEUE_SIZE);
        let submitted = Word::decode(self.word(queue, ring::DRIVER_WORD).load(Ordering::Acquire)).produced;
        let mut seen = self.seen.borrow()[queue as usize];
        while seen != submitted {
            let at = ring::REQUESTS + (seen & (size - 1)) as usize * ring::REQUEST_BYTES;
            let words = [0, 8, 16, 24].map(|word| self.word(queue, at + word).load(Ordering::Relaxed));
            seen = seen.wrapping_add(1);
            self.seen.borrow_mut()[queue as usize] = seen;
            self.carry_out(queue, &Request::decode(words));
        }
        let device = Word::decode(self.word(queue, ring::DEVICE_WORD).load(Ordering::Relaxed));
        self.word(queue, ring::DEVICE_WORD)
            .store(Word { threshold: seen, ..device }.encode(), Ordering::Release);
    }
}
