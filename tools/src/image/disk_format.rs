//! What the file of a disk is: its sectors as they are, or a qcow2 image, which only QEMU can be given.
//!
//! The name says which, not the content alone: a guest that writes a qcow2 header to its raw disk must not get whatever file of the
//! host's that header names.

use crate::failure;
use anyhow::Result;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Sectors, one after the other.
    #[default]
    Raw,
    /// QEMU's.
    Qcow2,
}

/// Bytes of a qcow2 header, as far as it is looked at (QEMU, docs/interop/qcow2.txt).
const HEADER_BYTES: usize = 80;
const MAGIC: &[u8] = b"QFI\xfb";
/// Incompatible feature: the data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;
/// How to make another format of one.
const CONVERT: &str = "`qemu-img convert -O raw` (package qemu-utils) makes a raw one of it";

impl Format {
    /// What QEMU calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// What the name of a file says it is.
    pub fn named(path: &Path) -> Self {
        let is_qcow2 = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
        if is_qcow2 { Format::Qcow2 } else { Format::Raw }
    }

    /// Refuses one that the machine's emulator, or the VMM, cannot read.
    pub fn check_reader(self, path: &Path, is_qemu: bool) -> Result<()> {
        if self == Format::Raw || is_qemu {
            return Ok(());
        }
        Err(failure::usage(format!(
            "disk {}: only the disks of QEMU's machines can be qcow2 images, not those of Bochs's or in memory; {CONVERT}",
            path.display()
        )))
    }
}

/// The format of a file and the bytes of the disk in it.
///
/// # Errors
/// The file cannot be read, or is not what its name says.
pub fn examine(path: &Path) -> Result<(Format, u64)> {
    let mut header = Vec::new();
    let opened = File::open(path).and_then(|file| {
        (&file).take(HEADER_BYTES as u64).read_to_end(&mut header)?;
        Ok(file.metadata()?.len())
    });
    let bytes = opened.map_err(|error| failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let format = Format::named(path);
    let disk_bytes = match format {
        Format::Qcow2 => virtual_bytes(&header),
        Format::Raw if is_called_raw(path) || !header.starts_with(MAGIC) => Ok(bytes),
        Format::Raw => Err("it begins as a qcow2 image: name it .qcow2, or .raw if it is none".to_owned()),
    };
    match disk_bytes {
        Ok(bytes) => Ok((format, bytes)),
        Err(what) => Err(failure::usage(format!("disk {}: {what}", path.display()))),
    }
}

fn is_called_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "raw")
}

/// The bytes of the disk in a qcow2 image that needs no other file.
fn virtual_bytes(header: &[u8]) -> Result<u64, String> {
    let word = |at: usize| header[at..].first_chunk().copied().map_or(0, u64::from_be_bytes);
    if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
        return Err("it is no qcow2 image".into());
    }
    let (version, backing_file, disk_bytes) = (word(4) >> 32, word(8), word(24));
    // Version 2 has its first table, or nothing, where version 3 has its features.
    let incompatible = if version == 2 { 0 } else { word(72) };
    if backing_file != 0 || incompatible & EXTERNAL_DATA != 0 {
        return Err(format!("a part of it is in another file; {CONVERT}"));
    }
    Ok(disk_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    fn header(backing_file: u64, features: u64) -> Vec<u8> {
        let mut header = vec![0; 104];
        header[..4].copy_from_slice(MAGIC);
        header[4..8].copy_from_slice(&3u32.to_be_bytes());
        header[8..16].copy_from_slice(&backing_file.to_be_bytes());
        header[24..32].copy_from_slice(&(5u64 << 20).to_be_bytes());
        header[72..80].copy_from_slice(&features.to_be_bytes());
        header
    }

    fn examined(name: &str, content: &[u8]) -> Result<(Format, u64), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        examine(&path).map_err(|error| {
            assert_eq!(crate::failure::kind(&error), Kind::Usage);
            error.to_string()
        })
    }

    #[test]
    fn the_name_says_what_a_file_is() {
        assert_eq!(examined("a.img", &[0; 1024]), Ok((Format::Raw, 1024)));
        assert_eq!(examined("a.QCOW2", &header(0, 0)), Ok((Format::Qcow2, 5 << 20)));
        assert_eq!(examined("a.raw", &header(0, 0)), Ok((Format::Raw, 104)), "a guest wrote that");
        assert!(examined("a.img", &header(0, 0)).unwrap_err().contains("name it .qcow2"));
        assert!(examined("a.qcow2", &[0; 1024]).unwrap_err().contains("no qcow2 image"));
        assert!(examined("a.qcow2", MAGIC).is_err());
    }

    #[test]
    fn an_image_that_names_another_file_is_refused() {
        for content in [header(0x1000, 0), header(0, EXTERNAL_DATA)] {
            assert!(examined("a.qcow2", &content).unwrap_err().contains("qemu-img convert"));
        }
    }

    #[test]
    fn bochs_and_the_vmm_read_raw_images_only() {
        let path = Path::new("a.qcow2");
        assert!(Format::Qcow2.check_reader(path, true).is_ok());
        assert!(Format::Raw.check_reader(path, false).is_ok());
        let error = Format::Qcow2.check_reader(path, false).unwrap_err();
        assert!(error.to_string().contains("qemu-img convert"));
    }
}
