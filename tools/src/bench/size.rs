//! The size of the kernel: lines of code, and bytes of code and constants.

use crate::{compile, workspace};
use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::{PF_W, PT_LOAD};
use elf::endian::LittleEndian;
use std::fs;
use std::path::{Path, PathBuf};

/// Our packages that are linked into the kernel.
const PACKAGES: [&str; 4] = ["kernel", "khw", "kcore", "hypercall-abi"];

/// Lines of code in all that is ours and in the kernel: neither blank nor comment, without tests.
pub fn kernel_lines() -> Result<u64> {
    let metadata = compile::metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut lines = 0;
    for name in PACKAGES {
        let package = packages
            .iter()
            .find(|package| package["name"] == name)
            .with_context(|| format!("there is no package {name}"))?;
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let sources = Path::new(manifest).with_file_name("src");
        for file in source_files(&sources)? {
            let text = String::from_utf8_lossy(&workspace::read(&file)?).into_owned();
            lines += code_lines(&text);
        }
    }
    Ok(lines)
}

/// Source files below a folder, without those of tests and checkers, which the release build does not have.
fn source_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if stem.ends_with("tests") || stem.ends_with("_checker") || stem == "fake" {
            continue;
        }
        if path.is_dir() {
            files.extend(source_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "S") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Lines that are neither blank nor comment, up to the module with the tests.
fn code_lines(text: &str) -> u64 {
    let mut count = 0;
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.starts_with("mod ")) {
            // The tests are the end of a file, or one line that names their own.
            if lines.next().is_some_and(|module| module.ends_with('{')) {
                break;
            }
            continue;
        }
        count += u64::from(!line.is_empty() && !line.starts_with("//"));
    }
    count
}

/// Bytes of the kernel that are loaded and never written: code and constants.
pub fn text_and_rodata() -> Result<u64> {
    let file = workspace::read(&workspace::bare_binary("kernel"))?;
    let elf = ElfBytes::<LittleEndian>::minimal_parse(&file)?;
    let segments = elf.segments().context("the kernel has no segments")?;
    let constant = segments.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_flags & PF_W == 0);
    Ok(constant.map(|segment| segment.p_filesz).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blank_lines_and_tests_do_not_count() {
        let text = "//! Docs.\n\nuse a::b; // why\n/// More.\nfn f() {\n    // Nothing.\n}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
        assert_eq!(code_lines(text), 3);
        assert_eq!(code_lines("#[cfg(test)]\nmod tests;\nfn f() {}\n"), 1);
    }
}
