//! The static ACPI tables that a kernel needs (ACPI 6.5 section 5.2): MADT, FADT, the HPET's address,
//! and where the IOMMUs are.

use super::fixed::FixedVec;
use super::{PhysRead, iommu, le};
use crate::addr::PhysAddr;
use core::fmt;

/// An I/O APIC (ACPI 6.5 5.2.12.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC id.
    pub id: u8,
    /// Physical address of its registers.
    pub address: u32,
    /// Global system interrupt of its pin 0.
    pub gsi_base: u32,
}

/// An ISA interrupt that does not arrive as firmware numbers would have it (ACPI 6.5 5.2.12.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqOverride {
    /// The ISA interrupt.
    pub irq: u8,
    /// The global system interrupt it arrives as.
    pub gsi: u32,
    /// Active low.
    pub active_low: bool,
    /// Level-triggered.
    pub level: bool,
}

/// The power management timer: counts at 3.579545 MHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// Its I/O port, 32 bits wide.
    pub port: u16,
    /// It counts 32 bits rather than 24.
    pub wide: bool,
}

/// An I/O port that resets the machine, and the value that does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetPort {
    /// The port, 8 bits wide.
    pub port: u16,
    /// What to write.
    pub value: u8,
}

/// What the tables say.
#[derive(Clone, Debug, Default)]
pub struct AcpiInfo {
    /// APIC ids of the CPUs that firmware enabled, in its order.
    pub cpus: FixedVec<u32, 64>,
    /// CPUs that are not there yet but could be plugged in.
    pub offline_cpus: u32,
    /// Physical address of the local APICs.
    pub local_apic: PhysAddr,
    /// The machine has two 8259 as well: mask them.
    pub has_pic: bool,
    /// I/O APICs.
    pub ioapics: FixedVec<IoApic, 8>,
    /// ISA interrupts that are not what they seem.
    pub overrides: FixedVec<IrqOverride, 16>,
    /// The PM timer.
    pub pm_timer: Option<PmTimer>,
    /// How to reset.
    pub reset: Option<ResetPort>,
    /// FADT flags (ACPI 6.5 table 5.10), 0 without a FADT.
    pub fadt_flags: u32,
    /// Physical address of the HPET's registers.
    pub hpet: Option<PhysAddr>,
    /// IOMMUs.
    pub iommus: iommu::Units,
    /// IOMMUs that are not among them: too many, or nonsense.
    pub dropped_iommus: u32,
    /// Tables whose checksum is wrong, and CPUs, I/O APICs and overrides beyond capacity.
    pub dropped: u32,
}

/// Why there is no [`AcpiInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No valid RSDP.
    NoRsdp,
    /// No valid RSDT or XSDT.
    NoRootTable,
    /// No valid MADT: CPUs and interrupt controllers are unknown.
    NoMadt,
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AcpiError::NoRsdp => "no valid RSDP",
            AcpiError::NoRootTable => "no valid RSDT or XSDT",
            AcpiError::NoMadt => "no valid MADT: CPUs and interrupt controllers are unknown",
        })
    }
}

/// Bytes of a table's header (ACPI 6.5 5.2.6).
const HEADER: usize = 36;
/// Signatures of the tables that are read.
const TABLES: [&[u8]; 5] = [b"APIC", b"FACP", b"HPET", b"DMAR", b"IVRS"];
/// No table is larger; a length beyond it is damage.
const MAX_TABLE: usize = 16 << 20;
const FADT_32_BIT_TIMER: u32 = 1 << 8;
const FADT_RESET_REGISTER: u32 = 1 << 10;
/// Address space of a generic address structure: I/O ports.
const SPACE_IO: u8 = 1;

/// Searches for the RSDP where a BIOS puts it: the first KiB of the EBDA, and the BIOS area (ACPI 6.5 5.2.5.1).
pub fn find_rsdp<M: PhysRead>(mem: &M) -> Option<PhysAddr> {
    const EBDA_SEGMENT: PhysAddr = PhysAddr(0x40e);
    let ebda =
        mem.bytes(EBDA_SEGMENT, 2).and_then(|bytes| le::u16(bytes, 0)).map_or(0, |s| u64::from(s) << 4);
    let ebda = if ebda >= 0x400 { ebda..ebda + 1024 } else { 0..0 };
    ebda.step_by(16)
        .chain((0xe_0000..0x10_0000).step_by(16))
        .map(PhysAddr)
        .find(|&at| rsdp(mem, at).is_some())
}

