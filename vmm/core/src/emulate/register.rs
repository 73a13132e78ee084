//! General-purpose registers and their parts, as instructions name them.

use hypercall_abi::vcpu::VcpuPage;
use hypercall_abi::vcpu::gpr::RSP;
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

    /// The register with this number in an instruction of 64-bit code. Without a REX prefix, bytes 4 to 7 are AH, CH, DH and BH.
    pub(super) fn named(number: usize, size: usize, has_rex: bool) -> Gpr {
        let is_high = size == 1 && !has_rex && (4..8).contains(&number);
        Gpr {
            shift: if is_high { 8 } else { 0 },
            ..Gpr::new(if is_high { number - 4 } else { number }, size)
        }
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

    /// The lowest bit of the whole register that is in it: 0 or 8.
    pub(super) fn shift(self) -> u8 {
        self.shift
    }

    pub(super) fn size(self) -> usize {
        self.size.into()
    }

    /// The value in the low bytes; those above are anything.
    pub(super) fn read_wide(self, vcpu: &mut impl Vcpu) -> u64 {
        self.of_page(vcpu.page())
    }

    /// As [`Self::read_wide`].
    pub(super) fn of_page(self, page: &VcpuPage) -> u64 {
        page.gpr[usize::from(self.number & 15)] >> self.shift
    }

    /// Whether it is RSP or a part of it, which need not be in the page.
    pub(super) fn is_stack_pointer(self) -> bool {
        usize::from(self.number) == RSP
    }

    pub(super) fn read(self, vcpu: &mut impl Vcpu) -> u64 {
        truncate(self.read_wide(vcpu), self.size())
    }

    /// Writes as instructions do: 32-bit results clear the upper half, smaller ones leave the rest.
    pub(super) fn write(self, vcpu: &mut impl Vcpu, value: u64) {
        let new = self.merge(vcpu.page(), value);
        write_gpr(vcpu, self.number, new);
    }

    fn merge(self, page: &VcpuPage, value: u64) -> u64 {
        let old = page.gpr[usize::from(self.number & 15)];
        old & self.kept() | truncate(value, self.size()) << self.shift
    }

    /// The bits of the whole register that a write leaves.
    pub(super) fn kept(self) -> u64 {
        match self.size {
            4 | 8 => 0,
            size => !(truncate(u64::MAX, size.into()) << self.shift),
        }
    }
}
