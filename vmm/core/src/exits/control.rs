//! Control and debug registers (SDM 3A 2.5, 3B 18.2).

use alloc::format;
use hypercall_abi::exit::{ControlAccess, ControlOperation, ExitKind};
use hypercall_abi::vcpu::{CS, Groups};
use iced_x86::Mnemonic;
use vdev::guest_mem::GuestMemory;

use super::{Exit, Handled};
use crate::emulate::{control_operand, decode_exiting, gpr_operand, read_operand, write_operand};
use crate::fault::{Fault, Trouble};
use crate::vcpu::{
    ACCESS_LONG, CR0_CD, CR0_ET, CR0_NE, CR0_NW, CR0_PE, CR0_PG, CR0_TS, CR0_WP, CR4_OSXSAVE, CR4_PAE,
    CR4_PCIDE, CR4_PKE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME, MODE, Vcpu, code_bits,
    complete_instruction, read_gpr, write_gpr,
};

/// MP, EM, AM beside those with a name.
const CR0_DEFINED: u64 =
    CR0_PE | 0b110 | CR0_TS | CR0_ET | CR0_NE | CR0_WP | 1 << 18 | CR0_NW | CR0_CD | CR0_PG;
/// What LMSW writes: PE, MP, EM, TS.
const LMSW_BITS: u64 = 0xf;
/// VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT.
const CR4_ALWAYS: u64 = 0x7ff;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
/// Bits of CR4 that come with a feature.
const CR4_BY_FEATURE: [(&str, u64); 7] = [
    ("umip", CR4_UMIP),
    ("fsgsbase", CR4_FSGSBASE),
    ("pcid", CR4_PCIDE),
    ("xsave", CR4_OSXSAVE),
    ("smep", CR4_SMEP),
    ("smap", CR4_SMAP),
    ("pku", CR4_PKE),
];
/// Bits whose change makes PAE paging load its page-directory pointers anew (SDM 3A 4.4.1).
const CR0_LOADS_PDPTE: u64 = CR0_CD | CR0_NW | CR0_PG;
const CR4_LOADS_PDPTE: u64 = CR4_PAE | CR4_PSE | 1 << 7 | CR4_SMEP;
/// MOV to CR3, bit 63 with PCIDs: keep the TLB.
const CR3_NO_FLUSH: u64 = 1 << 63;
/// Reserved bits of a page-directory pointer below the address.
const PDPTE_RESERVED_LOW: u64 = 0x1e6;
/// [`ControlAccess::gpr`]: the hardware does not say.
const NO_GPR: u8 = 0xff;
const DR7_FIXED: u64 = 0x400;
const DR6_FIXED: u64 = 0xffff_0ff0;

