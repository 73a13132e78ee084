//! General-purpose registers and their parts, as instructions name them.

use iced_x86::Register;

use super::alu::truncate;
use crate::vcpu::{Vcpu, write_gpr};

/// A general-purpose register, or a part of one. Its users have [`crate::vcpu::MODE`] in the vCPU's page, and RSP with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gpr {
    /// The hardware's number, 0 to 15.
    number: u8,
    /// Bytes: 1, 2, 4 or 8.
    size: u8,
    /// Its lowest bit: 8 for AH, CH, DH and BH.
    shift: u8,
}

impl Gpr {
    /// The low `size` bytes (1, 2, 4 or 8) of the register with this number in [`hypercall_abi::vcpu::gpr`].
    pub(super) const fn new(number: usize, size: usize) -> Gpr {
        Gpr { number: number as u8, size: size as u8, shift: 0 }
    }

    /// `None` for registers of other kinds.
    pub(super) fn of(register: Register) -> Option<Gpr> {
        let is_high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        register.is_gpr().then(|| Gpr {
            number: register.full_register().number() as u8,
            size: register.size() as u8,
            shift: if is_high { 8 } else { 0 },
        })
    }

    pub(super) fn number(self) -> u8 {
        self.number
    }

    pub(super) fn size(self) -> usize {
        self.size.into()
    }

    /// The value in the low bytes; those above are anything.
    pub(super) fn read_wide(self, vcpu: &mut impl Vcpu) -> u64 {
        vcpu.page().gpr[usize::from(self.number & 15)] >> self.shift
    }

    pub(super) fn read(self, vcpu: &mut impl Vcpu) -> u64 {
        truncate(self.read_wide(vcpu), self.size())
    }

    /// Writes as instructions do: 32-bit results clear the upper half, smaller ones leave the rest.
    pub(super) fn write(self, vcpu: &mut impl Vcpu, value: u64) {
        let new = match self.size {
            8 => value,
            4 => value & 0xffff_ffff,
            size => {
                let mask = if size == 2 { 0xffff } else { 0xff } << self.shift;
                let old = vcpu.page().gpr[usize::from(self.number & 15)];
                old & !mask | value << self.shift & mask
            }
        };
        write_gpr(vcpu, self.number, new);
    }
}
