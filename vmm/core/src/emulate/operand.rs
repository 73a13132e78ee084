//! Operands of one instruction.

use hypercall_abi::vcpu::{CS, DS, ES, FS, GS, Groups, SS, VcpuPage};
use iced_x86::{Instruction, OpKind, Register};
use vdev::guest_mem::GuestMemory;

use super::access::LinearSpace;
use super::alu::{Operation, sign_extend, truncate};
use super::{Devices, unsupported};
use crate::fault::{Fault, Trouble};
use crate::vcpu::{MODE, Vcpu, code_bits, read_gpr, write_gpr};

/// Segments and general-purpose registers: what an effective address may need beside [`MODE`].
pub(super) const ADDRESSING: Groups = MODE.union(Groups::DATA_SEGMENTS);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Gpr(Register),
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
                locate(vcpu, instruction, index).ok_or_else(|| unsupported(vcpu, instruction))?;
            (operands[place], sizes[place]) = (operand, size);
        }
        // A bit index in a register reaches beyond the operand (SDM 2A BT): the memory operand moves with it.
        if let (Operand::Memory(address), Operand::Gpr(register)) = (operands[0], operands[1])
            && is_bit_operation(instruction)
        {
            let index = sign_extend(read_register(vcpu, register), sizes[1]) as i64;
            let bits = 8 * sizes[0] as i64;
            let moved = index.div_euclid(bits) * sizes[0] as i64;
            operands[0] = Operand::Memory(wrap(vcpu, address.wrapping_add_signed(moved)));
        }
        // An immediate is as wide as what it is combined with.
        if let Operand::Immediate(_) = operands[1] {
            sizes[1] = sizes[0];
        }
        Ok(Operands {
            vcpu,
            space,
            operands,
            sizes,
        })
    }

    pub(super) fn size(&self, index: usize) -> usize {
        self.sizes[index]
    }

    pub(super) fn is_memory(&self, index: usize) -> bool {
        matches!(self.operands[index], Operand::Memory(_))
    }

    pub(super) fn read(&mut self, index: usize) -> Result<u64, Fault> {
        match self.operands[index] {
            Operand::Gpr(register) => Ok(read_register(self.vcpu, register)),
            Operand::Immediate(value) => Ok(value),
            Operand::Memory(address) => self.space.read(address, self.sizes[index]),
        }
    }

    pub(super) fn write(&mut self, index: usize, value: u64) -> Result<(), Fault> {
        match self.operands[index] {
            Operand::Gpr(register) => write_register(self.vcpu, register, value),
            Operand::Immediate(_) => {}
            Operand::Memory(address) => self.space.write(address, self.sizes[index], value)?,
        }
        Ok(())
    }

    /// Combines the operands, and writes the flags and, if it `writes`, the result.
    pub(super) fn apply(&mut self, operation: Operation, writes: bool) -> Result<(), Fault> {
        // A device must not be read if the write that follows faults.
        if let (true, Operand::Memory(address)) = (writes, self.operands[0]) {
            self.space.check_write(address, self.sizes[0])?;
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
    matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    )
}

fn locate(vcpu: &mut impl Vcpu, instruction: &Instruction, index: u32) -> Option<(Operand, usize)> {
    match instruction.op_kind(index) {
        OpKind::Register => {
            let register = instruction.op_register(index);
            register
                .is_gpr()
                .then(|| (Operand::Gpr(register), register.size()))
        }
        OpKind::Memory => {
            let size = instruction.memory_size().size();
            let address = effective_address(vcpu, instruction, index)?;
            matches!(size, 1 | 2 | 4 | 8).then_some((Operand::Memory(address), size))
        }
        _ => instruction
            .try_immediate(index)
            .ok()
            .map(|value| (Operand::Immediate(value), 8)),
    }
}

/// The linear address of a memory operand. The CPU checked segment limits before it accessed memory and exited.
pub(super) fn effective_address(vcpu: &mut impl Vcpu, instruction: &Instruction, index: u32) -> Option<u64> {
    vcpu.require(ADDRESSING);
    let address = instruction.virtual_address(index, 0, |register, _, _| {
        if register.is_segment_register() {
            Some(segment_base(vcpu.page(), register))
        } else {
            register.is_gpr().then(|| read_register(vcpu, register))
        }
    })?;
    Some(wrap(vcpu, address))
}

/// Linear addresses have 32 bits outside 64-bit mode.
fn wrap(vcpu: &mut impl Vcpu, address: u64) -> u64 {
    if code_bits(vcpu.state(MODE)) == 64 {
        address
    } else {
        address & 0xffff_ffff
    }
}

fn segment_base(page: &VcpuPage, register: Register) -> u64 {
    let index = match register {
        Register::ES => ES,
        Register::CS => CS,
        Register::SS => SS,
        Register::FS => FS,
        Register::GS => GS,
        _ => DS,
    };
    // In 64-bit mode only FS and GS have a base (SDM 1 3.3.4).
    if code_bits(page) == 64 && !matches!(index, FS | GS) {
        0
    } else {
        page.segments[index].base
    }
}

/// The number of a general-purpose register.
fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

pub(super) fn read_register(vcpu: &mut impl Vcpu, register: Register) -> u64 {
    let full = read_gpr(vcpu, number(register));
    if is_high_byte(register) {
        full >> 8 & 0xff
    } else {
        truncate(full, register.size())
    }
}

/// Writes a register as instructions do: 32-bit results clear the upper half, smaller ones leave the rest.
pub(super) fn write_register(vcpu: &mut impl Vcpu, register: Register, value: u64) {
    let index = number(register);
    let old = read_gpr(vcpu, index);
    let new = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => old & !0xffff | value & 0xffff,
        _ if is_high_byte(register) => old & !0xff00 | (value & 0xff) << 8,
        _ => old & !0xff | value & 0xff,
    };
    write_gpr(vcpu, index, new);
}

/// The number of the general-purpose register among the operands of MOV to or from a control or debug register, or of
/// LMSW with a register.
pub fn gpr_operand(instruction: &Instruction) -> Option<u8> {
    (0..instruction.op_count())
        .filter(|index| instruction.op_kind(*index) == OpKind::Register)
        .map(|index| instruction.op_register(index))
        .find(|register| register.is_gpr())
        .map(number)
}