/// Reads the tables from the RSDP at `at`.
pub fn parse<M: PhysRead>(mem: &M, at: PhysAddr) -> Result<AcpiInfo, AcpiError> {
    let (root, entry_size) = root_table(mem, at)?;
    let mut info = AcpiInfo::default();
    let mut has_madt = false;
    for entry in root[HEADER..].chunks_exact(entry_size) {
        let address = if entry_size == 8 { le::u64(entry, 0) } else { le::u32(entry, 0).map(u64::from) };
        let address = PhysAddr(address.unwrap_or(0));
        let Some(signature) = mem.bytes(address, 4).filter(|s| TABLES.contains(s)) else {
            continue;
        };
        let Some(table) = table(mem, address) else {
            info.dropped += 1;
            continue;
        };
        match signature {
            b"APIC" if !has_madt => has_madt = info.madt(table).is_some(),
            b"FACP" => info.fadt(table),
            b"HPET" => info.hpet = le::u64(table, 44).map(PhysAddr),
            b"DMAR" => info.dropped_iommus += iommu::dmar::parse(table, &mut info.iommus),
            b"IVRS" => info.dropped_iommus += iommu::ivrs::parse(table, &mut info.iommus),
            _ => {}
        }
    }
    if has_madt { Ok(info) } else { Err(AcpiError::NoMadt) }
}

/// The RSDT and XSDT addresses of the RSDP at `at`, if it is one (ACPI 6.5 5.2.5.3).
fn rsdp<M: PhysRead>(mem: &M, at: PhysAddr) -> Option<(u32, Option<u64>)> {
    let old = mem.bytes(at, 20)?;
    if !old.starts_with(b"RSD PTR ") || sum(old) != 0 {
        return None;
    }
    let rsdt = le::u32(old, 16)?;
    let extended = || {
        let new = mem.bytes(at, 36)?;
        (sum(new) == 0).then(|| le::u64(new, 24))?
    };
    let xsdt = if old[15] >= 2 { extended().filter(|&address| address != 0) } else { None };
    Some((rsdt, xsdt))
}

/// The XSDT if it is valid, else the RSDT, and the size of its entries.
fn root_table<M: PhysRead>(mem: &M, at: PhysAddr) -> Result<(&[u8], usize), AcpiError> {
    let (rsdt, xsdt) = rsdp(mem, at).ok_or(AcpiError::NoRsdp)?;
    let valid = |address, signature: &[u8]| {
        table(mem, PhysAddr(address)).filter(|table| table.starts_with(signature))
    };
    if let Some(xsdt) = xsdt.and_then(|address| valid(address, b"XSDT")) {
        return Ok((xsdt, 8));
    }
    valid(rsdt.into(), b"RSDT").map(|table| (table, 4)).ok_or(AcpiError::NoRootTable)
}

