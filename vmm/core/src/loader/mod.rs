//! Puts a kernel and its modules into guest memory and the vCPU at the kernel's entry.
//!
//! What a kernel is says its content, never its name: [`linux`] (bzImage, 64-bit boot protocol), [`pvh`] (ELF with the
//! PVH note), [`multiboot`] (Multiboot 1). A kernel that is both PVH and Multiboot boots by PVH.

mod elf;
mod entry;
mod error;
pub mod linux;
pub mod multiboot;
mod place;
pub mod pvh;

pub use error::LoadError;

use hypercall_abi::vcpu::VcpuPage;
use vdev::guest_mem::GuestMemory;

use crate::acpi;
use crate::image::{BootImages, Image};
use crate::layout::{self, Layout};

/// What is to be booted, and where.
#[derive(Clone, Copy)]
pub struct BootRequest<'a> {
    /// Kernel and modules.
    pub images: BootImages<'a>,
    /// Kernel command line.
    pub command_line: &'a str,
    /// Where RAM is.
    pub layout: Layout,
    /// How many virtio devices there are.
    pub virtio_devices: usize,
}

/// How a kernel is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// Linux, 64-bit boot protocol.
    Linux,
    /// PVH.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// Writes everything that the guest finds in its memory at the start, and its entry state into `page`.
///
/// # Errors
/// The kernel is damaged or none that we know, or there is too little memory.
pub fn load(
    request: &BootRequest<'_>,
    memory: &mut dyn GuestMemory,
    page: &mut VcpuPage,
) -> Result<BootProtocol, LoadError> {
    crate::vcpu::reset(page);
    place::write(memory, layout::ACPI_TABLES, &acpi::tables(&[0], request.virtio_devices))?;
    place::write(memory, layout::RESET_STUB, &layout::RESET_CODE)?;
    let kernel = request.images.kernel;
    if linux::is_bzimage(kernel) {
        linux::load(request, memory, page)?;
        return Ok(BootProtocol::Linux);
    }
    let elf = elf::Elf::parse(kernel)?;
    if let Some(elf) = &elf
        && let Some(entry) = pvh::find_entry(elf, kernel)?
    {
        pvh::load(request, elf, entry, memory, page)?;
        return Ok(BootProtocol::Pvh);
    }
    if let Some(header) = multiboot::Header::find(kernel) {
        multiboot::load(request, &header, elf.as_ref(), memory, page)?;
        return Ok(BootProtocol::Multiboot);
    }
    Err(LoadError::Unrecognized { looks_like: describe(kernel) })
}

/// What a file that is no kernel for us seems to be.
fn describe(image: &dyn Image) -> &'static str {
    let mut start = [0; 8];
    let readable = image.len().min(8) as usize;
    if !image.read(0, &mut start[..readable]) || image.is_empty() {
        return "an empty file";
    }
    match start {
        [0x7f, b'E', b'L', b'F', ..] => "an ELF file without a PVH note and without a Multiboot header",
        [0x1f, 0x8b, ..] => "a gzip file",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file",
        [b'M', b'Z', ..] => "an EFI or DOS program that is no bzImage",
        [b'0', b'7', b'0', b'7', b'0', ..] => "a cpio archive (an initrd?)",
        [b'#', b'!', ..] => "a script",
        _ => "unknown data",
    }
}

#[cfg(test)]
mod tests;
