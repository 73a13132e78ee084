//! Traces of QEMU: its gdb server steps from marker to marker, and the executables say what was executed.

use super::bochs_trace::GUEST_END;
use super::gdb::Gdb;
use super::heavy::{self, Counts, MAX_LENGTH};
use crate::workspace;
use anyhow::{Context, Result};
use bench_protocol::GUEST_MODULE;
use elf::ElfBytes;
use elf::abi::{PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use std::path::Path;

/// Name of the gdb server's socket, in the run's folder.
const SOCKET: &str = "gdb.sock";
/// The marker: `xchg bx, bx`, in 64-bit and in 16-bit code.
const MARKERS: [&[u8]; 2] = [&[0x66, 0x87, 0xdb], &[0x87, 0xdb]];
/// Where the benchmark's own guest has its code (`tests/bench/src/guest.rs`).
const GUEST_CODE: u64 = 0x1000;
/// No operation has more instructions.
const MAX_STEPS: usize = 100_000;

/// Options that QEMU needs for a trace.
pub fn options() -> [String; 3] {
    ["-S".into(), "-gdb".into(), format!("unix:{SOCKET},server=on,wait=off")]
}

/// Where things are in the executables.
#[derive(Debug)]
pub struct Code {
    /// The kernel: address and bytes of each executable segment.
    kernel: Vec<(u64, Vec<u8>)>,
    /// First instruction of Rust code of the benchmark.
    main: u64,
    /// Addresses of the markers.
    markers: Vec<u64>,
}

impl Code {
    /// Reads the executables.
    pub fn read() -> Result<Self> {
        let program = |name: &str| workspace::read(&workspace::bare_binary(name));
        let bench = program("bench")?;
        let mut markers = Vec::new();
        for file in [&bench, &program(GUEST_MODULE)?] {
            for (address, bytes) in executable_segments(file)? {
                markers.extend(find_markers(&bytes).map(|offset| address + offset));
            }
        }
        markers.extend(find_markers(&guest_code(&bench)?).map(|offset| GUEST_CODE + offset));
        Ok(Code {
            kernel: executable_segments(&program("kernel")?)?,
            main: symbol(&bench, "usys_main")?,
            markers,
        })
    }

    /// Whether the machine is at a marker: other programs have other code at the same addresses.
    fn is_marker(&self, gdb: &mut Gdb, at: u64) -> Result<bool> {
        Ok(self.markers.contains(&at) && (at < GUEST_END || gdb.read(at, MARKERS[0].len())? == MARKERS[0]))
    }

    /// The bytes from an address on, unless they are a guest's.
    fn bytes(&self, gdb: &mut Gdb, at: u64) -> Result<Option<Vec<u8>>> {
        let in_kernel = self.kernel.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
            bytes.get(offset..)
        });
        Ok(match in_kernel {
            Some(bytes) => Some(bytes[..bytes.len().min(MAX_LENGTH)].to_vec()),
            None if at >= GUEST_END => Some(gdb.read(at, MAX_LENGTH)?),
            None => None,
        })
    }

    /// Counts the instruction at an address, unless it is a guest's. Each iteration of a REP is a step: the first one counts.
    fn count(&self, gdb: &mut Gdb, at: u64, last: u64, counts: &mut Counts) -> Result<()> {
        let Some(bytes) = self.bytes(gdb, at)? else {
            return Ok(());
        };
        match heavy::repeated(&bytes) {
            Some((class, size)) if at != last => heavy::count_bytes(counts, class, gdb.rcx() * size),
            Some(_) => {}
            None => heavy::count(counts, &bytes),
        }
        Ok(())
    }
}

/// Steps through the windows of a run that has just started in `folder`: the counts of each, in order.
pub fn trace(folder: &Path, code: &Code) -> Result<Vec<Counts>> {
    let mut gdb = Gdb::connect(&folder.join(SOCKET))?;
    // The firmware runs at the addresses of the guests' markers.
    gdb.set_breakpoint(code.main)?;
    if gdb.run()?.is_none() {
        return Ok(Vec::new());
    }
    gdb.clear_breakpoint(code.main)?;
    code.markers.iter().try_for_each(|&marker| gdb.set_breakpoint(marker))?;
    let mut windows = Vec::new();
    while let Some(at) = gdb.run()? {
        if !code.is_marker(&mut gdb, at)? {
            // Off the breakpoint, which would stop the machine again.
            gdb.step()?;
            continue;
        }
        match window(&mut gdb, code)? {
            Some(counts) => windows.push(counts),
            None => break,
        }
    }
    Ok(windows)
}

/// From the first marker of a window beyond its second one; `None` if the machine ended.
fn window(gdb: &mut Gdb, code: &Code) -> Result<Option<Counts>> {
    let mut counts = Counts::new();
    let mut last = 0;
    for _ in 0..MAX_STEPS {
        let Some(at) = gdb.step()? else {
            return Ok(None);
        };
        if code.is_marker(gdb, at)? {
            return Ok(gdb.step()?.map(|_| counts));
        }
        code.count(gdb, at, last, &mut counts)?;
        last = at;
    }
    Ok(None)
}

fn executable_segments(file: &[u8]) -> Result<Vec<(u64, Vec<u8>)>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    let segments = elf.segments().context("an executable has no segments")?;
    let code = segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_flags & PF_X != 0);
    code.map(|segment| Ok((segment.p_vaddr, elf.segment_data(&segment)?.to_vec()))).collect()
}

/// Offsets of the markers in code. A marker in 64-bit code contains one of 16-bit code.
fn find_markers(code: &[u8]) -> impl Iterator<Item = u64> {
    let mut found = Vec::new();
    let mut offset = 0;
    while offset < code.len() {
        match MARKERS.iter().find(|marker| code[offset..].starts_with(marker)) {
            Some(marker) => {
                found.push(offset as u64);
                offset += marker.len();
            }
            None => offset += 1,
        }
    }
    found.into_iter()
}

/// The guest's code in the benchmark's executable.
fn guest_code(file: &[u8]) -> Result<Vec<u8>> {
    let (start, end) = (symbol(file, "bench_guest_start")?, symbol(file, "bench_guest_end")?);
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    let segments = elf.segments().context("an executable has no segments")?;
    let segment = segments
        .iter()
        .find(|segment| (segment.p_vaddr..segment.p_vaddr + segment.p_filesz).contains(&start))
        .context("the benchmark has no guest")?;
    let data = elf.segment_data(&segment)?;
    let range = (start - segment.p_vaddr) as usize..(end - segment.p_vaddr) as usize;
    Ok(data.get(range).context("the guest is cut off")?.to_vec())
}

fn symbol(file: &[u8], name: &str) -> Result<u64> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    let (symbols, names) = elf.symbol_table()?.context("an executable has no symbols")?;
    symbols
        .iter()
        .find(|symbol| names.get(symbol.st_name as usize).is_ok_and(|known| known == name))
        .map(|symbol| symbol.st_value)
        .with_context(|| format!("the benchmark has no symbol {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_of_both_modes_are_found_once() {
        let code = [0x90, 0x66, 0x87, 0xdb, 0x90, 0x87, 0xdb];
        assert_eq!(find_markers(&code).collect::<Vec<_>>(), [1, 5]);
    }
}
