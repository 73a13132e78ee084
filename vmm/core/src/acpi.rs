//! The ACPI tables of the board `reduced`: hardware-reduced ACPI (ACPI 6.5, 4.1), which has no PIC, PIT or SCI.

use acpi_tables::Aml;
use acpi_tables::aml::{self, Path};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use vdev::acpi_pm::{PM_TIMER_PORT, RESET_VALUE, S5_SLEEP_TYPE, SLEEP_PORT};
use vdev::virtio::mmio::MMIO_BYTES;

use crate::layout;

const OEM_ID: [u8; 6] = *b"NACRE ";
const OEM_TABLE_ID: [u8; 8] = *b"REDUCED ";
const OEM_REVISION: u32 = 1;
const DSDT_REVISION: u8 = 2;
const TABLE_ALIGNMENT: u64 = 64;
const RSDP_SIZE: u64 = 36;

/// FADT IAPC_BOOT_ARCH: there is no VGA to probe. Bit 1 (8042) stays clear: that device only resets.
const NO_VGA: u16 = 1 << 2;
/// Id of the only I/O APIC.
const IO_APIC_ID: u8 = 0;

/// A 16550 of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Its path in the ACPI namespace.
    pub path: &'static str,
    /// First of its eight ports.
    pub port: u16,
    /// Its input of the I/O APIC.
    pub gsi: u8,
}

/// The serial ports, in the order of ttyS0 to ttyS3. Each has an interrupt of its own: none is shared as on a PC.
pub const SERIAL_PORTS: [SerialPort; 4] = [
    SerialPort { path: "\\_SB_.COM1", port: 0x3f8, gsi: 4 },
    SerialPort { path: "\\_SB_.COM2", port: 0x2f8, gsi: 3 },
    SerialPort { path: "\\_SB_.COM3", port: 0x3e8, gsi: 5 },
    SerialPort { path: "\\_SB_.COM4", port: 0x2e8, gsi: 6 },
];

/// The tables as one block to be put at [`layout::ACPI_TABLES`], the RSDP first, for CPUs with these APIC ids and for this
/// many virtio devices.
pub fn tables(apic_ids: &[u8], virtio_devices: usize) -> Vec<u8> {
    let mut block = Block { bytes: vec![0; RSDP_SIZE as usize] };
    let dsdt = block.append(&dsdt(virtio_devices));
    let fadt = block.append(&fadt(dsdt));
    let madt = block.append(&madt(apic_ids));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.append(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    for (place, byte) in block.bytes.iter_mut().zip(rsdp) {
        *place = byte;
    }
    block.bytes
}

/// Tables one behind the other.
struct Block {
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table, aligned; returns its physical address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(TABLE_ALIGNMENT);
        self.bytes.resize(offset as usize, 0);
        self.bytes.extend_from_slice(table);
        layout::ACPI_TABLES + offset
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let sleep_register = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, SLEEP_PORT.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::TmrValExt)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.reset_reg = sleep_register;
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = sleep_register;
    fadt.sleep_status_reg = sleep_register;
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk =
        GAS::new(AddressSpace::SystemIo, 32, 0, AccessSize::DwordAccess, PM_TIMER_PORT.into());
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"NACRE\0\0\0").into();
    bytes_of(&fadt.finalize())
}

