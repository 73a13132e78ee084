//! Static ELF64 executables for x86-64 (System V gABI chapters 4 and 5): the root task.

use hypercall_abi::{PAGE_SIZE, USER_END};

use super::le;
use core::fmt;

/// Why a file is not an executable that the kernel loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not an ELF file, or one of another class, byte order, version or machine.
    Foreign,
    /// Not a static executable at fixed addresses.
    NotStatic,
    /// A header or a segment reaches past the end of the file.
    Truncated,
    /// A segment has more bytes in the file than in memory.
    BadSegment,
    /// A segment is not in user space.
    BadAddress,
    /// Segments overlap or are out of order.
    Overlap,
    /// The entry point is in no executable segment.
    BadEntry,
    /// Nothing to load.
    Empty,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ElfError::Foreign => "it is not a 64-bit ELF file for x86",
            ElfError::NotStatic => "it is not a static executable at fixed addresses",
            ElfError::Truncated => "a header or a segment reaches past its end",
            ElfError::BadSegment => "a segment has more bytes in the file than in memory",
            ElfError::BadAddress => "a segment is not in user space",
            ElfError::Overlap => "segments overlap or are out of order",
            ElfError::BadEntry => "its entry point is in no executable segment",
            ElfError::Empty => "it has nothing to load",
        })
    }
}

/// A part of the program, with at least one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Virtual address of the first byte; need not be aligned.
    pub vaddr: u64,
    /// Bytes in memory, not less than `data`; those after `data` are zero.
    pub mem_size: u64,
    /// What the file has of it.
    pub data: &'a [u8],
    /// Writable.
    pub write: bool,
    /// Executable.
    pub execute: bool,
}

/// An executable, checked: its segments are in user space, ascending, and do not overlap.
#[derive(Clone, Copy, Debug)]
pub struct Executable<'a> {
    file: &'a [u8],
    entry: u64,
    headers: &'a [u8],
}

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// ELF magic, 64-bit, little-endian, version 1.
const IDENT: &[u8] = b"\x7fELF\x02\x01\x01";
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PF_X: u32 = 1;
const PF_W: u32 = 2;

impl<'a> Executable<'a> {
    /// Checks the whole file, except for its sections, which nobody needs.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        let header = file.get(..HEADER_LEN).ok_or(ElfError::Truncated)?;
        let half = |at| le::u16(header, at).unwrap_or(0);
        if !header.starts_with(IDENT) || half(18) != EM_X86_64 {
            return Err(ElfError::Foreign);
        }
        if half(16) != ET_EXEC {
            return Err(ElfError::NotStatic);
        }
        if usize::from(half(54)) != PROGRAM_HEADER_LEN {
            return Err(ElfError::Foreign);
        }
        let entry = le::u64(header, 24).ok_or(ElfError::Truncated)?;
        let at = le::u64(header, 32).and_then(|at| usize::try_from(at).ok()).ok_or(ElfError::Truncated)?;
        let headers = file
            .get(at..)
            .and_then(|rest| rest.get(..usize::from(half(56)) * PROGRAM_HEADER_LEN))
            .ok_or(ElfError::Truncated)?;
        let executable = Executable { file, entry, headers };
        executable.check()?;
        Ok(executable)
    }

    /// Virtual address of the first instruction.
    pub const fn entry(&self) -> u64 {
        self.entry
    }

    /// The segments to load.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let file = self.file;
        self.headers.chunks_exact(PROGRAM_HEADER_LEN).filter_map(move |header| segment(file, header).ok()?)
    }

    fn check(&self) -> Result<(), ElfError> {
        let mut end = PAGE_SIZE;
        let mut entry_found = false;
        for header in self.headers.chunks_exact(PROGRAM_HEADER_LEN) {
            if matches!(le::u32(header, 0), Some(PT_DYNAMIC | PT_INTERP)) {
                return Err(ElfError::NotStatic);
            }
            let Some(segment) = segment(self.file, header)? else {
                continue;
            };
            let segment_end = segment.vaddr.checked_add(segment.mem_size).ok_or(ElfError::BadAddress)?;
            if segment.vaddr < PAGE_SIZE || segment_end > USER_END {
                return Err(ElfError::BadAddress);
            }
            if segment.vaddr < end {
                return Err(ElfError::Overlap);
            }
            end = segment_end;
            entry_found |= segment.execute && (segment.vaddr..segment_end).contains(&self.entry);
        }
        match (end, entry_found) {
            (PAGE_SIZE, _) => Err(ElfError::Empty),
            (_, false) => Err(ElfError::BadEntry),
            (_, true) => Ok(()),
        }
    }
}

