//! The vCPU's registers in gdb's order, which `target.xml` describes to it.

use core::num::NonZeroUsize;
use gdbstub::arch::{self, Arch};
use hypercall_abi::vcpu::{CS, DS, ES, FS, GS, Groups, SS, VcpuPage, gpr};

use crate::vcpu::{self, Vcpu};

/// gdb's order of the general-purpose registers.
const GPRS: [usize; 16] = [
    gpr::RAX,
    gpr::RBX,
    gpr::RCX,
    gpr::RDX,
    gpr::RSI,
    gpr::RDI,
    gpr::RBP,
    gpr::RSP,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
];
/// gdb's order of the segment registers.
const SEGMENTS: [usize; 6] = [CS, SS, DS, ES, FS, GS];
/// Registers in all.
const COUNT: usize = 48;
const RIP: usize = 16;

/// A guest of the x86-64 architecture, whatever mode it is in.
#[derive(Debug)]
pub(crate) enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = Register;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// A register by gdb's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(usize);

impl arch::RegId for Register {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = Register(id);
        let size = NonZeroUsize::new(register.bytes());
        (id < COUNT).then_some((register, size))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

impl Register {
    /// Its size.
    const fn bytes(self) -> usize {
        match self.0 {
            // EFLAGS and the selectors; what the x87 says about itself.
            17..=23 | 32..=39 => 4,
            24..=31 => 10,
            _ => 8,
        }
    }

    /// Where the page has it and in which group. The FPU's registers are the kernel's: the page has none of them.
    fn place(self, page: &mut VcpuPage) -> Option<(&mut u64, Groups)> {
        Some(match self.0 {
            number @ 0..RIP => {
                let index = GPRS[number];
                let group = if index == gpr::RSP { Groups::CS_SS } else { Groups::empty() };
                (&mut page.gpr[index], group)
            }
            RIP => (&mut page.rip, Groups::RIP),
            17 => (&mut page.rflags, Groups::RIP),
            40 => (&mut page.segments[FS].base, Groups::DATA_SEGMENTS),
            41 => (&mut page.segments[GS].base, Groups::DATA_SEGMENTS),
            42 => (&mut page.kernel_gs_base, Groups::SYSCALL),
            43 => (&mut page.cr0, Groups::CONTROL),
            44 => (&mut page.cr2, Groups::empty()),
            45 => (&mut page.cr3, Groups::CONTROL),
            46 => (&mut page.cr4, Groups::CONTROL),
            47 => (&mut page.efer, Groups::CONTROL),
            _ => return None,
        })
    }

    /// Its value, if a debugger can have it.
    pub(super) fn read(self, vcpu: &mut impl Vcpu) -> Option<u64> {
        if let 18..=23 = self.0 {
            let page = vcpu.state(Groups::CS_SS | Groups::DATA_SEGMENTS);
            return Some(page.segments[SEGMENTS[self.0 - 18]].selector.into());
        }
        let (_, group) = self.place(vcpu.page())?;
        self.place(vcpu.state(group)).map(|(value, _)| *value)
    }

    /// Changes it. A selector cannot be changed, since the segment behind it would not follow.
    pub(super) fn write(self, vcpu: &mut impl Vcpu, value: u64) -> Result<(), ()> {
        if self.read(vcpu) == Some(value) {
            return Ok(());
        }
        let page = vcpu.page();
        let (place, group) = self.place(page).ok_or(())?;
        *place = value;
        page.dirty |= group.bits();
        if self.0 == RIP {
            page.activity = hypercall_abi::vcpu::ACTIVITY_ACTIVE;
        }
        Ok(())
    }
}

/// All registers; none for those that a debugger cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers([Option<u64>; COUNT]);

impl Default for Registers {
    fn default() -> Self {
        Registers([None; COUNT])
    }
}

impl Registers {
    /// Reads all of a vCPU.
    pub(super) fn read(&mut self, vcpu: &mut impl Vcpu) {
        // One question to the kernel instead of one for each group.
        vcpu.require(vcpu::MODE | Groups::DATA_SEGMENTS | Groups::SYSCALL);
        for (number, value) in self.0.iter_mut().enumerate() {
            *value = Register(number).read(vcpu);
        }
    }

    /// Writes those that differ.
    pub(super) fn write(&self, vcpu: &mut impl Vcpu) -> Result<(), ()> {
        for (number, value) in self.0.iter().enumerate() {
            if let Some(value) = value {
                Register(number).write(vcpu, *value)?;
            }
        }
        Ok(())
    }
}

impl arch::Registers for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0[RIP].unwrap_or(0)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for (number, value) in self.0.iter().enumerate() {
            let bytes = value.map(u64::to_le_bytes);
            for index in 0..Register(number).bytes() {
                write_byte(bytes.and_then(|bytes| bytes.get(index).copied()));
            }
        }
    }

    fn gdb_deserialize(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        for (number, value) in self.0.iter_mut().enumerate() {
            let register = Register(number);
            let (own, rest) = bytes.split_at_checked(register.bytes()).ok_or(())?;
            // What gdb was told it cannot have it gives back as zeroes.
            *value = if matches!(number, 24..40) { None } else { Some(little_endian(own)) };
            bytes = rest;
        }
        Ok(())
    }
}

/// The value of at most 8 bytes.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().take(8).rev();
    bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
}