impl<V: Vcpu, M: GuestMemory> Exit<'_, V, M> {
    pub(super) fn control_access(&mut self) -> Result<Handled, Trouble> {
        let page = self.vcpu.page();
        let access = ControlAccess::decode(page.exit_info[0]);
        let length = page.exit_length as u8;
        let is_mov = matches!(access.operation, ControlOperation::Read | ControlOperation::Write);
        if length == 0 || is_mov && access.gpr == NO_GPR {
            return self.control_instruction(&access);
        }
        match access.operation {
            ControlOperation::Read => self.move_from_control(access.register, access.gpr)?,
            ControlOperation::Write => self.move_to_control(access.register, access.gpr)?,
            ControlOperation::Clts => self.clear_task_switched()?,
            ControlOperation::Lmsw => self.load_status_word(access.source)?,
        }
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    /// The same where the hardware does not tell everything: CLTS and LMSW may show as writes, SMSW as a read. The register
    /// is the instruction's, too: QEMU 10 reports every one as CR0.
    fn control_instruction(&mut self, access: &ControlAccess) -> Result<Handled, Trouble> {
        use ControlOperation::{Clts, Lmsw, Read, Write};
        let instruction = decode_exiting(self.vcpu, self.memory, self.decoded, ExitKind::ControlAccess)?;
        let gpr = gpr_operand(&instruction);
        let register = control_operand(&instruction).unwrap_or(access.register);
        match (instruction.mnemonic(), access.operation, gpr) {
            (Mnemonic::Mov, Read, Some(gpr)) => self.move_from_control(register, gpr)?,
            (Mnemonic::Mov, Write, Some(gpr)) => self.move_to_control(register, gpr)?,
            (Mnemonic::Clts, Write | Clts, _) => self.clear_task_switched()?,
            (Mnemonic::Lmsw, Write | Lmsw, _) => {
                let source = self.with_devices(|vcpu, memory, devices| {
                    read_operand(vcpu, memory, devices, &instruction)
                })?;
                self.load_status_word(source as u16)?;
            }
            (Mnemonic::Smsw, Read, _) => {
                let cr0 = self.vcpu.state(Groups::CONTROL).cr0;
                self.with_devices(|vcpu, memory, devices| {
                    write_operand(vcpu, memory, devices, &instruction, cr0)
                })?;
            }
            (mnemonic, ..) => {
                return Err(self.unsupported(&format!("a control-register exit on {mnemonic:?}")));
            }
        }
        complete_instruction(self.vcpu, instruction.len() as u8);
        Ok(Handled::Resume)
    }

    fn move_from_control(&mut self, register: u8, gpr: u8) -> Result<(), Fault> {
        let value = self.read_control(register)?;
        write_gpr(self.vcpu, gpr, value);
        Ok(())
    }

    fn move_to_control(&mut self, register: u8, gpr: u8) -> Result<(), Fault> {
        let value = read_gpr(self.vcpu, gpr);
        let is_long = code_bits(self.vcpu.state(MODE)) == 64;
        self.write_control(register, if is_long { value } else { value & 0xffff_ffff })
    }

    fn clear_task_switched(&mut self) -> Result<(), Fault> {
        let cr0 = self.vcpu.state(Groups::CONTROL).cr0;
        self.write_cr0(cr0 & !CR0_TS)
    }

    /// LMSW, which can enter protected mode but not leave it.
    fn load_status_word(&mut self, source: u16) -> Result<(), Fault> {
        let cr0 = self.vcpu.state(Groups::CONTROL).cr0;
        let kept = cr0 & (!LMSW_BITS | CR0_PE);
        self.write_cr0(kept | u64::from(source) & LMSW_BITS)
    }

    fn read_control(&mut self, register: u8) -> Result<u64, Fault> {
        match register {
            0 => Ok(self.vcpu.state(Groups::CONTROL).cr0),
            2 => Ok(self.vcpu.state(Groups::DEBUG).cr2),
            3 => Ok(self.vcpu.state(Groups::CONTROL).cr3),
            4 => Ok(self.vcpu.state(Groups::CONTROL).cr4),
            8 => Ok(self.board.lapic.cr8().into()),
            _ => Err(Fault::UNDEFINED),
        }
    }

    fn write_control(&mut self, register: u8, value: u64) -> Result<(), Fault> {
        match register {
            0 => self.write_cr0(value),
            2 => {
                let page = self.vcpu.state(Groups::DEBUG);
                page.cr2 = value;
                page.dirty |= Groups::DEBUG.bits();
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value <= 0xf => {
                self.board.lapic.set_cr8(value as u8);
                Ok(())
            }
            8 => Err(Fault::PROTECTION),
            _ => Err(Fault::UNDEFINED),
        }
    }

    fn write_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let page = self.vcpu.state(MODE);
        // Reserved bits below 32 are ignored, above they fault.
        let new = value & CR0_DEFINED | CR0_ET;
        let is_pg = new & CR0_PG != 0;
        if value >> 32 != 0 || is_pg && new & CR0_PE == 0 || new & CR0_NW != 0 && new & CR0_CD == 0 {
            return Err(Fault::PROTECTION);
        }
        let old = page.cr0;
        let mut efer = page.efer;
        let is_long_code = page.segments[CS].access & ACCESS_LONG != 0;
        if is_pg && old & CR0_PG == 0 && efer & EFER_LME != 0 {
            if page.cr4 & CR4_PAE == 0 || is_long_code {
                return Err(Fault::PROTECTION);
            }
            efer |= EFER_LMA;
        } else if !is_pg && old & CR0_PG != 0 {
            if page.cr4 & CR4_PCIDE != 0 || efer & EFER_LMA != 0 && is_long_code {
                return Err(Fault::PROTECTION);
            }
            efer &= !EFER_LMA;
        }
        let (cr3, cr4) = (page.cr3, page.cr4);
        let is_pae = is_pg && cr4 & CR4_PAE != 0 && efer & EFER_LMA == 0;
        if is_pae && (old ^ new) & CR0_LOADS_PDPTE != 0 {
            self.load_pdptes(cr3)?;
        }
        let page = self.vcpu.page();
        (page.cr0, page.efer) = (new, efer);
        page.dirty |= Groups::CONTROL.bits();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Fault> {
        let page = self.vcpu.state(MODE);
        let mut value = value;
        if page.efer & EFER_LMA != 0 {
            if page.cr4 & CR4_PCIDE != 0 {
                value &= !CR3_NO_FLUSH;
            }
            if value >> self.cpu.physical_bits().clamp(32, 52) != 0 {
                return Err(Fault::PROTECTION);
            }
        } else if page.cr0 & CR0_PG != 0 && page.cr4 & CR4_PAE != 0 {
            self.load_pdptes(value)?;
        }
        let page = self.vcpu.page();
        page.cr3 = value;
        page.dirty |= Groups::CONTROL.bits();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Fault> {
        let features = self.cpu.features();
        let allowed = CR4_BY_FEATURE
            .iter()
            .filter(|(name, _)| features.has(name))
            .fold(CR4_ALWAYS, |allowed, (_, bit)| allowed | bit);
        let page = self.vcpu.state(MODE);
        let (old, is_long) = (page.cr4, page.efer & EFER_LMA != 0);
        let enables_pcid = value & !old & CR4_PCIDE != 0;
        if value & !allowed != 0
            || is_long && value & CR4_PAE == 0
            || enables_pcid && (!is_long || page.cr3 & 0xfff != 0)
        {
            return Err(Fault::PROTECTION);
        }
        let (cr0, cr3) = (page.cr0, page.cr3);
        let is_pae = cr0 & CR0_PG != 0 && value & CR4_PAE != 0 && !is_long;
        if is_pae && (old ^ value) & CR4_LOADS_PDPTE != 0 {
            self.load_pdptes(cr3)?;
        }
        let page = self.vcpu.page();
        page.cr4 = value;
        page.dirty |= Groups::CONTROL.bits();
        Ok(())
    }

    /// Loads the page-directory pointers of PAE paging; reserved bits in one that is present fault.
    fn load_pdptes(&mut self, cr3: u64) -> Result<(), Fault> {
        let reserved = u64::MAX << self.cpu.physical_bits().clamp(32, 52) | PDPTE_RESERVED_LOW;
        let mut entries = [0; 4];
        for (index, entry) in entries.iter_mut().enumerate() {
            let address = (cr3 & 0xffff_ffe0) + index as u64 * 8;
            *entry = self.memory.read_u64(address).unwrap_or(u64::MAX);
            if *entry & 1 != 0 && *entry & reserved != 0 {
                return Err(Fault::PROTECTION);
            }
        }
        self.vcpu.page().pdpte = entries;
        Ok(())
    }

    pub(super) fn debug_access(&mut self) -> Result<Handled, Trouble> {
        const CR4_DE: u64 = 1 << 3;
        let access = ControlAccess::decode(self.vcpu.page().exit_info[0]);
        let instruction = decode_exiting(self.vcpu, self.memory, self.decoded, ExitKind::DebugAccess)?;
        let gpr = gpr_operand(&instruction).unwrap_or(0);
        let page = self.vcpu.state(MODE | Groups::DEBUG);
        let register = match access.register & 7 {
            4 | 5 if page.cr4 & CR4_DE != 0 => return Err(Fault::UNDEFINED.into()),
            // DR4 and DR5 are old names of DR6 and DR7.
            register @ (4 | 5) => register + 2,
            register => register,
        };
        if access.operation == ControlOperation::Read {
            let value = match register {
                6 => page.dr6,
                7 => page.dr7,
                index => page.dr[usize::from(index)],
            };
            write_gpr(self.vcpu, gpr, value);
        } else {
            let is_long = code_bits(page) == 64;
            let value = read_gpr(self.vcpu, gpr);
            let value = if is_long { value } else { value & 0xffff_ffff };
            if register >= 6 && value >> 32 != 0 {
                return Err(Fault::PROTECTION.into());
            }
            let page = self.vcpu.page();
            match register {
                6 => page.dr6 = value & 0xe00f | DR6_FIXED,
                7 => page.dr7 = value & 0xffff_2bff | DR7_FIXED,
                index => page.dr[usize::from(index)] = value,
            }
            page.dirty |= Groups::DEBUG.bits();
        }
        complete_instruction(self.vcpu, instruction.len() as u8);
        Ok(Handled::Resume)
    }
}
