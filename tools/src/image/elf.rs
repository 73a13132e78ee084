//! Executables as the boot loader needs them.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use elf::ElfBytes;
use elf::endian::LittleEndian;
use std::path::Path;

/// Offsets in an ELF64 header of the fields that describe the section headers (ELF-64 Object File Format, figure 2).
const E_SHOFF: std::ops::Range<usize> = 40..48;
const E_SHNUM_SHSTRNDX: std::ops::Range<usize> = 60..64;

/// Reads an executable and drops what is only for debuggers.
pub fn loadable(path: &Path) -> Result<Vec<u8>> {
    without_sections(workspace::read(path)?)
        .with_context(|| format!("{} is no usable executable", path.display()))
}

/// Cuts an ELF64 executable after its last segment and takes the section headers out of its header. What remains loads
/// exactly as before: every offset stays.
fn without_sections(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(&bytes)?;
    ensure!(file.ehdr.class == elf::file::Class::ELF64, "it is no ELF64 file");
    let segments = file.segments().context("it has no program headers")?;
    let headers_end = file.ehdr.e_phoff + u64::from(file.ehdr.e_phnum) * u64::from(file.ehdr.e_phentsize);
    let end = segments
        .iter()
        .map(|segment| segment.p_offset.saturating_add(segment.p_filesz))
        .fold(headers_end, u64::max);
    ensure!(end <= bytes.len() as u64, "it is cut short");
    bytes.truncate(usize::try_from(end)?);
    bytes[E_SHOFF].fill(0);
    bytes[E_SHNUM_SHSTRNDX].fill(0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 file of one segment (header included) of `filesz` bytes, followed by `extra` bytes.
    fn executable(filesz: u64, extra: usize) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for value in [0x20_0000u64, 64, 0] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        for value in [0, 0x20_0000, 0x20_0000, filesz, filesz, 4096] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.resize(filesz as usize + extra, 0xcc);
        bytes
    }

    #[test]
    fn what_follows_the_last_segment_is_cut() {
        let stripped = without_sections(executable(200, 5000)).unwrap();
        assert_eq!(stripped.len(), 200);
        assert_eq!(ElfBytes::<LittleEndian>::minimal_parse(&stripped).unwrap().segments().unwrap().len(), 1);
    }

    #[test]
    fn an_executable_that_is_cut_short_is_refused() {
        let mut bytes = executable(200, 0);
        bytes.truncate(150);
        assert!(without_sections(bytes).unwrap_err().to_string().contains("cut short"));
    }
}
