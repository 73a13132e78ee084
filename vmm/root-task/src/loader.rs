//! The layout of a program: what its ELF headers ask for, checked.

use alloc::vec::Vec;
use elf::abi::{EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::parse::ParsingTable;
use elf::segment::ProgramHeader;
use usys::abi::PAGE_SIZE;
use usys::abi::cap::MapFlags;
use usys::layout;

/// Bytes at the start of the file that [`Program::parse`] looks at: the headers of a program must be there.
pub const HEADER_BYTES: usize = PAGE_SIZE as usize;

/// Lowest address of an image.
const IMAGE: u64 = 0x40_0000;

/// A part of a program with one set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address of its first page.
    pub address: u64,
    /// Pages.
    pub pages: u64,
    /// Offset of the file's bytes in the first page.
    pub skip: u64,
    /// Offset of those bytes in the file.
    pub file_offset: u64,
    /// Number of those bytes; the rest is zero.
    pub file_bytes: u64,
    /// What the program may do with it, never both write and execute.
    pub flags: MapFlags,
    /// Nothing of it may change and nothing is added: its pages are those of the file, which processes can share.
    pub is_shareable: bool,
}

/// A program to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Address of the first instruction.
    pub entry: u64,
    /// What to load, in ascending order, no page twice.
    pub segments: Vec<Segment>,
}

impl Program {
    /// Reads the headers of an executable of `file_bytes` bytes, of which `start` is the start. The error says what is wrong.
    pub fn parse(start: &[u8], file_bytes: u64) -> Result<Self, &'static str> {
        let ident = start.get(..elf::abi::EI_NIDENT).ok_or("too short")?;
        let ident = parse_ident::<LittleEndian>(ident).map_err(|_| "no ELF file")?;
        if ident.1 != Class::ELF64 {
            return Err("no 64-bit ELF file");
        }
        let rest = start.get(elf::abi::EI_NIDENT..).ok_or("too short")?;
        let header = FileHeader::parse_tail(ident, rest).map_err(|_| "too short")?;
        if header.e_machine != EM_X86_64 || header.e_type != ET_EXEC {
            return Err("no executable for x86-64");
        }
        if usize::from(header.e_phentsize) != 56 {
            return Err("strange program headers");
        }
        let table = usize::try_from(header.e_phoff)
            .ok()
            .and_then(|offset| start.get(offset..offset.checked_add(usize::from(header.e_phnum) * 56)?));
        let table = table.ok_or("program headers are not at its start")?;
        let headers: ParsingTable<'_, LittleEndian, ProgramHeader> =
            ParsingTable::new(LittleEndian, Class::ELF64, table);

        let mut segments: Vec<Segment> = Vec::new();
        for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
            let segment = Segment::new(&header, file_bytes)?;
            let end = segments.last().map_or(IMAGE, |last| last.address + last.pages * PAGE_SIZE);
            if segment.address < end {
                return Err("segments overlap or are too low");
            }
            segments.push(segment);
        }
        let is_code = |segment: &&Segment| {
            segment.flags.contains(MapFlags::EXECUTE)
                && (segment.address..segment.address + segment.pages * PAGE_SIZE).contains(&header.e_entry)
        };
        segments.iter().find(is_code).ok_or("entry point outside the code")?;
        Ok(Program { entry: header.e_entry, segments })
    }
}

