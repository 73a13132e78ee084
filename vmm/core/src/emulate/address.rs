//! Effective addresses of memory operands (SDM 1 3.7.5).

use hypercall_abi::vcpu::{VcpuPage, gpr};
use iced_x86::{Instruction, Register};

use super::register::Gpr;
use super::segment;
use super::string::pointer;
use super::walk::Access;
use crate::fault::Fault;
use crate::vcpu::Vcpu;

/// How an instruction addresses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    base: Option<Gpr>,
    index: Option<Gpr>,
    /// The index counts `1 << scale` times.
    scale: u8,
    /// The displacement; with the address of the next instruction in it where that counts.
    displacement: u64,
    /// Offsets, and the registers in them, are as wide as addresses of this instruction.
    mask: u64,
    segment: Register,
}

impl Address {
    /// The address of operand `index`, which is in memory; `None` for kinds that no emulated instruction has.
    pub(super) fn of(instruction: &Instruction, index: u32) -> Option<Address> {
        if let Some(base) = pointer(instruction.op_kind(index)) {
            let is_destination = usize::from(base.number()) == gpr::RDI;
            return Some(Address {
                base: Some(base),
                index: None,
                scale: 0,
                displacement: 0,
                mask: mask(base.size()),
                // No prefix moves the destination elsewhere.
                segment: if is_destination { Register::ES } else { instruction.memory_segment() },
            });
        }
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        // Vector registers as index are in no instruction that is emulated.
        let gpr = |register: Register| match Gpr::of(register) {
            None if !matches!(register, Register::None | Register::RIP | Register::EIP) => Err(()),
            gpr => Ok(gpr),
        };
        let width = if base == Register::None && index == Register::None {
            instruction.memory_displ_size() as usize
        } else {
            base.size().max(index.size())
        };
        Some(Address {
            base: gpr(base).ok()?,
            index: gpr(index).ok()?,
            scale: instruction.memory_index_scale().trailing_zeros() as u8,
            displacement: instruction.memory_displacement64(),
            mask: mask(width),
            segment: instruction.memory_segment(),
        })
    }

    /// An address of 64-bit code: with a displacement of all its bits, and 64-bit registers.
    pub(super) fn in_64_bit_code(
        base: Option<Gpr>,
        index: Option<Gpr>,
        scale: u8,
        displacement: u64,
        segment: Register,
    ) -> Address {
        Address { base, index, scale, displacement, mask: u64::MAX, segment }
    }

    /// Base and displacement, if in 64-bit code the linear address depends on nothing but these, and every exit tells the base.
    pub(super) fn flat(&self) -> Option<(Option<Gpr>, u64)> {
        let is_told = !self.base.is_some_and(Gpr::is_stack_pointer);
        let has_no_base = !matches!(self.segment, Register::FS | Register::GS);
        let is_flat = self.mask == u64::MAX && has_no_base && is_told && self.index.is_none();
        is_flat.then_some((self.base, self.displacement))
    }

    /// The offset in the segment.
    fn offset(&self, page: &VcpuPage) -> u64 {
        let mut offset = self.displacement;
        if let Some(base) = self.base {
            offset = offset.wrapping_add(base.of_page(page));
        }
        if let Some(index) = self.index {
            offset = offset.wrapping_add(index.of_page(page) << self.scale);
        }
        offset & self.mask
    }

    /// The linear address of `size` bytes there.
    ///
    /// # Errors
    /// The fault that segmentation raises.
    pub(super) fn linear(&self, vcpu: &mut impl Vcpu, size: usize, access: Access) -> Result<u64, Fault> {
        let offset = self.offset(vcpu.page());
        segment::linear(vcpu, self.segment, offset, size, access)
    }
}

fn mask(size: usize) -> u64 {
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
