//! Multiboot 1 kernels (Multiboot Specification 0.6.96): ELF32, or any format with the header's address fields.
//!
//! The command line is what the manifest says, without the kernel's name before it, as from GRUB 2.

use alloc::vec::Vec;
use hypercall_abi::vcpu::{VcpuPage, gpr};
use vdev::guest_mem::GuestMemory;

use super::elf::Elf;
use super::place::{self, Piece, Placed};
use super::{BootRequest, LoadError, entry};
use crate::image::Image;
use crate::layout;

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header is in this much of the file's start.
const SEARCH_BYTES: u64 = 8192;
/// Flag bits 0 to 15 are demands. Page-aligned modules (0) and memory information (1) we fulfil; the video mode (2)
/// is a wish, and the guest is told that there is no video.
const DEMANDS: u32 = 0xffff;
const UNDERSTOOD: u32 = 0x7;
const HAS_ADDRESSES: u32 = 1 << 16;

/// Which fields of the information structure are valid: memory sizes, command line, modules, memory map, loader name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const INFO_SIZE: u64 = 116;
const LOADER_NAME: &str = "Nacre";
const LOW_KIB: u32 = (layout::LOW_RAM_END >> 10) as u32;

/// A kernel's Multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset in the file.
    offset: u64,
    flags: u32,
    /// header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr: meaningful with [`HAS_ADDRESSES`].
    addresses: [u32; 5],
}

impl Header {
    /// Looks for a header with a correct checksum.
    pub fn find(image: &dyn Image) -> Option<Header> {
        let mut bytes = alloc::vec![0; image.len().min(SEARCH_BYTES) as usize];
        if !image.read(0, &mut bytes) {
            return None;
        }
        let word =
            |offset: usize| bytes.get(offset..offset + 4)?.first_chunk().copied().map(u32::from_le_bytes);
        (0..bytes.len()).step_by(4).find_map(|offset| {
            let (magic, flags, checksum) = (word(offset)?, word(offset + 4)?, word(offset + 8)?);
            if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
                return None;
            }
            let mut addresses = [0; 5];
            if flags & HAS_ADDRESSES != 0 {
                for (index, address) in addresses.iter_mut().enumerate() {
                    *address = word(offset + 12 + 4 * index)?;
                }
            }
            Some(Header { offset: offset as u64, flags, addresses })
        })
    }
}

/// Loads the kernel and, behind it, its modules; enters in 32-bit mode with EBX on the information structure.
pub(super) fn load(
    request: &BootRequest<'_>,
    header: &Header,
    elf: Option<&Elf>,
    memory: &mut dyn GuestMemory,
    page: &mut VcpuPage,
) -> Result<(), LoadError> {
    if header.flags & DEMANDS & !UNDERSTOOD != 0 {
        return Err(LoadError::Damaged { what: "the set of Multiboot demands", value: header.flags.into() });
    }
    let (entry, kernel_end) = if header.flags & HAS_ADDRESSES != 0 {
        load_by_addresses(request, header, memory)?
    } else {
        match elf {
            Some(elf) if !elf.is_64 => (elf.entry, elf.load(request, memory)?),
            Some(_) => {
                return Err(LoadError::Unsupported {
                    what: "is a Multiboot kernel in ELF64 without address fields",
                    advice: "convert it with objcopy -O elf32-i386, or set bit 16 of its Multiboot flags",
                });
            }
            None => {
                return Err(LoadError::Unsupported {
                    what: "is a Multiboot kernel that is not ELF and has no address fields",
                    advice: "set bit 16 of its Multiboot flags",
                });
            }
        }
    };
    let modules = place::place_modules(request, memory, kernel_end)?;
    write_info(request, &modules, memory)?;
    entry::protected_mode(memory, page, entry)?;
    page.gpr[gpr::RAX] = LOADER_MAGIC;
    page.gpr[gpr::RBX] = layout::MULTIBOOT_INFO;
    Ok(())
}

