//! ELF kernels with the PVH note (Xen docs/misc/pvh.pandoc, include/public/arch-x86/hvm/start_info.h).

use alloc::vec::Vec;
use hypercall_abi::vcpu::{VcpuPage, gpr};
use vdev::guest_mem::GuestMemory;

use super::elf::Elf;
use super::{BootRequest, LoadError, entry, place};
use crate::image::Image;
use crate::layout;

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
/// Room for the 56 bytes of `hvm_start_info`.
const MODULE_LIST: u64 = layout::START_INFO + 0x40;
/// Room for one `hvm_modlist_entry`, 32 bytes.
const MEMORY_MAP: u64 = layout::START_INFO + 0x80;

/// The 32-bit physical entry, if the kernel has the note.
pub(super) fn find_entry(elf: &Elf, kernel: &dyn Image) -> Result<Option<u64>, LoadError> {
    elf.find_note(kernel, |note| {
        if note.name != b"Xen\0" || note.kind != NOTE_PHYS32_ENTRY {
            return None;
        }
        let entry = note.description.first_chunk::<4>()?;
        Some(u64::from(u32::from_le_bytes(*entry)))
    })
}

/// Loads the kernel's segments, and the initrd as the only module; enters in 32-bit mode with EBX on the start info.
pub(super) fn load(
    request: &BootRequest<'_>,
    elf: &Elf,
    entry: u64,
    memory: &mut dyn GuestMemory,
    page: &mut VcpuPage,
) -> Result<(), LoadError> {
    let kernel_end = elf.load(request, memory)?;
    let initrd = place::place_initrd(request, memory, kernel_end, layout::DEVICE_HOLE)?;
    place::write_command_line(request, memory, u64::MAX)?;

    let map = request.layout.memory_map();
    let mut info = Vec::new();
    info.extend(START_INFO_MAGIC.to_le_bytes());
    info.extend(START_INFO_VERSION.to_le_bytes());
    info.extend(0u32.to_le_bytes());
    info.extend(u32::from(initrd.is_some()).to_le_bytes());
    let module_list = if initrd.is_some() { MODULE_LIST } else { 0 };
    for address in [module_list, layout::COMMAND_LINE, layout::ACPI_TABLES, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    place::write(memory, layout::START_INFO, &info)?;

    if let Some(initrd) = initrd {
        // No command line, and a reserved word.
        let entry: Vec<u8> =
            [initrd.address, initrd.size, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
        place::write(memory, MODULE_LIST, &entry)?;
    }
    let mut entries = Vec::new();
    for range in &map {
        entries.extend(range.base.to_le_bytes());
        entries.extend(range.size.to_le_bytes());
        entries.extend(range.kind().to_le_bytes());
        entries.extend(0u32.to_le_bytes());
    }
    place::write(memory, MEMORY_MAP, &entries)?;

    entry::protected_mode(memory, page, entry)?;
    page.gpr[gpr::RBX] = layout::START_INFO;
    Ok(())
}