/// Without PCAT_COMPAT, as there is no PIC, and without source overrides: every GSI is an I/O APIC input.
fn madt(apic_ids: &[u8]) -> Vec<u8> {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for (uid, &apic_id) in apic_ids.iter().enumerate() {
        madt.add_structure(ProcessorLocalApic::new(uid as u8, apic_id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IO_APIC_ID, layout::IO_APIC as u32, 0));
    bytes_of(&madt)
}

fn dsdt(virtio_devices: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for (uid, port) in (1..).zip(&SERIAL_PORTS) {
        append_serial_port(&mut body, port, uid);
    }
    for index in 0..virtio_devices.min(layout::VIRTIO_DEVICES) as u8 {
        append_virtio(&mut body, index);
    }
    let s5 = aml::Package::new(vec![&S5_SLEEP_TYPE]);
    aml::Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

fn append_serial_port(body: &mut Vec<u8>, serial: &SerialPort, uid: u8) {
    let ports = aml::IO::new(serial.port, serial.port, 1, 8);
    let interrupt = aml::Interrupt::new(true, true, false, false, serial.gsi.into());
    aml::Device::new(
        Path::new(serial.path),
        vec![
            &aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501")),
            &aml::Name::new(Path::new("_UID"), &uid),
            &aml::Name::new(Path::new("_CRS"), &aml::ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(body);
}

/// LNRO0005 is what Linux's virtio-mmio driver binds to. The input is edge-triggered: no EOI has to reach the I/O APIC,
/// and the transport makes an edge for every reason that the driver has not seen.
fn append_virtio(body: &mut Vec<u8>, index: u8) {
    let base = layout::VIRTIO + u64::from(index) * MMIO_BYTES;
    let registers = aml::Memory32Fixed::new(true, base as u32, MMIO_BYTES as u32);
    let interrupt = aml::Interrupt::new(true, true, false, false, u32::from(layout::VIRTIO_GSI + index));
    aml::Device::new(
        Path::new(&format!("\\_SB_.VIO{index}")),
        vec![
            &aml::Name::new(Path::new("_HID"), &"LNRO0005"),
            &aml::Name::new(Path::new("_UID"), &index),
            // Device accesses are coherent: Linux needs to know before it lets a device use memory.
            &aml::Name::new(Path::new("_CCA"), &aml::ONE),
            &aml::Name::new(Path::new("_CRS"), &aml::ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
    .to_aml_bytes(body);
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::process::Command;
    use std::string::String;

    fn word(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn at(block: &[u8], address: u64) -> &[u8] {
        let table = &block[(address - layout::ACPI_TABLES) as usize..];
        &table[..u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize]
    }

    /// The tables that a guest finds from the RSDP on: XSDT, FADT, MADT, DSDT.
    fn found(block: &[u8]) -> [&[u8]; 4] {
        let xsdt = at(block, word(block, 24));
        let fadt = at(block, word(xsdt, 36));
        [xsdt, fadt, at(block, word(xsdt, 44)), at(block, word(fadt, 140))]
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_and_sums_to_zero() {
        let block = tables(&[0], 2);
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!(block[..36].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        for (table, signature) in found(&block).into_iter().zip([b"XSDT", b"FACP", b"APIC", b"DSDT"]) {
            assert_eq!(&table[..4], signature);
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
    }

    #[test]
    fn the_tables_fit_where_the_layout_puts_them() {
        let ids: Vec<u8> = (0..=254).collect();
        assert!(
            (tables(&ids, layout::VIRTIO_DEVICES).len() as u64)
                < layout::ACPI_TABLES_END - layout::ACPI_TABLES
        );
    }

    #[test]
    fn iasl_understands_every_table() {
        if Command::new("iasl").arg("-v").output().is_err() {
            return;
        }
        let dir = std::env::temp_dir().join(std::format!("vmm-core-acpi-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut sources = [const { String::new() }; 4];
        for (table, source) in found(&tables(&[0], 2)).into_iter().zip(&mut sources) {
            let file = dir.join(std::str::from_utf8(&table[..4]).unwrap());
            std::fs::write(&file, table).unwrap();
            let disassembly = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
            assert!(disassembly.status.success());
            *source = std::fs::read_to_string(file.with_extension("dsl")).unwrap();
            assert!(!source.contains("Incorrect checksum"), "{source}");
        }
        let compiled = Command::new("iasl").arg(dir.join("DSDT.dsl")).output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stdout));
        std::fs::remove_dir_all(&dir).unwrap();
        let [_, fadt, madt, dsdt] = sources;
        assert!(fadt.contains("Hardware Reduced (V5) : 1"), "{fadt}");
        assert!(fadt.contains("Reset Register Supported (V2) : 1"), "{fadt}");
        assert!(madt.contains("PC-AT Compatibility : 0"), "{madt}");
        assert!(dsdt.contains("Device (\\_SB.COM4)") && dsdt.contains("Name (_S5"), "{dsdt}");
        assert_eq!(dsdt.matches("\"LNRO0005\"").count(), 2, "{dsdt}");
        assert!(dsdt.contains("0xD0001000,         // Address Base"), "{dsdt}");
    }
}
