//! Copying images into guest memory, with every range checked.

use alloc::vec;
use alloc::vec::Vec;
use vdev::guest_mem::{GuestMemory, OutOfRange};

use super::{BootRequest, LoadError};
use crate::image::{BootModule, Image};
use crate::layout;

const CHUNK: usize = 16 << 10;
/// Modules start on a page, as every protocol allows or asks for.
const MODULE_ALIGNMENT: u64 = 4096;
/// Pieces of an initrd start on a word: Linux looks for the next archive there.
const PIECE_ALIGNMENT: u64 = 4;

/// Writes bytes of the loader's own into RAM.
pub(super) fn write(memory: &mut dyn GuestMemory, address: u64, bytes: &[u8]) -> Result<(), LoadError> {
    memory.write(address, bytes).map_err(|error| out_of_memory(memory, error))
}

fn out_of_memory(memory: &dyn GuestMemory, error: OutOfRange) -> LoadError {
    LoadError::TooLittleMemory {
        what: "the boot information",
        needs: error.gpa.saturating_add(error.len as u64),
        has: memory.size_bytes(),
    }
}

/// Reads part of an image.
pub(super) fn read(
    image: &dyn Image,
    what: &'static str,
    offset: u64,
    into: &mut [u8],
) -> Result<(), LoadError> {
    if image.read(offset, into) {
        return Ok(());
    }
    let needs = offset.saturating_add(into.len() as u64);
    Err(LoadError::Truncated { what, needs, has: image.len() })
}

/// A part of an image that goes to a place in RAM.
pub(super) struct Piece<'a> {
    pub(super) what: &'static str,
    pub(super) image: &'a dyn Image,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Piece<'_> {
    /// Copies it to `address`.
    pub(super) fn copy(&self, memory: &mut dyn GuestMemory, address: u64) -> Result<(), LoadError> {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(self.size).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < self.size {
            let length = usize::try_from(self.size - done).unwrap_or(CHUNK).min(CHUNK);
            let bytes = &mut chunk[..length];
            // Saturating, as both addresses come from headers of the image.
            let from = self.offset.saturating_add(done);
            read(self.image, self.what, from, bytes)?;
            write(memory, address.saturating_add(done), bytes)?;
            done += length as u64;
        }
        Ok(())
    }
}

/// Fills a range with zeros.
pub(super) fn zero(memory: &mut dyn GuestMemory, address: u64, size: u64) -> Result<(), LoadError> {
    let zeros = [0; 4096];
    let mut done = 0;
    while done < size {
        let length = (size - done).min(zeros.len() as u64);
        write(memory, address.saturating_add(done), &zeros[..length as usize])?;
        done += length;
    }
    Ok(())
}

/// Checks that a range of the kernel's choice is in the RAM between 1 MiB and the devices.
pub(super) fn check_kernel_range(
    request: &BootRequest<'_>,
    what: &'static str,
    address: u64,
    size: u64,
) -> Result<(), LoadError> {
    let end = address.saturating_add(size);
    if address < layout::KERNEL_MIN || end > layout::DEVICE_HOLE {
        return Err(LoadError::Misplaced { what, address });
    }
    if end > request.layout.low_end() {
        let has = request.layout.memory_bytes();
        return Err(LoadError::TooLittleMemory { what, needs: end, has });
    }
    Ok(())
}

/// Writes the command line and its terminator.
pub(super) fn write_command_line(
    request: &BootRequest<'_>,
    memory: &mut dyn GuestMemory,
    max: u64,
) -> Result<(), LoadError> {
    let length = request.command_line.len() as u64;
    let max = max.min(layout::COMMAND_LINE_MAX - 1);
    if length > max {
        return Err(LoadError::CommandLineTooLong { length, max });
    }
    let mut bytes = Vec::from(request.command_line.as_bytes());
    bytes.push(0);
    write(memory, layout::COMMAND_LINE, &bytes)
}

/// Where a module went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) address: u64,
    pub(super) size: u64,
}

/// Puts all modules, one behind the other, as high as possible below `limit` and above `kernel_end`. `None` if there
/// are none.
pub(super) fn place_initrd(
    request: &BootRequest<'_>,
    memory: &mut dyn GuestMemory,
    kernel_end: u64,
    limit: u64,
) -> Result<Option<Placed>, LoadError> {
    let modules = request.images.modules;
    let size = modules.iter().fold(0u64, |size, module| {
        size.saturating_add(module.image.len()).saturating_add(PIECE_ALIGNMENT - 1) & !(PIECE_ALIGNMENT - 1)
    });
    if size == 0 {
        return Ok(None);
    }
    let top = limit.min(request.layout.low_end());
    let address = top.checked_sub(size).map(|address| address & !(MODULE_ALIGNMENT - 1));
    let Some(address) = address.filter(|address| *address >= kernel_end) else {
        let needs = kernel_end.saturating_add(size).saturating_add(MODULE_ALIGNMENT);
        let has = request.layout.memory_bytes();
        return Err(LoadError::TooLittleMemory { what: "kernel and initrd", needs, has });
    };
    let mut next = address;
    for module in modules {
        copy_module(module, memory, next)?;
        let end = next + module.image.len();
        next = end.next_multiple_of(PIECE_ALIGNMENT);
        zero(memory, end, next - end)?;
    }
    Ok(Some(Placed { address, size }))
}

/// Puts each module on a page of its own, from `start` up.
pub(super) fn place_modules(
    request: &BootRequest<'_>,
    memory: &mut dyn GuestMemory,
    start: u64,
) -> Result<Vec<Placed>, LoadError> {
    let mut next = start;
    let mut placed = Vec::new();
    for module in request.images.modules {
        let address = next.next_multiple_of(MODULE_ALIGNMENT);
        let size = module.image.len();
        check_kernel_range(request, "kernel and modules", address, size)?;
        copy_module(module, memory, address)?;
        placed.push(Placed { address, size });
        next = address + size;
    }
    Ok(placed)
}

fn copy_module(module: &BootModule<'_>, memory: &mut dyn GuestMemory, address: u64) -> Result<(), LoadError> {
    Piece { what: "a module", image: module.image, offset: 0, size: module.image.len() }.copy(memory, address)
}
