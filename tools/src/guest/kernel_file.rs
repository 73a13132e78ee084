//! Which kind of kernel a file is, told by its content, so that a mistake is seen before anything is started.

use elf::ElfBytes;
use elf::abi::{EM_386, EM_X86_64, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::Note;

/// The kinds of kernel that a VM can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Linux's bzImage with the 64-bit boot protocol.
    BzImage,
    /// Linux as an ELF file with a PVH entry note.
    PvhLinux,
    /// Another ELF file with a PVH entry note.
    Pvh,
    /// ELF32 with a Multiboot1 header.
    Multiboot,
}

impl Kind {
    /// Whether it is Linux, which takes an initial file system and Linux's options.
    pub const fn is_linux(self) -> bool {
        matches!(self, Kind::BzImage | Kind::PvhLinux)
    }
}

/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen's elfnote.h).
const PHYS32_ENTRY: u64 = 18;
/// `XEN_ELFNOTE_GUEST_OS` (Xen's elfnote.h).
const GUEST_OS: u64 = 6;
/// Magic of a Multiboot1 header (Multiboot Specification 0.6.96, 3.1.2).
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
/// A Multiboot1 header lies within this many bytes.
const MULTIBOOT_SEARCH: usize = 8192;
/// Protocol version 2.12: the first with `xloadflags` (Linux, Documentation/arch/x86/boot.rst).
const XLOADFLAGS_VERSION: u16 = 0x020c;

/// Tells the kind of a kernel, or what is wrong with it. PVH goes before Multiboot.
pub fn recognise(bytes: &[u8]) -> Result<Kind, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    if bytes.starts_with(b"\x7fELF") {
        return recognise_elf(bytes);
    }
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        return check_bzimage(bytes).map(|()| Kind::BzImage);
    }
    Err("not a kernel: neither a bzImage nor an ELF file with a PVH note or a Multiboot1 header".into())
}

fn check_bzimage(bytes: &[u8]) -> Result<(), String> {
    let u16_at = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let version = u16_at(0x206).unwrap_or(0);
    if version < XLOADFLAGS_VERSION || u16_at(0x236).is_none_or(|flags| flags & 1 == 0) {
        return Err(
            "this bzImage has no 64-bit entry; build the kernel for x86-64, version 3.8 or later".into()
        );
    }
    let setup_bytes = (usize::from(bytes[0x1f1]) + 1) * 512;
    let syssize =
        bytes.get(0x1f4..0x1f8).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let needed = setup_bytes + syssize * 16;
    if needed > bytes.len() {
        return Err(format!("the bzImage is damaged: it should have {needed} bytes but has {}", bytes.len()));
    }
    Ok(())
}

fn recognise_elf(bytes: &[u8]) -> Result<Kind, String> {
    let damaged = |error: &dyn std::fmt::Display| format!("the ELF file is damaged: {error}");
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|error| damaged(&error))?;
    let header = file.ehdr;
    if !matches!(
        (header.class, header.e_machine),
        (Class::ELF64, EM_X86_64) | (Class::ELF32, EM_386 | EM_X86_64)
    ) {
        return Err(format!("the ELF file is for another machine (e_machine {}), not x86", header.e_machine));
    }
    let segments = file.segments().ok_or("the ELF file has nothing to load")?;
    for segment in segments.iter() {
        if segment.p_offset.checked_add(segment.p_filesz).is_none_or(|end| end > bytes.len() as u64) {
            return Err(damaged(&"a segment lies beyond its end"));
        }
    }
    let note = |wanted| xen_note(&file, wanted);
    if note(PHYS32_ENTRY).is_some() {
        let is_linux = note(GUEST_OS).is_some_and(|name| name.starts_with(b"linux"));
        return Ok(if is_linux { Kind::PvhLinux } else { Kind::Pvh });
    }
    match (header.class, has_multiboot_header(bytes)) {
        (Class::ELF32, true) => Ok(Kind::Multiboot),
        (Class::ELF64, true) => {
            Err("an ELF64 file with a Multiboot1 header; it must be ELF32, or have a PVH note".into())
        }
        _ => Err("the ELF file has neither a PVH note nor a Multiboot1 header".into()),
    }
}

/// The content of the first note of Xen's with this type.
fn xen_note<'data>(file: &ElfBytes<'data, LittleEndian>, wanted: u64) -> Option<&'data [u8]> {
    let segments = file.segments()?;
    let notes = segments.iter().filter(|segment| segment.p_type == PT_NOTE);
    notes.filter_map(|segment| file.segment_data_as_notes(&segment).ok()).flatten().find_map(
        |note| match note {
            Note::Unknown(note)
                if note.n_type == wanted && note.name_str().is_ok_and(|name| name == "Xen") =>
            {
                Some(note.desc)
            }
            _ => None,
        },
    )
}

fn has_multiboot_header(bytes: &[u8]) -> bool {
    let words: Vec<u32> = bytes[..bytes.len().min(MULTIBOOT_SEARCH)]
        .chunks_exact(4)
        .map(|chunk| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
        .collect();
    words.windows(3).any(|w| w[0] == MULTIBOOT_MAGIC && w[0].wrapping_add(w[1]).wrapping_add(w[2]) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0u8; 2048];
        bytes[0x1f1] = 1;
        bytes[0x1f4..0x1f8].copy_from_slice(&64u32.to_le_bytes());
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        bytes[0x236] = 1;
        bytes
    }

    /// An ELF32 file for the i386 with one segment over the whole file and `content` behind the headers.
    fn elf32(content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([2, 0, 3, 0]);
        for value in [1u32, 0x10_0000, 52, 0, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([52, 0, 32, 0, 1, 0, 40, 0, 0, 0, 0, 0]);
        let size = (52 + 32 + content.len()) as u32;
        for value in [1u32, 0, 0x10_0000, 0x10_0000, size, size, 5, 4096] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(content);
        bytes
    }

    #[test]
    fn a_bzimage_is_recognised() {
        assert_eq!(recognise(&bzimage()), Ok(Kind::BzImage));
    }

    #[test]
    fn a_truncated_bzimage_is_called_damaged() {
        assert!(recognise(&bzimage()[..1500]).unwrap_err().contains("damaged"));
    }

    #[test]
    fn a_32_bit_bzimage_is_refused() {
        let mut bytes = bzimage();
        bytes[0x236] = 0;
        assert!(recognise(&bytes).unwrap_err().contains("64-bit"));
    }

    #[test]
    fn a_multiboot_elf32_is_recognised() {
        let header = [0x1bad_b002u32, 3, 0u32.wrapping_sub(0x1bad_b002 + 3)];
        let content: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(recognise(&elf32(&content)), Ok(Kind::Multiboot));
        assert!(recognise(&elf32(b"nothing of note.")).unwrap_err().contains("neither"));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(recognise(b"").unwrap_err().contains("empty"));
        assert!(recognise(b"#!/bin/sh\n").unwrap_err().contains("not a kernel"));
        assert!(recognise(b"\x7fELF").unwrap_err().contains("damaged"));
        let mut truncated = elf32(b"0123456789abcdef");
        truncated.truncate(90);
        assert!(recognise(&truncated).unwrap_err().contains("damaged"));
    }
}