/// The table at `address`, at least a header long, if its checksum is right.
fn table<M: PhysRead>(mem: &M, address: PhysAddr) -> Option<&[u8]> {
    let len = le::u32(mem.bytes(address, HEADER)?, 4)? as usize;
    if !(HEADER..=MAX_TABLE).contains(&len) {
        return None;
    }
    mem.bytes(address, len).filter(|table| sum(table) == 0)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

impl AcpiInfo {
    /// The MADT (ACPI 6.5 5.2.12); `None` if it is too short.
    fn madt(&mut self, table: &[u8]) -> Option<()> {
        self.local_apic = PhysAddr(le::u32(table, 36)?.into());
        self.has_pic = le::u32(table, 40)? & 1 != 0;
        let mut rest = &table[44..];
        while let [kind, len, ..] = *rest {
            let Some((entry, after)) = rest.split_at_checked(len.into()).filter(|_| len >= 2) else {
                break;
            };
            // An entry that is shorter than its type has it says nothing.
            let _ = self.madt_entry(kind, entry);
            rest = after;
        }
        Some(())
    }

    fn madt_entry(&mut self, kind: u8, entry: &[u8]) -> Option<()> {
        let fits = match kind {
            0 => self.cpu((*entry.get(3)?).into(), le::u32(entry, 4)?),
            1 => self.ioapics.push(IoApic {
                id: *entry.get(2)?,
                address: le::u32(entry, 4)?,
                gsi_base: le::u32(entry, 8)?,
            }),
            2 => {
                let (irq, gsi, flags) = (*entry.get(3)?, le::u32(entry, 4)?, le::u16(entry, 8)?);
                // Polarity in bits 0 and 1, trigger in 2 and 3; 0 means as the ISA bus has it: high, edge.
                let (active_low, level) = (flags & 3 == 3, flags >> 2 & 3 == 3);
                self.overrides.push(IrqOverride { irq, gsi, active_low, level })
            }
            5 => {
                self.local_apic = PhysAddr(le::u64(entry, 4)?);
                true
            }
            9 => self.cpu(le::u32(entry, 4)?, le::u32(entry, 8)?),
            _ => true,
        };
        self.dropped += u32::from(!fits);
        Some(())
    }

    /// Adds a CPU; false if it does not fit. Some firmware lists a CPU both as a local APIC and as an x2APIC.
    fn cpu(&mut self, apic_id: u32, flags: u32) -> bool {
        let (enabled, online_capable) = (flags & 1 != 0, flags & 2 != 0);
        if !enabled {
            self.offline_cpus += u32::from(online_capable);
            return true;
        }
        self.cpus.contains(&apic_id) || self.cpus.push(apic_id)
    }

    /// The FADT (ACPI 6.5 5.2.9). Fields past the end of an older one are absent.
    fn fadt(&mut self, table: &[u8]) {
        let flags = le::u32(table, 112).unwrap_or(0);
        self.fadt_flags = flags;
        let old = le::u32(table, 76).filter(|_| table.get(91) == Some(&4)).map(u64::from);
        let port =
            io_port(table, 208).or(old).and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
        self.pm_timer = port.map(|port| PmTimer { port, wide: flags & FADT_32_BIT_TIMER != 0 });
        if flags & FADT_RESET_REGISTER != 0
            && let Some(port) = io_port(table, 116).and_then(|port| u16::try_from(port).ok())
            && let Some(&value) = table.get(128)
        {
            self.reset = Some(ResetPort { port, value });
        }
    }
}

/// The address in the generic address structure at `at` if it is a port (ACPI 6.5 5.2.3.2).
fn io_port(table: &[u8], at: usize) -> Option<u64> {
    if *table.get(at)? != SPACE_IO {
        return None;
    }
    le::u64(table, at + 4).filter(|&port| port != 0)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::boot::fake::FakePhys;

    const BASE: u64 = 0xe_0000;
    const RSDP: u64 = 0xe_0100;

    fn sealed(mut bytes: Vec<u8>, checksum: usize) -> Vec<u8> {
        bytes[checksum] = 0;
        bytes[checksum] = sum(&bytes).wrapping_neg();
        bytes
    }

    fn acpi_table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = std::vec![0; HEADER];
        bytes.extend(body);
        bytes[..4].copy_from_slice(signature);
        let len = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        sealed(bytes, 9)
    }

    fn madt() -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(0xfee0_0000u32.to_le_bytes());
        body.extend(1u32.to_le_bytes());
        body.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        body.extend([0, 8, 1, 2, 1, 0, 0, 0]);
        body.extend([0, 8, 2, 4, 2, 0, 0, 0]);
        body.extend([9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        body.extend([9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
        body.extend([4, 6, 0xff, 0, 0, 1]);
        body.extend([1, 12, 8, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        body.extend([2, 10, 0, 9, 9, 0, 0, 0, 15, 0]);
        acpi_table(b"APIC", &body)
    }

    fn fadt(len: usize) -> Vec<u8> {
        let mut bytes = std::vec![0; 276];
        bytes[76..80].copy_from_slice(&0xb008u32.to_le_bytes());
        bytes[91] = 4;
        bytes[112..116].copy_from_slice(&(FADT_RESET_REGISTER | FADT_32_BIT_TIMER).to_le_bytes());
        bytes[116] = SPACE_IO;
        bytes[120..124].copy_from_slice(&0xcf9u32.to_le_bytes());
        bytes[128] = 6;
        bytes[208] = SPACE_IO;
        bytes[212..216].copy_from_slice(&0x608u32.to_le_bytes());
        acpi_table(b"FACP", &bytes[HEADER..len])
    }

    /// A machine; with an XSDT in place of the RSDT if `new`.
    fn machine(new: bool) -> FakePhys {
        let mut mem = FakePhys::new(BASE, 0x2_0000);
        let hpet_body = [0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0];
        let tables = [madt(), fadt(if new { 276 } else { 129 }), acpi_table(b"HPET", &hpet_body)];
        let mut root = Vec::new();
        for (i, table) in tables.iter().enumerate() {
            let address = 0xe_2000 + i as u64 * 0x400;
            mem.put(address, table);
            root.extend(&address.to_le_bytes()[..if new { 8 } else { 4 }]);
        }
        mem.put(0xe_1000, &acpi_table(if new { b"XSDT" } else { b"RSDT" }, &root));
        let mut rsdp = b"RSD PTR \0NACRE \0".to_vec();
        rsdp.resize(36, 0);
        if new {
            (rsdp[15], rsdp[20]) = (2, 36);
            rsdp[24..28].copy_from_slice(&0xe_1000u32.to_le_bytes());
        } else {
            rsdp[16..20].copy_from_slice(&0xe_1000u32.to_le_bytes());
        }
        let old = sealed(rsdp[..20].to_vec(), 8);
        rsdp[..20].copy_from_slice(&old);
        mem.put(RSDP, &sealed(rsdp, 32));
        mem
    }

    #[test]
    fn old_and_new_machines_are_understood() {
        for new in [false, true] {
            let mem = machine(new);
            assert_eq!(find_rsdp(&mem), Some(PhysAddr(RSDP)));
            let info = parse(&mem, PhysAddr(RSDP)).unwrap();
            assert_eq!(*info.cpus, [0, 2, 0x100]);
            assert_eq!((info.offline_cpus, info.local_apic, info.has_pic), (1, PhysAddr(0xfee0_0000), true));
            assert_eq!(*info.ioapics, [IoApic { id: 8, address: 0xfec0_0000, gsi_base: 0 }]);
            let timer = IrqOverride { irq: 0, gsi: 2, active_low: false, level: false };
            assert_eq!(
                *info.overrides,
                [timer, IrqOverride { irq: 9, gsi: 9, active_low: true, level: true }]
            );
            let port = if new { 0x608 } else { 0xb008 };
            assert_eq!(info.pm_timer, Some(PmTimer { port, wide: true }));
            assert_eq!(info.reset, Some(ResetPort { port: 0xcf9, value: 6 }));
            assert_eq!((info.hpet, info.dropped), (Some(PhysAddr(0xfed0_0000)), 0));
        }
    }

    #[test]
    fn a_wrong_checksum_makes_a_table_absent() {
        let broken = |at: u64| {
            let mut mem = machine(false);
            mem.memory[(at - BASE) as usize] ^= 0x40;
            mem
        };
        assert_eq!(find_rsdp(&broken(RSDP + 10)), None);
        assert_eq!(parse(&broken(RSDP + 10), PhysAddr(RSDP)).unwrap_err(), AcpiError::NoRsdp);
        assert_eq!(parse(&broken(0xe_1010), PhysAddr(RSDP)).unwrap_err(), AcpiError::NoRootTable);
        assert_eq!(parse(&broken(0xe_2010), PhysAddr(RSDP)).unwrap_err(), AcpiError::NoMadt);
        let info = parse(&broken(0xe_2410), PhysAddr(RSDP)).unwrap();
        assert_eq!((info.pm_timer, info.dropped), (None, 1));
    }

    /// Makes the checksum at `checksum` fit what the `len` bytes from `at` have become.
    fn reseal(mem: &mut FakePhys, at: u64, len: usize, checksum: usize) {
        let start = (at - BASE) as usize;
        let bytes = sealed(mem.memory[start..start + len].to_vec(), checksum);
        mem.put(at, &bytes);
    }

    proptest! {
        #[test]
        fn damaged_tables_never_panic(
            new in any::<bool>(),
            damage in prop::collection::vec((0usize..4, 0usize..300, any::<u8>()), 0..12),
        ) {
            let mut mem = machine(new);
            for (which, at, byte) in damage {
                mem.memory[[0x1000, 0x2000, 0x2400, 0x2800][which] + at] = byte;
            }
            // Right checksums let the damage through to the parsers.
            for at in [0xe_1000, 0xe_2000, 0xe_2400, 0xe_2800] {
                let len = le::u32(mem.bytes(PhysAddr(at), 8).unwrap(), 4).unwrap() as usize;
                reseal(&mut mem, at, len.clamp(HEADER, 0x300), 9);
            }
            let _ = parse(&mem, PhysAddr(RSDP));
        }

        #[test]
        fn any_rsdp_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0u64..0x40) {
            let mut mem = FakePhys::new(0, 0x80);
            mem.put(0, &bytes);
            prop_assert!(parse(&mem, PhysAddr(at)).is_err());
        }
    }
}
