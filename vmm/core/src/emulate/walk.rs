//! The guest's own address translation, in software (SDM 3A chapter 4).

use hypercall_abi::vcpu::VcpuPage;
use vdev::guest_mem::GuestMemory;

use crate::fault::Fault;
use crate::vcpu::{
    CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE, RFLAGS_AC, privilege_level,
};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// PAE paging: bits 52 to 62.
const PAE_RESERVED: u64 = 0x7ff << 52;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ERROR_PRESENT: u32 = 1 << 0;
const ERROR_WRITE: u32 = 1 << 1;
const ERROR_USER: u32 = 1 << 2;
const ERROR_RESERVED: u32 = 1 << 3;
const ERROR_FETCH: u32 = 1 << 4;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Fetches an instruction.
    Fetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Without paging.
    Flat,
    /// Two levels of 32-bit entries.
    Legacy,
    /// Three levels of 64-bit entries.
    Pae,
    /// Four levels.
    Long,
}

/// The registers that say how linear addresses are translated.
#[derive(Clone, Copy, Debug)]
struct Control {
    cr0: u64,
    cr3: u64,
    cr4: u64,
}

impl Control {
    fn of(page: &VcpuPage) -> Self {
        Control { cr0: page.cr0, cr3: page.cr3, cr4: page.cr4 }
    }
}

/// How a vCPU translates linear addresses.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    mode: Mode,
    control: Control,
    is_user: bool,
    no_execute: bool,
    /// Bits that no entry of this mode may have, at any level.
    reserved: u64,
    /// SMAP is suspended by EFLAGS.AC.
    is_smap_off: bool,
}

