//! Operands of one instruction.

use hypercall_abi::vcpu::Groups;
use iced_x86::{Instruction, OpKind};
use vdev::guest_mem::GuestMemory;

use super::access::LinearSpace;
use super::address::Address;
use super::alu::{Operation, sign_extend};
use super::register::Gpr;
use super::walk::Access;
use super::{Devices, not_emulated};
use crate::fault::{Fault, Trouble};
use crate::vcpu::{MODE, Vcpu, code_bits};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Gpr(Gpr),
    Immediate(u64),
    Memory(u64),
}

/// The first two operands of an instruction, and where they are.
pub(super) struct Operands<'a, 'b, V, M, D> {
    vcpu: &'a mut V,
    space: &'a mut LinearSpace<'b, M, D>,
    operands: [Operand; 2],
    sizes: [usize; 2],
}

impl<'a, 'b, V: Vcpu, M: GuestMemory, D: Devices> Operands<'a, 'b, V, M, D> {
    /// # Errors
    /// An operand is of a kind that is not supported.
    pub(super) fn new(
        vcpu: &'a mut V,
        space: &'a mut LinearSpace<'b, M, D>,
        instruction: &Instruction,
    ) -> Result<Self, Trouble> {
        let mut operands = [Operand::Immediate(0); 2];
        let mut sizes = [0; 2];
        for index in 0..instruction.op_count().min(2) {
            let place = index as usize;
            let (operand, size) =
                locate(vcpu, instruction, index)?.ok_or_else(|| not_emulated(vcpu, instruction))?;
            (operands[place], sizes[place]) = (operand, size);
        }
        // A bit index in a register reaches beyond the operand (SDM 2A BT): the memory operand moves with it.
        if let (Operand::Memory(address), Operand::Gpr(register)) = (operands[0], operands[1])
            && is_bit_operation(instruction)
        {
            let index = sign_extend(register.read(vcpu), sizes[1]) as i64;
            let bits = 8 * sizes[0] as i64;
            let moved = index.div_euclid(bits) * sizes[0] as i64;
            operands[0] = Operand::Memory(wrap(vcpu, address.wrapping_add_signed(moved)));
        }
        // An immediate is as wide as what it is combined with.
        if let Operand::Immediate(_) = operands[1] {
            sizes[1] = sizes[0];
        }
        Ok(Operands { vcpu, space, operands, sizes })
    }

    pub(super) fn is_memory(&self, index: usize) -> bool {
        matches!(self.operands[index], Operand::Memory(_))
    }

    pub(super) fn read(&mut self, index: usize) -> Result<u64, Fault> {
        match self.operands[index] {
            Operand::Gpr(register) => Ok(register.read(self.vcpu)),
            Operand::Immediate(value) => Ok(value),
            Operand::Memory(address) => self.space.read(self.vcpu.page(), address, self.sizes[index]),
        }
    }

    pub(super) fn write(&mut self, index: usize, value: u64) -> Result<(), Fault> {
        match self.operands[index] {
            Operand::Gpr(register) => register.write(self.vcpu, value),
            Operand::Immediate(_) => {}
            Operand::Memory(address) => {
                self.space.write(self.vcpu.page(), address, self.sizes[index], value)?;
            }
        }
        Ok(())
    }

    /// Faults as [`Self::write`] would: a device must not be read if the write that follows faults.
    pub(super) fn check_write(&mut self, index: usize) -> Result<(), Fault> {
        match self.operands[index] {
            Operand::Memory(address) => self.space.check_write(self.vcpu.page(), address, self.sizes[index]),
            _ => Ok(()),
        }
    }

    /// Combines the operands, and writes the flags and, if it `writes`, the result.
    pub(super) fn apply(&mut self, operation: Operation, writes: bool) -> Result<(), Fault> {
        if writes {
            self.check_write(0)?;
        }
        let (destination, source) = (self.read(0)?, self.read(1)?);
        let rflags = self.vcpu.page().rflags;
        let (result, rflags) = operation.apply(destination, source, self.sizes[0], rflags);
        if writes {
            self.write(0, result)?;
        }
        let page = self.vcpu.page();
        page.rflags = rflags;
        page.dirty |= Groups::RIP.bits();
        Ok(())
    }
}

fn is_bit_operation(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic;
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
}

/// The operand and its size in bytes; `None` for what is not supported.
fn locate(
    vcpu: &mut impl Vcpu,
    instruction: &Instruction,
    index: u32,
) -> Result<Option<(Operand, usize)>, Fault> {
    let operand = match instruction.op_kind(index) {
        OpKind::Register => {
            let register = Gpr::of(instruction.op_register(index));
            register.map(|register| (Operand::Gpr(register), register.size()))
        }
        OpKind::Memory => {
            let size = instruction.memory_size().size();
            if !matches!(size, 1 | 2 | 4 | 8) {
                return Ok(None);
            }
            let Some(address) = Address::of(instruction, index) else {
                return Ok(None);
            };
            Some((Operand::Memory(address.linear(vcpu, size, Access::Read)?), size))
        }
        _ => instruction.try_immediate(index).ok().map(|value| (Operand::Immediate(value), 8)),
    };
    Ok(operand)
}

/// Linear addresses have 32 bits outside 64-bit mode.
fn wrap(vcpu: &mut impl Vcpu, address: u64) -> u64 {
    if code_bits(vcpu.state(MODE)) == 64 { address } else { address & 0xffff_ffff }
}

/// Reads the first operand of an instruction, which may be in memory: that of LMSW.
///
/// # Errors
/// The fault that the access raises.
pub fn read_operand<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    memory: &mut M,
    devices: &mut D,
    instruction: &Instruction,
) -> Result<u64, Trouble> {
    let mut space = LinearSpace::new(memory, devices);
    Ok(Operands::new(vcpu, &mut space, instruction)?.read(0)?)
}

/// Writes the first operand of an instruction, which may be in memory: that of SMSW.
///
/// # Errors
/// The fault that the access raises.
pub fn write_operand<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    memory: &mut M,
    devices: &mut D,
    instruction: &Instruction,
    value: u64,
) -> Result<(), Trouble> {
    let mut space = LinearSpace::new(memory, devices);
    Ok(Operands::new(vcpu, &mut space, instruction)?.write(0, value)?)
}

/// The number of the general-purpose register among the operands of MOV to or from a control or debug register, or of
/// LMSW with a register.
pub fn gpr_operand(instruction: &Instruction) -> Option<u8> {
    (0..instruction.op_count())
        .filter(|index| instruction.op_kind(*index) == OpKind::Register)
        .find_map(|index| Gpr::of(instruction.op_register(index)))
        .map(Gpr::number)
}

/// Number of the control register among the operands, if there is one.
pub fn control_operand(instruction: &Instruction) -> Option<u8> {
    (0..instruction.op_count())
        .filter(|index| instruction.op_kind(*index) == OpKind::Register)
        .map(|index| instruction.op_register(index))
        .find(|register| register.is_cr())
        .map(|register| register.number() as u8)
}
