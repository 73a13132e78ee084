//! Disks of VMs: files that become boot modules, or disks of the machine.

use super::disk_format::{self, Format};
use super::modules::Collector;
use crate::failure;
use crate::run::machine::Machine;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use vmm_protocol::manifest::{DiskConfig, DiskDriver, Manifest};

/// Bytes of a sector.
const SECTOR_BYTES: u64 = 512;

/// A disk of the machine, made of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    /// Who drives it, and so what it is.
    pub driver: DiskDriver,
    /// Its number among the disks with that driver.
    pub device: usize,
    /// Name of a link to the file in the folder of the run.
    pub file: String,
    /// What the file is.
    pub format: Format,
    /// The file is not written.
    pub is_read_only: bool,
}

/// Takes in a disk: one in memory as a boot module, whose name is returned; one of the machine stays where it is. One in memory that
/// is written is nobody else's, so it is taken anew each time.
pub fn pack(path: &Path, disk: &DiskConfig, collector: &mut Collector) -> Result<String> {
    let format = check(path)?;
    if disk.driver == DiskDriver::Memory {
        format.check_reader(path, false)?;
    }
    match (disk.driver, disk.read_only) {
        (DiskDriver::Memory, true) => collector.add_file(path),
        (DiskDriver::Memory, false) => collector.add_copy(path),
        (_, is_read_only) => {
            check_access(path, is_read_only)?;
            let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| failure::usage(format!("disk {}: its name is no UTF-8", path.display())))
        }
    }
}

/// Refuses a file that cannot be a disk; says what it is.
pub fn check(path: &Path) -> Result<Format> {
    let (format, bytes) = disk_format::examine(path)?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(failure::usage(format!(
            "disk {}: {bytes} bytes are no whole number of sectors of {SECTOR_BYTES} bytes",
            path.display()
        )));
    }
    Ok(format)
}

/// Refuses a file that the emulator could not open.
fn check_access(path: &Path, is_read_only: bool) -> Result<()> {
    let opened = std::fs::File::options().read(true).write(!is_read_only).open(path).map(drop);
    opened.map_err(|error| {
        let hint = if is_read_only { "" } else { "; `,ro` or read_only gives it to the guest unwritten" };
        failure::usage(format!("disk {}: {error}{hint}", path.display()))
    })
}

/// Refuses a file that is two disks of the machine, of which one is written.
pub fn check_shared(manifest: &Manifest) -> Result<()> {
    let disks: Vec<&DiskConfig> = of_machine(manifest).collect();
    let is_shared = |disk: &&&DiskConfig| {
        !disk.read_only && disks.iter().filter(|other| other.image == disk.image).count() > 1
    };
    match disks.iter().find(is_shared) {
        Some(disk) => Err(failure::usage(format!(
            "disk {} is used twice: make it read-only everywhere, or copy it",
            disk.image
        ))),
        None => Ok(()),
    }
}

/// Makes the files of the manifest's disks ready for the emulator, which will run in `folder`. Links keep whatever there is in
/// their paths away from the emulators' own syntax, and Bochs's lock files away from their folders.
pub fn lay_out(manifest: &Manifest, folder: &Path, machine: Machine) -> Result<Vec<MachineDisk>> {
    let mut disks: Vec<MachineDisk> = Vec::new();
    for disk in of_machine(manifest) {
        let file = format!("disk{}.img", disks.len());
        let image = PathBuf::from(&disk.image);
        let format = Format::named(&image);
        format.check_reader(&image, !machine.is_bochs())?;
        std::os::unix::fs::symlink(&image, folder.join(&file))
            .with_context(|| format!("cannot link to {}", disk.image))?;
        let device = disks.iter().filter(|other| other.driver == disk.driver).count();
        disks.push(MachineDisk { driver: disk.driver, device, file, format, is_read_only: disk.read_only });
    }
    Ok(disks)
}

/// The disks that are files and disks of the machine.
pub fn of_machine(manifest: &Manifest) -> impl Iterator<Item = &DiskConfig> {
    let disks = manifest.vms.iter().flat_map(|vm| &vm.disks);
    disks.filter(|disk| disk.driver != DiskDriver::Memory && !disk.image.is_empty())
}
