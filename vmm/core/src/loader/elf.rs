//! What the loaders need of ELF, 32-bit and 64-bit, little-endian.

use alloc::vec;
use alloc::vec::Vec;
use vdev::guest_mem::GuestMemory;

use super::place::{self, Piece};
use super::{BootRequest, LoadError};
use crate::image::Image;

const MAX_SEGMENTS: u64 = 128;
const MAX_NOTES_BYTES: u64 = 64 << 10;
const EM_386: u64 = 3;
const EM_X86_64: u64 = 62;
const ET_EXEC: u64 = 2;
const ET_DYN: u64 = 3;
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;

/// An executable's header.
#[derive(Clone, Debug)]
pub(super) struct Elf {
    /// 64-bit format.
    pub(super) is_64: bool,
    /// Physical address of the entry.
    pub(super) entry: u64,
    segments: Vec<Segment>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u64,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

/// A note.
pub(super) struct Note<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: u32,
    pub(super) description: &'a [u8],
}

impl Elf {
    /// The header of an ELF executable for x86; `None` if the file is no ELF file at all.
    pub(super) fn parse(image: &dyn Image) -> Result<Option<Elf>, LoadError> {
        let mut ident = [0; 16];
        if !image.read(0, &mut ident) || ident[..4] != *b"\x7fELF" {
            return Ok(None);
        }
        let is_64 = match ident[4..6] {
            [1, 1] => false,
            [2, 1] => true,
            _ => {
                return Err(LoadError::Damaged { what: "the ELF class", value: ident[4].into() });
            }
        };
        let mut bytes = [0; 64];
        let header = &mut bytes[..if is_64 { 64 } else { 52 }];
        place::read(image, "the ELF header", 0, header)?;
        let header = Fields { bytes: header, is_64 };
        let machine = header.half(18);
        if !matches!(machine, EM_386 | EM_X86_64) {
            return Err(LoadError::Unsupported {
                what: "is for another kind of CPU",
                advice: "give one for x86",
            });
        }
        if !matches!(header.half(16), ET_EXEC | ET_DYN) {
            return Err(LoadError::Unsupported {
                what: "is an ELF file that is not linked",
                advice: "link it",
            });
        }
        let segments = Self::read_segments(image, &header)?;
        let entry = physical_entry(header.word(24, 24), &segments);
        Ok(Some(Elf { is_64, entry, segments }))
    }

    fn read_segments(image: &dyn Image, header: &Fields<'_>) -> Result<Vec<Segment>, LoadError> {
        let is_64 = header.is_64;
        let table = header.word(28, 32);
        let (entry_size, count) =
            (header.half(if is_64 { 54 } else { 42 }), header.half(if is_64 { 56 } else { 44 }));
        let expected = if is_64 { 56 } else { 32 };
        if entry_size != expected {
            return Err(LoadError::Damaged { what: "the size of an ELF program header", value: entry_size });
        }
        if count > MAX_SEGMENTS {
            return Err(LoadError::Damaged { what: "the number of ELF segments", value: count });
        }
        let mut segments = Vec::new();
        for index in 0..count {
            let mut bytes = [0; 56];
            let bytes = &mut bytes[..expected as usize];
            place::read(image, "the ELF program headers", table.saturating_add(index * expected), bytes)?;
            let fields = Fields { bytes, is_64 };
            segments.push(Segment {
                kind: fields.dword(0),
                offset: fields.word(4, 8),
                virtual_address: fields.word(8, 16),
                physical_address: fields.word(12, 24),
                file_size: fields.word(16, 32),
                memory_size: fields.word(20, 40),
                alignment: fields.word(28, 48),
            });
        }
        Ok(segments)
    }

    /// Loads every segment at its physical address; returns the end of the highest.
    pub(super) fn load(
        &self,
        request: &BootRequest<'_>,
        memory: &mut dyn GuestMemory,
    ) -> Result<u64, LoadError> {
        let mut end = 0;
        for segment in self.segments.iter().filter(|segment| segment.kind == PT_LOAD) {
            let Segment { offset, physical_address, file_size, memory_size, .. } = *segment;
            if memory_size == 0 {
                continue;
            }
            if file_size > memory_size {
                return Err(LoadError::Damaged { what: "the file size of an ELF segment", value: file_size });
            }
            place::check_kernel_range(request, "an ELF segment", physical_address, memory_size)?;
            let piece =
                Piece { what: "an ELF segment", image: request.images.kernel, offset, size: file_size };
            piece.copy(memory, physical_address)?;
            place::zero(memory, physical_address + file_size, memory_size - file_size)?;
            end = end.max(physical_address + memory_size);
        }
        if end == 0 {
            return Err(LoadError::Damaged { what: "the number of ELF segments to load", value: 0 });
        }
        Ok(end)
    }

    /// The first note for which `select` returns something.
    pub(super) fn find_note<T>(
        &self,
        image: &dyn Image,
        select: impl Fn(&Note<'_>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        for segment in self.segments.iter().filter(|segment| segment.kind == PT_NOTE) {
            if segment.file_size > MAX_NOTES_BYTES {
                return Err(LoadError::Damaged {
                    what: "the size of the ELF notes",
                    value: segment.file_size,
                });
            }
            let mut bytes = vec![0; segment.file_size as usize];
            place::read(image, "the ELF notes", segment.offset, &mut bytes)?;
            let alignment = if segment.alignment == 8 { 8 } else { 4 };
            let mut rest = bytes.as_slice();
            while let Some((note, next)) = split_note(rest, alignment) {
                if let Some(found) = select(&note) {
                    return Ok(Some(found));
                }
                rest = next;
            }
        }
        Ok(None)
    }
}

/// The physical address of an entry that is given as a virtual one: Multiboot loaders agree to translate it by the
/// segment that it is in.
fn physical_entry(entry: u64, segments: &[Segment]) -> u64 {
    segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .find_map(|segment| {
            let offset = entry.checked_sub(segment.virtual_address)?;
            (offset < segment.memory_size).then(|| segment.physical_address.wrapping_add(offset))
        })
        .unwrap_or(entry)
}

/// The first note in `bytes`, and what follows it.
fn split_note(bytes: &[u8], alignment: usize) -> Option<(Note<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(12)?;
    let [name_size, description_size, kind] =
        [0, 4, 8].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    // Offsets count from the note's start, whose 12 bytes are not a multiple of 8.
    let description_at = (12 + name_size as usize).next_multiple_of(alignment) - 12;
    let end = description_at.checked_add(description_size as usize)?;
    let name = rest.get(..name_size as usize)?;
    let description = rest.get(description_at..end)?;
    let next = (12 + end).next_multiple_of(alignment) - 12;
    Some((Note { name, kind, description }, rest.get(next..).unwrap_or(&[])))
}

/// Fields of a structure that comes in a 32-bit and a 64-bit form. The offsets are within the structure.
struct Fields<'a> {
    bytes: &'a [u8],
    is_64: bool,
}

impl Fields<'_> {
    fn value(&self, offset: usize, size: usize) -> u64 {
        self.bytes[offset..offset + size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn half(&self, offset: usize) -> u64 {
        self.value(offset, 2)
    }

    fn dword(&self, offset: usize) -> u64 {
        self.value(offset, 4)
    }

    fn word(&self, offset_32: usize, offset_64: usize) -> u64 {
        if self.is_64 { self.value(offset_64, 8) } else { self.value(offset_32, 4) }
    }
}
