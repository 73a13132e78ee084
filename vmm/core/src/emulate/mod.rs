//! Instructions that the hardware leaves to us: those that reach device memory, and string I/O.
//!
//! `decode` fetches and decodes, with `cache` and `moves` as its memory; `transfer`, `operand` and `string` execute; memory is reached
//! through `address`, `segment`, `access` and `walk`. Every step may end in a [`crate::fault::Fault`] for the guest, with nothing done but the completed iterations of a string
//! instruction, as on a CPU.

mod access;
mod address;
mod alu;
mod cache;
mod decode;
mod moves;
mod operand;
mod plain;
mod register;
mod segment;
mod string;
mod trace;
mod transfer;
mod walk;

pub use cache::DecodeCache;
pub use decode::{decode_exiting, verify_length};
pub use operand::{control_operand, gpr_operand, read_operand, write_operand};
pub use walk::{Access, Paging};

use alloc::format;
use iced_x86::{Instruction, Mnemonic};
use vdev::guest_mem::GuestMemory;

use crate::fault::Trouble;
use crate::vcpu::{MODE, Vcpu, complete_instruction, complete_plainly};
use access::LinearSpace;
use alu::Operation;
use cache::Work;
use operand::Operands;

/// What answers where there is no RAM.
pub trait Devices {
    /// Reads `size` bytes (1 to 8) at a guest-physical address.
    fn read_memory(&mut self, address: u64, size: u8) -> u64;
    /// Writes the low `size` bytes (1 to 8) of `value` to a guest-physical address.
    fn write_memory(&mut self, address: u64, size: u8, value: u64);
    /// Reads 1, 2 or 4 bytes from a port.
    fn read_port(&mut self, port: u16, size: u8) -> u32;
    /// Writes 1, 2 or 4 bytes to a port.
    fn write_port(&mut self, port: u16, size: u8, value: u32);
}

/// Some registers in memory.
pub(crate) trait Registers {
    /// As [`Devices::read_memory`]; `None` from other registers than these.
    fn load(&mut self, address: u64, size: u8) -> Option<u64>;
    /// As [`Devices::write_memory`], with anything above the low `size` bytes. Says whether it is one of these registers.
    fn store(&mut self, address: u64, size: u8, value: u64) -> bool;
}

/// The registers of all devices.
struct All<'a, D>(&'a mut D);

impl<D: Devices> Registers for All<'_, D> {
    fn load(&mut self, address: u64, size: u8) -> Option<u64> {
        Some(self.0.read_memory(address, size))
    }

    fn store(&mut self, address: u64, size: u8, value: u64) -> bool {
        self.0.write_memory(address, size, value);
        true
    }
}

/// Why an instruction is emulated. The CPU checked what it executed for that; what is found in memory must be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It reached device memory; the page tells of the exit ([`hypercall_abi::exit::NestedFault`]).
    Memory,
    /// It is INS or OUTS, and the CPU allowed the port.
    Port,
}

/// Executes the plain move of 64-bit code that the vCPU is on, as nearly all accesses to devices are, if the exit in the page tells
/// of its access. Says whether it was so; else nothing was done, and [`emulate`] does it.
pub fn emulate_move(
    vcpu: &mut impl Vcpu,
    memory: &impl GuestMemory,
    devices: &mut impl Devices,
    cache: &mut DecodeCache,
) -> bool {
    move_to(vcpu, memory, &mut All(devices), cache)
}

/// As [`emulate_move`], if one of these registers answers.
#[inline(always)]
pub(crate) fn move_to(
    vcpu: &mut impl Vcpu,
    memory: &impl GuestMemory,
    registers: &mut impl Registers,
    cache: &mut DecodeCache,
) -> bool {
    let page = vcpu.page();
    let Some(known) = cache.flat_move(memory, page).filter(|known| known.execute(page, registers)) else {
        return false;
    };
    let length = known.length;
    if !complete_plainly(page, length) {
        complete_instruction(vcpu, length);
    }
    true
}