impl Paging {
    /// The translation as of this page, which has the groups [`crate::vcpu::MODE`].
    pub fn of(page: &VcpuPage) -> Self {
        let mode = if page.cr0 & CR0_PG == 0 {
            Mode::Flat
        } else if page.efer & EFER_LMA != 0 {
            Mode::Long
        } else if page.cr4 & CR4_PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy
        };
        let no_execute = page.efer & EFER_NXE != 0 && mode != Mode::Legacy;
        let without_nx = if no_execute { 0 } else { NO_EXECUTE };
        Paging {
            mode,
            control: Control::of(page),
            is_user: privilege_level(page) == 3,
            no_execute,
            // Bits 52 to 62 are ignored in long mode.
            reserved: if mode == Mode::Pae { PAE_RESERVED } else { 0 } | without_nx,
            is_smap_off: page.rflags & RFLAGS_AC != 0,
        }
    }

    /// The same as [`Self::of`] for one whom no permission binds.
    pub fn for_debugger(page: &VcpuPage) -> Self {
        let control = Control::of(page);
        Paging {
            control: Control {
                cr0: control.cr0 & !CR0_WP,
                cr4: control.cr4 & !(CR4_SMAP | CR4_SMEP),
                ..control
            },
            is_user: false,
            ..Self::of(page)
        }
    }

    /// The physical address for `linear`; sets accessed and dirty flags as the CPU does.
    ///
    /// # Errors
    /// The page fault, or the general-protection fault for an address that is not canonical, that the access raises.
    pub fn translate(
        &self,
        memory: &mut impl GuestMemory,
        linear: u64,
        access: Access,
    ) -> Result<u64, Fault> {
        match self.mode {
            Mode::Flat => Ok(linear & 0xffff_ffff),
            Mode::Legacy => {
                let linear = linear & 0xffff_ffff;
                self.walk::<Entry32>(memory, linear, access, (self.control.cr3 & 0xffff_f000, 2))
            }
            Mode::Pae => {
                let linear = linear & 0xffff_ffff;
                let address = (self.control.cr3 & 0xffff_ffe0) + (linear >> 30) * 8;
                let pointer = Entry64::read(memory, address);
                if pointer & PRESENT == 0 {
                    return Err(self.fault(linear, access, 0));
                }
                self.walk::<Entry64>(memory, linear, access, (pointer & ADDRESS, 2))
            }
            Mode::Long => {
                if (linear as i64) << 16 >> 16 != linear as i64 {
                    return Err(Fault::PROTECTION);
                }
                self.walk::<Entry64>(memory, linear, access, (self.control.cr3 & ADDRESS, 4))
            }
        }
    }

    /// Walks from a table with so many levels down.
    fn walk<E: Entry>(
        &self,
        memory: &mut impl GuestMemory,
        linear: u64,
        access: Access,
        (mut table, levels): (u64, u32),
    ) -> Result<u64, Fault> {
        let mut shift = 12 + (levels - 1) * E::INDEX_BITS;
        // What every entry grants, and what some entry forbids.
        let (mut every, mut some) = (u64::MAX, 0);
        loop {
            let index = linear >> shift & ((1 << E::INDEX_BITS) - 1);
            let address = table + index * E::BYTES;
            let entry = E::read(memory, address);
            if entry & PRESENT == 0 {
                return Err(self.fault(linear, access, 0));
            }
            let is_large =
                shift > 12 && entry & LARGE != 0 && (E::BYTES == 8 || self.control.cr4 & CR4_PSE != 0);
            if self.is_reserved(entry, is_large, shift) {
                return Err(self.fault(linear, access, ERROR_PRESENT | ERROR_RESERVED));
            }
            every &= entry;
            some |= entry;
            if is_large || shift == 12 {
                self.check(linear, access, every, some & NO_EXECUTE == 0)?;
                let dirty = if access == Access::Write { DIRTY } else { 0 };
                set_flags(memory, address, entry, ACCESSED | dirty);
                let offset_mask = (1u64 << shift) - 1;
                return Ok(E::frame(entry, is_large) & !offset_mask | linear & offset_mask);
            }
            set_flags(memory, address, entry, ACCESSED);
            table = entry & E::TABLE;
            shift -= E::INDEX_BITS;
        }
    }

    fn check(&self, linear: u64, access: Access, allowed: u64, is_executable: bool) -> Result<(), Fault> {
        let is_user_page = allowed & USER != 0;
        let is_writable = allowed & WRITABLE != 0;
        let is_allowed = match access {
            _ if self.is_user && !is_user_page => false,
            Access::Fetch if self.no_execute && !is_executable => false,
            Access::Fetch => self.is_user || !is_user_page || self.control.cr4 & CR4_SMEP == 0,
            _ if !self.is_user && is_user_page && self.control.cr4 & CR4_SMAP != 0 && !self.is_smap_off => {
                false
            }
            Access::Write => is_writable || !self.is_user && self.control.cr0 & CR0_WP == 0,
            Access::Read => true,
        };
        if is_allowed { Ok(()) } else { Err(self.fault(linear, access, ERROR_PRESENT)) }
    }

    fn fault(&self, linear: u64, access: Access, cause: u32) -> Fault {
        let mut code = cause;
        if self.is_user {
            code |= ERROR_USER;
        }
        match access {
            Access::Read => {}
            Access::Write => code |= ERROR_WRITE,
            Access::Fetch if self.no_execute || self.control.cr4 & CR4_SMEP != 0 => code |= ERROR_FETCH,
            Access::Fetch => {}
        }
        Fault::page(code, linear)
    }

    /// Reserved bits of a present entry (SDM 3A 4.3 to 4.5), without address bits that this CPU may lack: those name no RAM.
    fn is_reserved(&self, entry: u64, is_large: bool, shift: u32) -> bool {
        if self.mode == Mode::Legacy {
            return is_large && entry & 1 << 21 != 0;
        }
        // 1 GiB pages are the largest.
        let low = if shift == 39 { u64::MAX } else { ((1 << shift) - 1) & !0x1fff };
        // All ones are what a table outside RAM reads as: address bits beyond every CPU's are set.
        entry == u64::MAX || entry & self.reserved != 0 || is_large && entry & low != 0
    }
}

