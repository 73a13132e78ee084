//! Instructions that were decoded before.
//!
//! A guest reaches a device from few places, again and again. An instruction is a function of its bytes and of the mode; what
//! is kept is used only where both are the same, so that nothing need be told when a guest changes its code or its page
//! tables.

use alloc::boxed::Box;
use hypercall_abi::vcpu::VcpuPage;
use iced_x86::Instruction;
use vdev::guest_mem::GuestMemory;

use super::decode::Bytes;
use super::string;
use super::transfer::Transfer;
use super::walk::Trace;

/// Places that are remembered; a power of two.
const ENTRIES: usize = 32;

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
    /// Where they were found, if that can be checked.
    trace: Option<Trace>,
    decoded: Decoded,
}

/// The decoded instructions of a vCPU.
#[derive(Clone, Debug)]
pub struct DecodeCache {
    entries: Box<[Option<Entry>; ENTRIES]>,
}

impl Default for DecodeCache {
    fn default() -> Self {
        DecodeCache { entries: Box::new([None; ENTRIES]) }
    }
}

impl DecodeCache {
    /// The bytes at the instruction pointer of 64-bit code, if they are where they were the last time.
    #[inline]
    pub(super) fn fetch(&self, page: &VcpuPage, memory: &impl GuestMemory) -> Option<Bytes> {
        let entry = self.entries[slot(page.rip)].as_ref()?;
        let physical = entry.trace.as_ref()?.translate(page, page.rip, memory)?;
        Bytes::read_whole(memory, physical)
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

    /// Remembers what was decoded from `fetched`, and how that was found.
    pub(super) fn insert(
        &mut self,
        rip: u64,
        code_bits: u32,
        fetched: &Bytes,
        trace: Option<Trace>,
        instruction: &Instruction,
    ) {
        let (bytes, mask) = fetched.prefix(instruction.len());
        self.entries[slot(rip)] =
            Some(Entry { rip, code_bits, bytes, mask, trace, decoded: Decoded::new(instruction) });
    }
}

fn slot(rip: u64) -> usize {
    // Instructions that follow each other, and functions at multiples of 16, get different slots.
    (rip ^ rip >> 5) as usize % ENTRIES
}