/// Executes the instruction that the vCPU is on.
///
/// A string instruction with REP does a bounded number of iterations and leaves the rest to the next exit.
///
/// # Errors
/// The fault that it raises, or that this kind of instruction is not supported on device memory.
pub fn emulate<M: GuestMemory>(
    vcpu: &mut impl Vcpu,
    memory: &mut M,
    devices: &mut impl Devices,
    cache: &mut DecodeCache,
    cause: Cause,
) -> Result<(), Trouble> {
    let decoded = decode::decode(vcpu, memory, cache, cause)?;
    let length = decoded.length;
    vcpu.require(MODE);
    execute_other(vcpu, &mut LinearSpace::new(memory, devices), &decoded.work, length, cause)
}

#[inline(never)]
fn execute_other<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    space: &mut LinearSpace<'_, M, D>,
    work: &Work,
    length: u8,
    cause: Cause,
) -> Result<(), Trouble> {
    let is_complete = match (work, cause) {
        (Work::Transfer(transfer), Cause::Memory) => {
            space.has_one_access = true;
            transfer.execute(vcpu, space)?;
            true
        }
        (Work::Other(instruction), Cause::Memory) => {
            space.has_one_access = true;
            execute(vcpu, space, instruction)?;
            true
        }
        (Work::String(instruction), _)
            if string::is_port_io(instruction.mnemonic()) == (cause == Cause::Port) =>
        {
            string::execute(vcpu, space, instruction)?
        }
        _ => {
            let rip = vcpu.page().rip;
            return Err(Trouble::Unsupported(format!(
                "the CPU reported another instruction than that at {rip:#x} ({cause:?})"
            )));
        }
    };
    if is_complete {
        complete_instruction(vcpu, length);
    }
    Ok(())
}

fn execute<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    space: &mut LinearSpace<'_, M, D>,
    instruction: &Instruction,
) -> Result<(), Trouble> {
    let mut operands = Operands::new(vcpu, space, instruction)?;
    match instruction.mnemonic() {
        Mnemonic::Xchg => {
            // The memory operand, which may fault, goes first.
            let memory = usize::from(operands.is_memory(1));
            operands.check_write(memory)?;
            let (first, second) = (operands.read(0)?, operands.read(1)?);
            let values = [second, first];
            operands.write(memory, values[memory])?;
            operands.write(1 - memory, values[1 - memory])?;
        }
        Mnemonic::Not => {
            operands.check_write(0)?;
            let value = operands.read(0)?;
            operands.write(0, !value)?;
        }
        mnemonic => match operation(mnemonic) {
            Some((operation, writes)) => operands.apply(operation, writes)?,
            None => return Err(not_emulated(vcpu, instruction)),
        },
    }
    Ok(())
}

/// The arithmetic of an instruction, and whether it writes its destination.
fn operation(mnemonic: Mnemonic) -> Option<(Operation, bool)> {
    Some(match mnemonic {
        Mnemonic::Add => (Operation::Add, true),
        Mnemonic::Adc => (Operation::AddWithCarry, true),
        Mnemonic::Sub => (Operation::Subtract, true),
        Mnemonic::Sbb => (Operation::SubtractWithBorrow, true),
        Mnemonic::And => (Operation::And, true),
        Mnemonic::Or => (Operation::Or, true),
        Mnemonic::Xor => (Operation::Xor, true),
        Mnemonic::Cmp => (Operation::Subtract, false),
        Mnemonic::Test => (Operation::And, false),
        Mnemonic::Bt => (Operation::BitTest, false),
        Mnemonic::Bts => (Operation::BitSet, true),
        Mnemonic::Btr => (Operation::BitReset, true),
        Mnemonic::Btc => (Operation::BitComplement, true),
        Mnemonic::Inc => (Operation::Increment, true),
        Mnemonic::Dec => (Operation::Decrement, true),
        Mnemonic::Neg => (Operation::Negate, true),
        _ => return None,
    })
}

fn not_emulated(vcpu: &mut impl Vcpu, instruction: &Instruction) -> Trouble {
    let mnemonic = instruction.mnemonic();
    let rip = vcpu.page().rip;
    Trouble::Unsupported(format!("{mnemonic:?} at {rip:#x} works on memory where there is no RAM"))
}

#[cfg(test)]
mod tests;