/// An entry of a page table.
trait Entry {
    const BYTES: u64;
    const INDEX_BITS: u32;
    /// Bits that are the address of the next table.
    const TABLE: u64;

    /// A table outside RAM reads as ones, like everything where nothing answers; its reserved bits fault.
    fn read(memory: &impl GuestMemory, address: u64) -> u64;

    /// The physical address in a leaf.
    fn frame(entry: u64, is_large: bool) -> u64;
}

/// Paging without PAE.
struct Entry32;

impl Entry for Entry32 {
    const BYTES: u64 = 4;
    const INDEX_BITS: u32 = 10;
    const TABLE: u64 = 0xffff_f000;

    fn read(memory: &impl GuestMemory, address: u64) -> u64 {
        memory.read_u32(address).map_or(u64::MAX, u64::from)
    }

    /// 4 MiB pages have address bits 32 to 39 in bits 13 to 20 (PSE-36).
    fn frame(entry: u64, is_large: bool) -> u64 {
        if is_large { entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32 } else { entry & Self::TABLE }
    }
}

/// PAE paging and four levels.
struct Entry64;

impl Entry for Entry64 {
    const BYTES: u64 = 8;
    const INDEX_BITS: u32 = 9;
    const TABLE: u64 = ADDRESS;

    fn read(memory: &impl GuestMemory, address: u64) -> u64 {
        memory.read_u64(address).unwrap_or(u64::MAX)
    }

    fn frame(entry: u64, _is_large: bool) -> u64 {
        entry & ADDRESS
    }
}