impl Segment {
    fn new(header: &ProgramHeader, file_bytes: u64) -> Result<Self, &'static str> {
        let in_file = header.p_offset.checked_add(header.p_filesz).is_some_and(|end| end <= file_bytes);
        if !in_file || header.p_filesz > header.p_memsz {
            return Err("a segment is cut off");
        }
        let end = header.p_vaddr.checked_add(header.p_memsz).filter(|&end| end <= layout::HEAP);
        let end = end.ok_or("a segment is too high")?;
        let mut flags = MapFlags::READ;
        flags.set(MapFlags::WRITE, header.p_flags & PF_W != 0);
        flags.set(MapFlags::EXECUTE, header.p_flags & PF_X != 0);
        if header.p_flags & PF_R == 0 || flags.contains(MapFlags::WRITE | MapFlags::EXECUTE) {
            return Err("a segment is both writable and executable, or not readable");
        }
        let skip = header.p_vaddr % PAGE_SIZE;
        let address = header.p_vaddr - skip;
        let is_shareable = !flags.contains(MapFlags::WRITE)
            && skip == 0
            && header.p_offset.is_multiple_of(PAGE_SIZE)
            && header.p_filesz == header.p_memsz;
        Ok(Segment {
            address,
            pages: (end - address).div_ceil(PAGE_SIZE),
            is_shareable,
            skip,
            file_offset: header.p_offset,
            file_bytes: header.p_filesz,
            flags,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An executable with these program headers: flags, address, file bytes, memory bytes; file offset 0x1000.
    fn executable(entry: u64, segments: &[(u32, u64, u64, u64)]) -> Vec<u8> {
        let mut file = alloc::vec![0; 64];
        file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        file[16..18].copy_from_slice(&2u16.to_le_bytes());
        file[18..20].copy_from_slice(&62u16.to_le_bytes());
        file[20] = 1;
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for &(flags, address, file_bytes, memory_bytes) in segments {
            file.extend(1u32.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for value in [0x1000, address, address, file_bytes, memory_bytes, 0x1000] {
                file.extend(value.to_le_bytes());
            }
        }
        file
    }

    const CODE: (u32, u64, u64, u64) = (5, 0x40_0000, 0x1234, 0x1234);
    const FILE_BYTES: u64 = 0x10000;

    #[test]
    fn a_program_is_loaded_page_by_page_with_its_rights() {
        let file = executable(0x40_0010, &[CODE, (6, 0x40_2008, 8, 0x3000)]);
        let program = Program::parse(&file, FILE_BYTES).unwrap();
        assert_eq!(program.entry, 0x40_0010);
        assert_eq!(
            program.segments[1],
            Segment {
                address: 0x40_2000,
                pages: 4,
                skip: 8,
                file_offset: 0x1000,
                file_bytes: 8,
                flags: MapFlags::READ | MapFlags::WRITE,
                is_shareable: false,
            }
        );
        assert!(program.segments[0].is_shareable);
    }

    #[test]
    fn pages_that_are_not_those_of_the_file_are_not_shared() {
        for segment in
            [(6, 0x40_0000, 0x1000, 0x1000), (4, 0x40_0000, 0x1000, 0x1001), (4, 0x40_0010, 0x1000, 0x1000)]
        {
            let file = executable(0x41_0000, &[segment, (5, 0x41_0000, 1, 1)]);
            let program = Program::parse(&file, FILE_BYTES).unwrap();
            assert!(!program.segments[0].is_shareable, "{segment:x?}");
        }
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let refused = |file: &[u8]| Program::parse(file, FILE_BYTES).is_err();
        let good = executable(0x40_0010, &[CODE]);
        assert!(!refused(&good));
        for len in 0..good.len() {
            assert!(refused(&good[..len]));
        }
        assert!(refused(b"#!/bin/sh\n"));
        let mut foreign = good.clone();
        foreign[18] = 183;
        assert!(refused(&foreign));
    }

    #[test]
    fn impossible_segments_are_refused() {
        let refused = |segments: &[(u32, u64, u64, u64)]| {
            Program::parse(&executable(0x40_0010, segments), FILE_BYTES).is_err()
        };
        assert!(refused(&[(7, 0x40_0000, 1, 1)]));
        assert!(refused(&[CODE, (6, 0x40_1000, 0, 1)]));
        assert!(refused(&[(5, 0x1000, 1, 1)]));
        assert!(refused(&[(5, 0x40_0000, 2, 1)]));
        assert!(refused(&[(5, 0x40_0000, FILE_BYTES, FILE_BYTES)]));
        assert!(refused(&[CODE, (6, u64::MAX - 5, 0, 100)]));
        assert!(refused(&[(6, 0x40_0000, 1, 1)]));
    }
}
