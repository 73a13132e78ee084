//! MOVS, STOS, LODS, INS and OUTS, alone and with REP.

use hypercall_abi::vcpu::{VcpuPage, gpr};
use iced_x86::{Instruction, Mnemonic, OpKind};
use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::access::LinearSpace;
use super::address::Address;
use super::not_emulated;
use super::register::Gpr;
use super::walk::Access;
use crate::fault::{Fault, Trouble};
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
        if is_repeated && counter.read(vcpu) == 0 {
            return Ok(true);
        }
        iterate(vcpu, space, instruction, kind, size)?;
        if !is_repeated {
            return Ok(true);
        }
        let left = counter.read(vcpu).wrapping_sub(1);
        counter.write(vcpu, left);
    }
    Ok(counter.read(vcpu) == 0)
}

fn iterate<M: GuestMemory, D: Devices>(
    vcpu: &mut impl Vcpu,
    space: &mut LinearSpace<'_, M, D>,
    instruction: &Instruction,
    kind: Kind,
    size: usize,
) -> Result<(), Trouble> {
    let mut address = |index, access| {
        // Both operands are pointers, or `execute` had refused.
        let address = Address::of(instruction, index).ok_or(Fault::UNDEFINED)?;
        address.linear(vcpu, size, access)
    };
    match kind {
        Kind::Move => {
            let (from, to) = (address(1, Access::Read)?, address(0, Access::Write)?);
            space.check_write(vcpu.page(), to, size)?;
            let value = space.read(vcpu.page(), from, size)?;
            space.write(vcpu.page(), to, size, value)?;
        }
        Kind::Store => {
            let to = address(0, Access::Write)?;
            let value = vcpu.page().gpr[gpr::RAX];
            space.write(vcpu.page(), to, size, value)?;
        }
        Kind::Load => {
            let from = address(1, Access::Read)?;
            let value = space.read(vcpu.page(), from, size)?;
            Gpr::new(gpr::RAX, size).write(vcpu, value);
        }
        Kind::In => {
            let to = address(0, Access::Write)?;
            space.check_write(vcpu.page(), to, size)?;
            let value = space.devices.read_port(port(vcpu.page()), size as u8);
            space.write(vcpu.page(), to, size, value.into())?;
        }
        Kind::Out => {
            let from = address(1, Access::Read)?;
            let value = space.read(vcpu.page(), from, size)?;
            space.devices.write_port(port(vcpu.page()), size as u8, value as u32);
        }
    }
    let step = if vcpu.page().rflags & RFLAGS_DF == 0 { size as u64 } else { (size as u64).wrapping_neg() };
    for index in 0..instruction.op_count() {
        if let Some(register) = pointer(instruction.op_kind(index)) {
            let next = register.read(vcpu).wrapping_add(step);
            register.write(vcpu, next);
        }
    }
    Ok(())
}

fn port(page: &VcpuPage) -> u16 {
    page.gpr[gpr::RDX] as u16
}

/// The register that an operand of a string instruction walks with.
pub(super) fn pointer(kind: OpKind) -> Option<Gpr> {
    Some(match kind {
        OpKind::MemorySegSI => Gpr::new(gpr::RSI, 2),
        OpKind::MemorySegESI => Gpr::new(gpr::RSI, 4),
        OpKind::MemorySegRSI => Gpr::new(gpr::RSI, 8),
        OpKind::MemoryESDI => Gpr::new(gpr::RDI, 2),
        OpKind::MemoryESEDI => Gpr::new(gpr::RDI, 4),
        OpKind::MemoryESRDI => Gpr::new(gpr::RDI, 8),
        _ => return None,
    })
}

/// The counter of REP is as wide as addresses are.
fn counter(instruction: &Instruction) -> Gpr {
    let width = (0..instruction.op_count()).find_map(|index| pointer(instruction.op_kind(index)));
    Gpr::new(gpr::RCX, width.map_or(8, Gpr::size))
}
