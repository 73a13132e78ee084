//! Effective addresses of memory operands (SDM 1 3.7.5).

use hypercall_abi::vcpu::gpr;
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

    /// The linear address of `size` bytes there.
    ///
    /// # Errors
    /// The fault that segmentation raises.
    pub(super) fn linear(&self, vcpu: &mut impl Vcpu, size: usize, access: Access) -> Result<u64, Fault> {
        let mut offset = self.displacement;
        if let Some(base) = self.base {
            offset = offset.wrapping_add(base.read_wide(vcpu));
        }
        if let Some(index) = self.index {
            offset = offset.wrapping_add(index.read_wide(vcpu) << self.scale);
        }
        segment::linear(vcpu, self.segment, offset & self.mask, size, access)
    }
}

fn mask(size: usize) -> u64 {
    match size {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
