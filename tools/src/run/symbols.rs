//! Names for the addresses in a kernel's epitaph.

use crate::workspace;
use addr2line::Loader;
use std::path::Path;

/// Lowest address of the kernel's image; below, its half of the address space has memory and stacks.
const KERNEL_IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Knows the kernel's functions.
pub struct Symbols {
    loader: Option<Loader>,
}

impl Symbols {
    /// Reads an executable's symbols and line numbers; without them, nothing has a name.
    pub fn read(executable: &Path) -> Self {
        Symbols { loader: Loader::new(executable).ok() }
    }

    /// The lines that explain the kernel addresses in `line`: function, file and line, the innermost inlined call first.
    pub fn explain(&self, line: &str) -> Vec<String> {
        kernel_addresses(line).flat_map(|address| self.describe(address)).collect()
    }

    fn describe(&self, address: u64) -> Vec<String> {
        let Some(loader) = &self.loader else {
            return Vec::new();
        };
        let mut calls = Vec::new();
        if let Ok(mut frames) = loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let function = frame
                    .function
                    .as_ref()
                    .and_then(|name| name.demangle().ok().map(|name| name.into_owned()));
                let place =
                    frame.location.and_then(|at| Some(format!("{}:{}", in_workspace(at.file?), at.line?)));
                if let Some(function) = function {
                    calls.push(format!("{address:#x} {function} {}", place.unwrap_or_default()));
                }
            }
        }
        if calls.is_empty()
            && let Some(symbol) = loader.find_symbol(address)
        {
            calls.push(format!("{address:#x} {}", addr2line::demangle_auto(symbol.into(), None)));
        }
        calls
    }
}

/// A source file as seen from the workspace, if it is in there.
fn in_workspace(file: &str) -> String {
    let path = Path::new(file);
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}

/// The numbers in a line that are addresses in the kernel's image: sixteen hexadecimal digits, with or without `0x`.
fn kernel_addresses(line: &str) -> impl Iterator<Item = u64> {
    line.split(|c: char| !c.is_ascii_alphanumeric())
        .map(|word| word.strip_prefix("0x").unwrap_or(word))
        .filter(|word| word.len() == 16)
        .filter_map(|word| u64::from_str_radix(word, 16).ok())
        .filter(|&address| address >= KERNEL_IMAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_addresses_are_found_in_a_line() {
        let line =
            "rip ffffffff80001234 rsp=0xffffffff80200000 rax 0000000000000001 deadbeef ec ffff80000073de00";
        assert_eq!(
            kernel_addresses(line).collect::<Vec<_>>(),
            [0xffff_ffff_8000_1234, 0xffff_ffff_8020_0000]
        );
    }
}
