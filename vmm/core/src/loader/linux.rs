//! Linux bzImages by the 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst).

use alloc::vec;
use hypercall_abi::vcpu::{VcpuPage, gpr};
use vdev::guest_mem::GuestMemory;

use super::place::{self, Piece};
use super::{BootRequest, LoadError, entry};
use crate::image::Image;
use crate::layout::{self, MapEntry};

/// Offsets into the zero page; those of the setup header are the same in the file.
mod offset {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0x0c4;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const JUMP_LENGTH: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

const ZERO_PAGE_SIZE: usize = 4096;
/// The setup header may reach up to here; after it the zero page has fields of the loader's.
const HEADER_END: usize = 0x290;
const SECTOR: u64 = 512;
const BOOT_FLAG: u16 = 0xaa55;
/// The first version with `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1 << 0;
const LOADED_HIGH: u8 = 1 << 0;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const ENTRY_64: u64 = 0x200;
const E820_ENTRY_SIZE: usize = 20;

/// Whether this is a bzImage.
pub fn is_bzimage(image: &dyn Image) -> bool {
    let (mut flag, mut magic) = ([0; 2], [0; 4]);
    image.read(offset::BOOT_FLAG as u64, &mut flag)
        && image.read(offset::MAGIC as u64, &mut magic)
        && u16::from_le_bytes(flag) == BOOT_FLAG
        && magic == *b"HdrS"
}

/// The setup header, at its place in an otherwise empty zero page.
struct ZeroPage([u8; ZERO_PAGE_SIZE]);

impl ZeroPage {
    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    fn u32(&self, offset: usize) -> u64 {
        u32::from_le_bytes(self.get(offset)).into()
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Puts a value whose halves are at different places.
    fn put_split(&mut self, low: usize, high: usize, value: u64) {
        self.put(low, &(value as u32).to_le_bytes());
        self.put(high, &((value >> 32) as u32).to_le_bytes());
    }
}

/// Loads the kernel at its preferred address, the initrd high, and enters in 64-bit mode with RSI on the zero page.
pub(super) fn load(
    request: &BootRequest<'_>,
    memory: &mut dyn GuestMemory,
    page: &mut VcpuPage,
) -> Result<(), LoadError> {
    let kernel = request.images.kernel;
    let mut zero_page = read_header(kernel)?;
    let address = zero_page.u64(offset::PREF_ADDRESS);
    let init_size = zero_page.u32(offset::INIT_SIZE);
    place::check_kernel_range(request, "the Linux kernel", address, init_size)?;

    let payload = payload(kernel, &zero_page)?;
    if payload.size > init_size {
        return Err(LoadError::Damaged { what: "init_size of the Linux kernel", value: init_size });
    }
    payload.copy(memory, address)?;

    let limit = zero_page.u32(offset::INITRD_ADDR_MAX) + 1;
    if let Some(initrd) = place::place_initrd(request, memory, address + init_size, limit)? {
        zero_page.put_split(offset::RAMDISK_IMAGE, offset::EXT_RAMDISK_IMAGE, initrd.address);
        zero_page.put_split(offset::RAMDISK_SIZE, offset::EXT_RAMDISK_SIZE, initrd.size);
    }
    place::write_command_line(request, memory, zero_page.u32(offset::CMDLINE_SIZE))?;
    zero_page.put(offset::CMD_LINE_PTR, &(layout::COMMAND_LINE as u32).to_le_bytes());
    zero_page.put(offset::ACPI_RSDP_ADDR, &layout::ACPI_TABLES.to_le_bytes());
    zero_page.put(offset::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    zero_page.0[offset::LOADFLAGS] |= LOADED_HIGH;
    put_e820(&mut zero_page, &request.layout.memory_map());
    place::write(memory, layout::ZERO_PAGE, &zero_page.0)?;

    entry::long_mode(memory, page, address + ENTRY_64)?;
    page.gpr[gpr::RSI] = layout::ZERO_PAGE;
    Ok(())
}

/// Copies the setup header into a zero page and checks what we rely on.
fn read_header(kernel: &dyn Image) -> Result<ZeroPage, LoadError> {
    let mut jump_length = [0];
    place::read(kernel, "the setup header", offset::JUMP_LENGTH as u64, &mut jump_length)?;
    let end = (offset::MAGIC + usize::from(jump_length[0])).min(HEADER_END);
    if end < offset::INIT_SIZE + 4 {
        return Err(LoadError::Unsupported {
            what: "is a Linux from before version 3.8",
            advice: "give a newer one",
        });
    }
    let mut zero_page = ZeroPage([0; ZERO_PAGE_SIZE]);
    let header = &mut zero_page.0[offset::SETUP_SECTS..end];
    place::read(kernel, "the setup header", offset::SETUP_SECTS as u64, header)?;
    if zero_page.u16(offset::VERSION) < MIN_VERSION {
        return Err(LoadError::Unsupported {
            what: "is a Linux with a boot protocol before version 2.12",
            advice: "give a newer one",
        });
    }
    if zero_page.u16(offset::XLOADFLAGS) & XLF_KERNEL_64 == 0 {
        return Err(LoadError::Unsupported {
            what: "is a 32-bit Linux",
            advice: "give a 64-bit one (Debian: linux-image-cloud-amd64)",
        });
    }
    Ok(zero_page)
}

/// The part of the file that is loaded: everything behind the real-mode code.
fn payload<'a>(kernel: &'a dyn Image, zero_page: &ZeroPage) -> Result<Piece<'a>, LoadError> {
    // 0 stands for 4, for the sake of very old kernels.
    let sectors = match zero_page.0[offset::SETUP_SECTS] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (sectors + 1) * SECTOR;
    let size = zero_page.u32(offset::SYSSIZE) * 16;
    // The size is counted in paragraphs; the last one may be incomplete.
    if kernel.len() + 15 < start + size || kernel.len() <= start {
        return Err(LoadError::Truncated {
            what: "the Linux kernel",
            needs: start + size,
            has: kernel.len(),
        });
    }
    Ok(Piece { what: "the Linux kernel", image: kernel, offset: start, size: size.min(kernel.len() - start) })
}

fn put_e820(zero_page: &mut ZeroPage, map: &[MapEntry]) {
    zero_page.put(offset::E820_ENTRIES, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        let mut bytes = vec![];
        bytes.extend(entry.base.to_le_bytes());
        bytes.extend(entry.size.to_le_bytes());
        bytes.extend(entry.kind().to_le_bytes());
        zero_page.put(offset::E820_TABLE + index * E820_ENTRY_SIZE, &bytes);
    }
}