/// The segment of a program header, or `None` if there is nothing to load.
fn segment<'a>(file: &'a [u8], header: &[u8]) -> Result<Option<Segment<'a>>, ElfError> {
    let word = |at| le::u32(header, at).ok_or(ElfError::Truncated);
    let long = |at| le::u64(header, at).ok_or(ElfError::Truncated);
    if word(0)? != PT_LOAD {
        return Ok(None);
    }
    let (flags, offset, vaddr, file_size, mem_size) = (word(4)?, long(8)?, long(16)?, long(32)?, long(40)?);
    if file_size > mem_size {
        return Err(ElfError::BadSegment);
    }
    if mem_size == 0 {
        return Ok(None);
    }
    let range = |start: u64, len: u64| {
        let start = usize::try_from(start).ok()?;
        file.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    };
    let data = range(offset, file_size).ok_or(ElfError::Truncated)?;
    Ok(Some(Segment { vaddr, mem_size, data, write: flags & PF_W != 0, execute: flags & PF_X != 0 }))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Type, flags, offset, virtual address, size in the file, size in memory.
    type Header = (u32, u32, u64, u64, u64, u64);

    const CODE: Header = (PT_LOAD, PF_X | 4, 0x100, 0x40_0010, 0x20, 0x20);
    const DATA: Header = (PT_LOAD, PF_W | 4, 0x120, 0x40_1030, 0x10, 0x2000);
    const STACK: Header = (0x6474_e551, 6, 0, 0, 0, 0);

    fn file(headers: &[Header]) -> Vec<u8> {
        let mut file = std::vec![0u8; 0x200];
        file[..7].copy_from_slice(IDENT);
        file[16] = 2;
        file[18] = 62;
        file[24..32].copy_from_slice(&0x40_0014u64.to_le_bytes());
        file[32] = 64;
        file[54] = 56;
        file[56] = headers.len() as u8;
        for (i, &(kind, flags, offset, vaddr, in_file, in_memory)) in headers.iter().enumerate() {
            let words =
                [u64::from(kind) | u64::from(flags) << 32, offset, vaddr, vaddr, in_file, in_memory, 1];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let at = 64 + i * 56;
            file.resize(file.len().max(at + 56), 0);
            file[at..at + 56].copy_from_slice(&bytes);
        }
        file[0x120..0x130].copy_from_slice(b"initialised data");
        file
    }

    fn error(headers: &[Header]) -> ElfError {
        Executable::parse(&file(headers)).unwrap_err()
    }

    #[test]
    fn a_static_executable_is_loaded_segment_by_segment() {
        let file = file(&[CODE, DATA, STACK]);
        let executable = Executable::parse(&file).unwrap();
        assert_eq!(executable.entry(), 0x40_0014);
        let segments: Vec<_> = executable.segments().collect();
        assert_eq!(segments.len(), 2);
        assert!(segments[0].execute && !segments[0].write && segments[0].data.len() == 0x20);
        let data = Segment {
            vaddr: 0x40_1030,
            mem_size: 0x2000,
            data: b"initialised data",
            write: true,
            execute: false,
        };
        assert_eq!(segments[1], data);
    }

    #[test]
    fn foreign_files_are_refused() {
        let good = file(&[CODE]);
        for at in [0, 4, 5, 6, 18, 54] {
            let mut bad = good.clone();
            bad[at] ^= 3;
            assert_eq!(Executable::parse(&bad).unwrap_err(), ElfError::Foreign, "byte {at}");
        }
        let mut shared = good.clone();
        shared[16] = 3;
        assert_eq!(Executable::parse(&shared).unwrap_err(), ElfError::NotStatic);
        assert_eq!(Executable::parse(&good[..63]).unwrap_err(), ElfError::Truncated);
        assert_eq!(error(&[CODE, (PT_INTERP, 4, 0x100, 0, 1, 1)]), ElfError::NotStatic);
    }

    #[test]
    fn bad_segments_are_refused() {
        assert_eq!(error(&[]), ElfError::Empty);
        assert_eq!(error(&[DATA]), ElfError::BadEntry);
        assert_eq!(error(&[DATA, CODE]), ElfError::Overlap);
        assert_eq!(error(&[CODE, (PT_LOAD, 4, 0x100, 0x40_002f, 1, 1)]), ElfError::Overlap);
        assert_eq!(error(&[(PT_LOAD, 5, 0x100, 0x40_0000, 0x20, 0x1f)]), ElfError::BadSegment);
        assert_eq!(error(&[(PT_LOAD, 5, 0x1f0, 0x40_0000, 0x20, 0x20)]), ElfError::Truncated);
        assert_eq!(error(&[(PT_LOAD, 5, u64::MAX, 0x40_0000, 2, 2)]), ElfError::Truncated);
        for vaddr in [0, 0xfff, USER_END, USER_END - 0x1f, u64::MAX - 1] {
            assert_eq!(error(&[(PT_LOAD, 5, 0x100, vaddr, 0x20, 0x20)]), ElfError::BadAddress, "{vaddr:x}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_refused_or_loads_into_user_space(
            damage in prop::collection::vec((0usize..0x110, any::<u8>()), 0..8),
            len in 0usize..0x210,
        ) {
            let mut file = file(&[CODE, DATA, STACK]);
            for (at, byte) in damage {
                file[at] = byte;
            }
            file.truncate(len);
            if let Ok(executable) = Executable::parse(&file) {
                let mut end = PAGE_SIZE;
                for segment in executable.segments() {
                    prop_assert!(segment.vaddr >= end && segment.data.len() as u64 <= segment.mem_size);
                    end = segment.vaddr + segment.mem_size;
                }
                prop_assert!(end <= USER_END && executable.segments().count() > 0);
            }
        }
    }
}