/// Loads by the header's address fields (section 3.1.3); returns entry and end.
fn load_by_addresses(
    request: &BootRequest<'_>,
    header: &Header,
    memory: &mut dyn GuestMemory,
) -> Result<(u64, u64), LoadError> {
    let [header_address, load, load_end, bss_end, entry] = header.addresses.map(u64::from);
    let damaged = |what, value| LoadError::Damaged { what, value };
    let before_header =
        header_address.checked_sub(load).ok_or(damaged("load_addr of the Multiboot header", load))?;
    let kernel = request.images.kernel;
    let offset = header
        .offset
        .checked_sub(before_header)
        .ok_or(damaged("header_addr of the Multiboot header", header_address))?;
    let size = match load_end {
        0 => kernel.len() - offset,
        end => end.checked_sub(load).ok_or(damaged("load_end_addr of the Multiboot header", end))?,
    };
    let what = "the Multiboot kernel";
    place::check_kernel_range(request, what, load, size)?;
    let end = load + size;
    let bss = bss_end.saturating_sub(end);
    place::check_kernel_range(request, what, load, size + bss)?;
    Piece { what, image: kernel, offset, size }.copy(memory, load)?;
    place::zero(memory, end, bss)?;
    Ok((entry, end + bss))
}

/// Text and tables behind the information structure.
struct Appendix {
    bytes: Vec<u8>,
}

impl Appendix {
    /// Appends bytes on a word boundary; returns their address.
    fn append(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let address = layout::MULTIBOOT_INFO + INFO_SIZE + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        address as u32
    }

    /// Appends text with its terminator; returns its address.
    fn append_text(&mut self, text: &str) -> u32 {
        let address = self.append(text.as_bytes());
        self.bytes.push(0);
        address
    }
}

fn write_info(
    request: &BootRequest<'_>,
    modules: &[Placed],
    memory: &mut dyn GuestMemory,
) -> Result<(), LoadError> {
    place::write_command_line(request, memory, u64::MAX)?;
    let mut appendix = Appendix { bytes: Vec::new() };
    let mut list = Vec::new();
    for (module, placed) in request.images.modules.iter().zip(modules) {
        let text = appendix.append_text(module.command_line);
        for value in [placed.address as u32, (placed.address + placed.size) as u32, text, 0] {
            list.extend(value.to_le_bytes());
        }
    }
    let module_list = appendix.append(&list);
    let map = memory_map(request);
    let map_address = appendix.append(&map);
    let loader_name = appendix.append_text(LOADER_NAME);

    let mut info = [0; INFO_SIZE as usize];
    let upper_kib = (request.layout.low_end().saturating_sub(layout::KERNEL_MIN) >> 10) as u32;
    let fields = [
        (0, INFO_FLAGS),
        (4, LOW_KIB),
        (8, upper_kib),
        (16, layout::COMMAND_LINE as u32),
        (20, modules.len() as u32),
        (24, module_list),
        (44, map.len() as u32),
        (48, map_address),
        (64, loader_name),
    ];
    for (offset, value) in fields {
        info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
    let end = layout::MULTIBOOT_INFO + INFO_SIZE + appendix.bytes.len() as u64;
    if end > layout::MULTIBOOT_INFO_END {
        let max = layout::MULTIBOOT_INFO_END - layout::MULTIBOOT_INFO;
        return Err(LoadError::CommandLineTooLong { length: end - layout::MULTIBOOT_INFO, max });
    }
    place::write(memory, layout::MULTIBOOT_INFO, &info)?;
    place::write(memory, layout::MULTIBOOT_INFO + INFO_SIZE, &appendix.bytes)
}

/// The memory map: each entry is preceded by its own size (section 3.3).
fn memory_map(request: &BootRequest<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in request.layout.memory_map() {
        bytes.extend(20u32.to_le_bytes());
        bytes.extend(entry.base.to_le_bytes());
        bytes.extend(entry.size.to_le_bytes());
        bytes.extend(entry.kind().to_le_bytes());
    }
    bytes
}
