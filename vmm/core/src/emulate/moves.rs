//! Moves that were executed before.
//!
//! Nearly all accesses to devices are plain moves of 64-bit code with addresses from registers, again and again from the same
//! places. Such a move is kept with all that it is a function of: the instruction pointer, the entries of the guest's tables that
//! lead there, and its bytes. Each of these is compared before it is used.

use hypercall_abi::exit::NestedFault;
use hypercall_abi::vcpu::VcpuPage;
use vdev::guest_mem::GuestMemory;

use super::Registers;
use super::alu::truncate;
use super::cache::spread;
use super::decode::Bytes;
use super::plain;
use super::register::Gpr;
use super::trace::Trace;
use super::transfer::{Kind, Transfer};

const PAGE_SIZE: u64 = 4096;
const LINEAR_VALID: u64 = NestedFault::LINEAR_VALID.bits();
/// Moves that are remembered; a power of two.
pub(super) const SLOTS: usize = 32;

/// Where a move at `rip` is remembered.
#[inline]
pub(super) fn slot(rip: u64) -> usize {
    spread(rip) % SLOTS
}

/// A move of 64-bit code, and what it is a function of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    /// The instruction pointer, which is part of addresses.
    rip: u64,
    /// How its page was found.
    trace: Trace,
    /// Where its first byte was found.
    physical: u64,
    /// The instruction's own bytes; the mask has ones for them.
    bytes: [u64; 2],
    mask: [u64; 2],
    /// Bytes: 1 to 15.
    pub(super) length: u8,
    flat: Flat,
}

impl Move {
    /// No move: it is nowhere.
    pub(super) const NONE: Move = Move {
        rip: u64::MAX,
        trace: Trace::NONE,
        physical: 0,
        bytes: [0; 2],
        mask: [0; 2],
        length: 1,
        flat: Flat::NONE,
    };

    /// Becomes what these bytes at `rip`, from `physical`, are if that is a flat move; `trace` says how its page was found.
    pub(super) fn learn(&mut self, rip: u64, bytes: &Bytes, trace: &Trace, physical: u64) -> Option<()> {
        let (transfer, length) = plain::decode(bytes.word(), rip)?;
        let flat = Flat::of(&transfer)?;
        let (bytes, mask) = bytes.prefix(length.into());
        let halves = |word: u128| [word as u64, (word >> 64) as u64];
        (self.bytes, self.mask) = (halves(bytes), halves(mask));
        (self.rip, self.trace, self.physical) = (rip, *trace, physical);
        (self.length, self.flat) = (length, flat);
        Some(())
    }

    /// Whether it is still what is at `rip`, to which the tables at `root` lead.
    #[inline(always)]
    pub(super) fn is_at(&self, memory: &impl GuestMemory, root: u64, rip: u64) -> bool {
        let has =
            |half: usize| memory.has_u64(self.physical + 8 * half as u64, self.mask[half], self.bytes[half]);
        self.rip == rip && self.trace.holds(memory, root) && has(0) && (self.length <= 8 || has(1))
    }

    /// Executes it in 64-bit code with what the exit in the page tells; says whether that was the access that the CPU reported, and
    /// does nothing otherwise.
    #[inline(always)]
    pub(super) fn execute(&self, page: &mut VcpuPage, registers: &mut impl Registers) -> bool {
        self.flat.execute(page, registers)
    }
}

/// A move that depends on nothing but whole registers that every exit tells, one of them for the address, and needs no sign.
#[derive(Clone, Copy, Debug)]
struct Flat {
    /// Number of the address's base.
    base: u8,
    /// Bytes in memory: 1, 2, 4 or 8.
    size: u8,
    what: What,
    displacement: u64,
    /// The bits of the base that count: none without one.
    base_mask: u64,
    /// The bits of an address that is not aligned.
    unaligned: u64,
    /// Flags of the exit that tell whether it was this access, and what they are then where the hardware tells the linear address.
    flags: u64,
    expected: u64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Into the register with this number, which keeps some bits and gets some of the value.
    Load {
        register: u8,
        kept: u64,
        got: u64,
    },
    /// From the register with this number.
    Store {
        register: u8,
    },
    StoreImmediate {
        value: u64,
    },
}

impl Flat {
    const NONE: Flat = Flat {
        base: 0,
        size: 1,
        what: What::StoreImmediate { value: 0 },
        displacement: 0,
        base_mask: 0,
        unaligned: 0,
        flags: 0,
        expected: 0,
    };

    /// `None` for moves that depend on more.
    fn of(transfer: &Transfer) -> Option<Flat> {
        let (base, displacement) = transfer.address.flat()?;
        let is_usable = |register: Gpr| !register.is_stack_pointer() && register.shift() == 0;
        let what = match transfer.kind {
            Kind::Load { to, is_signed: false } if is_usable(to) => What::Load {
                register: to.number(),
                kept: to.kept(),
                got: truncate(u64::MAX, transfer.size.into()),
            },
            Kind::Store { from } if is_usable(from) => What::Store { register: from.number() },
            Kind::StoreImmediate { value } => What::StoreImmediate { value },
            _ => return None,
        };
        // An access of the page walk is none of the instruction, nor is its fetch.
        let foreign = NestedFault::PAGE_WALK | NestedFault::EXECUTE;
        let (flags, expected) = match what {
            What::Load { .. } => (foreign, NestedFault::empty()),
            _ => (foreign | NestedFault::WRITE, NestedFault::WRITE),
        };
        Some(Flat {
            base: base.map_or(0, Gpr::number),
            size: transfer.size,
            what,
            displacement,
            base_mask: if base.is_some() { u64::MAX } else { 0 },
            unaligned: u64::from(transfer.size) - 1,
            flags: flags.bits() | LINEAR_VALID,
            expected: expected.bits() | LINEAR_VALID,
        })
    }

    /// As [`super::access::reached`], of an access that is aligned.
    #[inline(always)]
    fn reached(&self, page: &VcpuPage) -> Option<u64> {
        let base = page.gpr[usize::from(self.base & 15)] & self.base_mask;
        let linear = self.displacement.wrapping_add(base);
        let [physical, flags, reported, ..] = page.exit_info;
        if linear & self.unaligned != 0 {
            return None;
        }
        if flags & self.flags == self.expected {
            return (reported == linear).then_some(physical);
        }
        self.reached_without_linear(page, linear)
    }

    #[inline(never)]
    fn reached_without_linear(&self, page: &VcpuPage, linear: u64) -> Option<u64> {
        let [physical, flags, ..] = page.exit_info;
        let is_same = (physical ^ linear).is_multiple_of(PAGE_SIZE);
        (is_same && flags & self.flags == self.expected & !LINEAR_VALID).then_some(physical)
    }

    #[inline(always)]
    fn execute(&self, page: &mut VcpuPage, registers: &mut impl Registers) -> bool {
        let Some(address) = self.reached(page) else {
            return false;
        };
        match self.what {
            What::Load { register, kept, got } => {
                let Some(value) = registers.load(address, self.size) else {
                    return false;
                };
                let register = &mut page.gpr[usize::from(register & 15)];
                *register = *register & kept | value & got;
                true
            }
            What::Store { register } => {
                registers.store(address, self.size, page.gpr[usize::from(register & 15)])
            }
            What::StoreImmediate { value } => registers.store(address, self.size, value),
        }
    }
}
