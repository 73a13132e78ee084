//! MOVS, STOS, LODS, INS and OUTS, alone and with REP.

use hypercall_abi::vcpu::VcpuPage;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::access::LinearSpace;
use super::not_emulated;
use super::operand::{effective_address, read_register, write_register};
use super::walk::Access;
use crate::fault::Trouble;
use crate::vcpu::{RFLAGS_DF, Vcpu};

/// Iterations of one exit: enough to be cheap, few enough to keep interrupts prompt.
const MAX_ITERATIONS: u64 = 1024;

pub(super) fn is_string(mnemonic: Mnemonic) -> bool {
    kind(mnemonic).is_some()
}

/// INS or OUTS.
pub(super) fn is_port_io(mnemonic: Mnemonic) -> bool {
    matches!(kind(mnemonic), Some((Kind::In | Kind::Out, _)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    In,
    Out,
}

/// The kind, and the bytes of one element.
fn kind(mnemonic: Mnemonic) -> Option<(Kind, usize)> {
    Some(match mnemonic {
        Mnemonic::Movsb => (Kind::Move, 1),
        Mnemonic::Movsw => (Kind::Move, 2),
        Mnemonic::Movsd => (Kind::Move, 4),
        Mnemonic::Movsq => (Kind::Move, 8),
        Mnemonic::Stosb => (Kind::Store, 1),
        Mnemonic::Stosw => (Kind::Store, 2),
        Mnemonic::Stosd => (Kind::Store, 4),
        Mnemonic::Stosq => (Kind::Store, 8),
        Mnemonic::Lodsb => (Kind::Load, 1),
        Mnemonic::Lodsw => (Kind::Load, 2),
        Mnemonic::Lodsd => (Kind::Load, 4),
        Mnemonic::Lodsq => (Kind::Load, 8),
        Mnemonic::Insb => (Kind::In, 1),
        Mnemonic::Insw => (Kind::In, 2),
        Mnemonic::Insd => (Kind::In, 4),
        Mnemonic::Outsb => (Kind::Out, 1),
        Mnemonic::Outsw => (Kind::Out, 2),
        Mnemonic::Outsd => (Kind::Out, 4),
        _ => return None,
    })
}

/// Executes it; `false` if REP has iterations left, which the same instruction does when it is entered again.
pub(super) fn execute<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    space: &mut LinearSpace<'_, M, D>,
    instruction: &Instruction,
) -> Result<bool, Trouble> {
    // MOVSD is also an SSE instruction.
    let is_ours = (0..instruction.op_count()).any(|index| pointer(instruction.op_kind(index)).is_some());
    let Some((kind, size)) = kind(instruction.mnemonic()).filter(|_| is_ours) else {
        return Err(not_emulated(vcpu, instruction));
    };
    let is_repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let counter = counter(instruction);
    for _ in 0..MAX_ITERATIONS {
        if is_repeated && read_register(vcpu, counter) == 0 {
            return Ok(true);
        }
        iterate(vcpu, space, instruction, kind, size)?;
        if !is_repeated {
            return Ok(true);
        }
        let left = read_register(vcpu, counter).wrapping_sub(1);
        write_register(vcpu, counter, left);
    }
    Ok(read_register(vcpu, counter) == 0)
}

fn iterate<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    space: &mut LinearSpace<'_, M, D>,
    instruction: &Instruction,
    kind: Kind,
    size: usize,
) -> Result<(), Trouble> {
    let mut address = |index, access| effective_address(vcpu, instruction, index, size, access);
    match kind {
        Kind::Move => {
            let (from, to) = (address(1, Access::Read)?, address(0, Access::Write)?);
            space.check_write(to, size)?;
            let value = space.read(from, size)?;
            space.write(to, size, value)?;
        }
        Kind::Store => {
            let to = address(0, Access::Write)?;
            space.write(to, size, read_register(vcpu, Register::RAX))?;
        }
        Kind::Load => {
            let from = address(1, Access::Read)?;
            let value = space.read(from, size)?;
            write_register(vcpu, instruction.op_register(0), value);
        }
        Kind::In => {
            let to = address(0, Access::Write)?;
            space.check_write(to, size)?;
            let value = space.devices.read_port(port(vcpu.page()), size as u8);
            space.write(to, size, value.into())?;
        }
        Kind::Out => {
            let from = address(1, Access::Read)?;
            let value = space.read(from, size)?;
            space
                .devices
                .write_port(port(vcpu.page()), size as u8, value as u32);
        }
    }
    let step = if vcpu.page().rflags & RFLAGS_DF == 0 {
        size as u64
    } else {
        (size as u64).wrapping_neg()
    };
    for index in 0..instruction.op_count() {
        if let Some(register) = pointer(instruction.op_kind(index)) {
            let next = read_register(vcpu, register).wrapping_add(step);
            write_register(vcpu, register, next);
        }
    }
    Ok(())
}

fn port(page: &VcpuPage) -> u16 {
    page.gpr[hypercall_abi::vcpu::gpr::RDX] as u16
}

/// The register that an operand of a string instruction walks with.
fn pointer(kind: OpKind) -> Option<Register> {
    Some(match kind {
        OpKind::MemorySegSI => Register::SI,
        OpKind::MemorySegESI => Register::ESI,
        OpKind::MemorySegRSI => Register::RSI,
        OpKind::MemoryESDI => Register::DI,
        OpKind::MemoryESEDI => Register::EDI,
        OpKind::MemoryESRDI => Register::RDI,
        _ => return None,
    })
}

/// The counter of REP is as wide as addresses are.
fn counter(instruction: &Instruction) -> Register {
    let width = (0..instruction.op_count()).find_map(|index| pointer(instruction.op_kind(index)));
    match width.map_or(8, |register| register.size()) {
        2 => Register::CX,
        4 => Register::ECX,
        _ => Register::RCX,
    }
}
