//! MOV and its kin between memory and a register, or from an immediate: nearly all accesses to devices.

use iced_x86::{Instruction, Mnemonic, OpKind};
use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::access::LinearSpace;
use super::address::Address;
use super::alu::{sign_extend, truncate};
use super::register::Gpr;
use super::walk::Access;
use crate::fault::Fault;
use crate::vcpu::Vcpu;

/// What moves, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A load into a register that may be wider.
    Load { to: Gpr, is_signed: bool },
    /// A store from a register.
    Store { from: Gpr },
    /// A store of a constant.
    StoreImmediate { value: u64 },
}

/// One such instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) kind: Kind,
    pub(super) address: Address,
    /// Bytes in memory: 1, 2, 4 or 8.
    pub(super) size: u8,
}

impl Transfer {
    /// `size` bytes in memory: 1, 2, 4 or 8.
    pub(super) fn new(kind: Kind, address: Address, size: u8) -> Transfer {
        Transfer { kind, address, size }
    }

    /// `None` for instructions of other kinds.
    pub(super) fn of(instruction: &Instruction) -> Option<Transfer> {
        let is_signed = match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movnti => false,
            Mnemonic::Movsx | Mnemonic::Movsxd => true,
            _ => return None,
        };
        let gpr = |index| Gpr::of(instruction.op_register(index));
        let (kind, memory) = match (instruction.op0_kind(), instruction.op1_kind()) {
            (OpKind::Register, OpKind::Memory) => (Kind::Load { to: gpr(0)?, is_signed }, 1),
            (OpKind::Memory, OpKind::Register) => (Kind::Store { from: gpr(1)? }, 0),
            (OpKind::Memory, _) => (Kind::StoreImmediate { value: instruction.try_immediate(1).ok()? }, 0),
            _ => return None,
        };
        let size = instruction.memory_size().size();
        Some(Transfer {
            kind,
            address: Address::of(instruction, memory)?,
            size: matches!(size, 1 | 2 | 4 | 8).then_some(size as u8)?,
        })
    }

    pub(super) fn execute<M: GuestMemory, D: Devices>(
        &self,
        vcpu: &mut impl Vcpu,
        space: &mut LinearSpace<'_, M, D>,
    ) -> Result<(), Fault> {
        let size = usize::from(self.size);
        let value = match self.kind {
            Kind::Load { to, is_signed } => {
                let linear = self.address.linear(vcpu, size, Access::Read)?;
                let value = match space.reached(vcpu.page(), linear, size, Access::Read) {
                    Some(address) => truncate(space.devices.read_memory(address, self.size), size),
                    None => space.read(vcpu.page(), linear, size)?,
                };
                to.write(vcpu, if is_signed { sign_extend(value, size) } else { value });
                return Ok(());
            }
            Kind::Store { from } => from.read_wide(vcpu),
            Kind::StoreImmediate { value } => value,
        };
        let linear = self.address.linear(vcpu, size, Access::Write)?;
        match space.reached(vcpu.page(), linear, size, Access::Write) {
            Some(address) => space.devices.write_memory(address, self.size, value),
            None => space.write(vcpu.page(), linear, size, value)?,
        }
        Ok(())
    }
}
