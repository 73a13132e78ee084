//! Instructions that were decoded before.
//!
//! A guest reaches a device from few places, again and again. An instruction is a function of its bytes and of the mode; what
//! is kept is used only where both are the same, so that nothing need be told when a guest changes its code or its page
//! tables.

use alloc::boxed::Box;
use hypercall_abi::vcpu::{Groups, VcpuPage};
use iced_x86::Instruction;
use vdev::guest_mem::GuestMemory;

use super::decode::Bytes;
use super::moves::{self, Move};
use super::string;
use super::trace::Trace;
use super::transfer::Transfer;
use crate::vcpu::code_root;

/// Instructions that are remembered; a power of two.
const ENTRIES: usize = 32;
/// Pages of code that are remembered; a power of two.
const PAGES: usize = 8;

/// What an instruction does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// A plain move.
    Transfer(Transfer),
    /// A string instruction.
    String(Instruction),
    /// Anything else.
    Other(Instruction),
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoded {
    pub(super) work: Work,
    /// Bytes: 1 to 15.
    pub(super) length: u8,
}

impl Decoded {
    pub(super) fn new(instruction: &Instruction) -> Decoded {
        let work = match Transfer::of(instruction) {
            Some(transfer) => Work::Transfer(transfer),
            None if string::is_string(instruction.mnemonic()) => Work::String(*instruction),
            None => Work::Other(*instruction),
        };
        Decoded { work, length: instruction.len() as u8 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The instruction pointer, which is part of addresses.
    rip: u64,
    /// Size of code in bits.
    code_bits: u32,
    /// The instruction's own bytes; the mask has ones for them.
    bytes: u128,
    mask: u128,
    decoded: Decoded,
}

/// The decoded instructions of a vCPU, and where their pages are.
#[derive(Clone, Debug)]
pub struct DecodeCache {
    pages: [Trace; PAGES],
    entries: Box<[Option<Entry>; ENTRIES]>,
    moves: Box<[Move; moves::SLOTS]>,
}

impl Default for DecodeCache {
    fn default() -> Self {
        DecodeCache {
            pages: [Trace::NONE; PAGES],
            entries: Box::new([None; ENTRIES]),
            moves: Box::new([Move::NONE; moves::SLOTS]),
        }
    }
}

impl DecodeCache {
    /// The bytes at `rip` of 64-bit code, from which the CPU has fetched by the tables at `root`; `None` if they are not all in one
    /// page, or the tables do not lead there now.
    pub(super) fn fetch(&mut self, memory: &impl GuestMemory, root: u64, rip: u64) -> Option<Bytes> {
        Bytes::read_whole(memory, find(&mut self.pages[page_slot(rip)], memory, root, rip)?)
    }

    /// The instruction that the exit in the page is on, if that is a flat move of 64-bit code.
    #[inline(always)]
    pub(super) fn flat_move(&mut self, memory: &impl GuestMemory, page: &VcpuPage) -> Option<&Move> {
        let slot = moves::slot(page.rip);
        let is_told = page.filled & Groups::CODE.bits() != 0;
        if !is_told || !self.moves[slot].is_at(memory, page.code_root, page.rip) {
            self.learn(memory, code_root(page)?, page.rip)?;
        }
        Some(&self.moves[slot])
    }

    /// Remembers what is at `rip` of 64-bit code, to which the tables at `root` lead, if that is a flat move.
    #[inline(never)]
    fn learn(&mut self, memory: &impl GuestMemory, root: u64, rip: u64) -> Option<()> {
        let trace = &mut self.pages[page_slot(rip)];
        let physical = find(trace, memory, root, rip)?;
        let bytes = Bytes::read_whole(memory, physical)?;
        self.moves[moves::slot(rip)].learn(rip, &bytes, trace, physical)
    }

    /// Whether the instruction at `rip` is known, and `fetched` begins with it: then [`Self::get`] has it.
    #[inline]
    pub(super) fn has(&self, rip: u64, code_bits: u32, fetched: &Bytes) -> bool {
        let Some(entry) = &self.entries[slot(rip)] else {
            return false;
        };
        entry.rip == rip
            && entry.code_bits == code_bits
            && usize::from(entry.decoded.length) <= fetched.length()
            && fetched.word() & entry.mask == entry.bytes
    }

    /// What was last remembered for `rip`.
    #[inline]
    pub(super) fn get(&self, rip: u64) -> Option<&Decoded> {
        Some(&self.entries[slot(rip)].as_ref()?.decoded)
    }

    /// Remembers what was decoded from `fetched`.
    #[inline]
    pub(super) fn insert(&mut self, rip: u64, code_bits: u32, fetched: &Bytes, decoded: Decoded) {
        let (bytes, mask) = fetched.prefix(decoded.length.into());
        self.entries[slot(rip)] = Some(Entry { rip, code_bits, bytes, mask, decoded });
    }
}

/// The physical address of `rip`, which is in this page or will be.
fn find(trace: &mut Trace, memory: &impl GuestMemory, root: u64, rip: u64) -> Option<u64> {
    trace.find(memory, root, rip).or_else(|| follow(trace, memory, root, rip))
}

#[inline(never)]
fn follow(trace: &mut Trace, memory: &impl GuestMemory, root: u64, rip: u64) -> Option<u64> {
    trace.follow(memory, root, rip).then(|| trace.find(memory, root, rip))?
}

fn page_slot(rip: u64) -> usize {
    (rip >> 12) as usize % PAGES
}

fn slot(rip: u64) -> usize {
    spread(rip) % ENTRIES
}

/// Instructions that follow each other, and functions at multiples of 16, get different numbers.
#[inline]
pub(super) fn spread(rip: u64) -> usize {
    (rip ^ rip >> 5) as usize
}