fn set_flags(memory: &mut impl GuestMemory, address: u64, entry: u64, flags: u64) {
    if entry & flags != flags {
        // The entry was just read from there, so it can be written; flags are in its first byte.
        _ = memory.write_u8(address, (entry | flags) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::{CR0_PE, FakeVcpu};
    use hypercall_abi::vcpu::{CS, SS};
    use vdev::guest_mem::VecMemory;

    /// Maps 0x40_0000 (2 MiB, user, read-only), 0x5000 (4 KiB, supervisor, writable, NX).
    fn long_mode() -> (FakeVcpu, VecMemory) {
        let mut memory = VecMemory::new(0x10_0000);
        for (address, entry) in [
            (0x1000, 0x2007),
            (0x2000, 0x3007),
            (0x3000, 0x4007),
            (0x4028, 0x9_9003 | NO_EXECUTE),
            (0x3010, 0x60_0085),
        ] {
            memory.write_u64(address, entry).unwrap();
        }
        (FakeVcpu::long_mode(0, 0x1000), memory)
    }

    fn user(vcpu: &mut FakeVcpu) {
        vcpu.page.segments[SS].access |= 3 << 5;
        vcpu.page.segments[CS].access |= 3 << 5;
    }

    #[test]
    fn long_mode_translates_small_and_large_pages() {
        let (vcpu, mut memory) = long_mode();
        let paging = Paging::of(&vcpu.page);
        assert_eq!(paging.translate(&mut memory, 0x5123, Access::Write), Ok(0x9_9123));
        assert_eq!(paging.translate(&mut memory, 0x41_2345, Access::Read), Ok(0x61_2345));
        assert_eq!(memory.read_u64(0x4028).unwrap() & 0x60, 0x60, "accessed and dirty");
        assert_eq!(memory.read_u64(0x3010).unwrap() & 0x60, 0x20, "accessed only");
    }

    #[test]
    fn what_the_tables_forbid_faults_with_the_error_code_of_the_cpu() {
        let (mut vcpu, mut memory) = long_mode();
        let paging = Paging::of(&vcpu.page);
        let mut code = |paging: &Paging, linear, access| {
            paging.translate(&mut memory, linear, access).map_err(|fault| fault.error_code)
        };
        assert_eq!(code(&paging, 0x6000, Access::Read), Err(Some(0)));
        assert_eq!(code(&paging, 0x40_0000, Access::Write), Err(Some(3)));
        assert_eq!(code(&paging, 0x5000, Access::Fetch), Err(Some(0x11)));
        user(&mut vcpu);
        let paging = Paging::of(&vcpu.page);
        assert_eq!(code(&paging, 0x5000, Access::Write), Err(Some(7)));
        assert!(code(&paging, 0x40_0000, Access::Read).is_ok());
    }

    #[test]
    fn smap_and_smep_keep_the_kernel_off_user_pages() {
        let (mut vcpu, mut memory) = long_mode();
        vcpu.page.cr4 |= CR4_SMEP | CR4_SMAP;
        let paging = Paging::of(&vcpu.page);
        assert!(paging.translate(&mut memory, 0x40_0000, Access::Read).is_err());
        assert!(paging.translate(&mut memory, 0x40_0000, Access::Fetch).is_err());
        vcpu.page.rflags |= RFLAGS_AC;
        assert!(Paging::of(&vcpu.page).translate(&mut memory, 0x40_0000, Access::Read).is_ok());
    }

    #[test]
    fn an_address_that_is_not_canonical_is_a_protection_fault() {
        let (vcpu, mut memory) = long_mode();
        let paging = Paging::of(&vcpu.page);
        assert_eq!(paging.translate(&mut memory, 1 << 47, Access::Read), Err(Fault::PROTECTION));
    }

    #[test]
    fn a_table_outside_memory_faults_on_its_reserved_bits() {
        let (mut vcpu, mut memory) = long_mode();
        vcpu.page.cr3 = 0xfec0_0000;
        let fault = Paging::of(&vcpu.page).translate(&mut memory, 0x5000, Access::Read);
        assert_eq!(fault, Err(Fault::page(ERROR_PRESENT | ERROR_RESERVED, 0x5000)));
    }

    #[test]
    fn low_address_bits_of_a_large_page_are_reserved() {
        let (vcpu, mut memory) = long_mode();
        memory.write_u64(0x3010, 0x60_2085).unwrap();
        let paging = Paging::of(&vcpu.page);
        let fault = paging.translate(&mut memory, 0x40_0000, Access::Read);
        assert_eq!(fault, Err(Fault::page(ERROR_PRESENT | ERROR_RESERVED, 0x40_0000)));
        // Bit 12 is PAT's.
        memory.write_u64(0x3010, 0x60_1085).unwrap();
        assert_eq!(paging.translate(&mut memory, 0x40_0000, Access::Read), Ok(0x60_0000));
    }

    #[test]
    fn legacy_and_pae_tables_translate() {
        let mut memory = VecMemory::new(0x10_0000);
        let mut vcpu = FakeVcpu::new();
        vcpu.page.cr0 |= CR0_PE | CR0_PG;
        vcpu.page.cr3 = 0x1000;
        vcpu.page.cr4 = CR4_PSE;
        memory.write_u32(0x1004, 0x2003).unwrap();
        memory.write_u32(0x200c, 0x7003).unwrap();
        memory.write_u32(0x1008, 0x00c0_2083).unwrap();
        let paging = Paging::of(&vcpu.page);
        assert_eq!(paging.translate(&mut memory, 0x40_3010, Access::Write), Ok(0x7010));
        assert_eq!(paging.translate(&mut memory, 0x81_2345, Access::Read), Ok(0x1_00c1_2345));

        vcpu.page.cr4 |= CR4_PAE;
        memory.write_u64(0x1000, 0x3001).unwrap();
        memory.write_u64(0x3008, 0x4003).unwrap();
        memory.write_u64(0x4000, 0x8003).unwrap();
        let paging = Paging::of(&vcpu.page);
        assert_eq!(paging.translate(&mut memory, 0x20_0044, Access::Write), Ok(0x8044));
        assert!(paging.translate(&mut memory, 0xc000_0000, Access::Read).is_err());
    }
}
