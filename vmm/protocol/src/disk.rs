//! Disks in the manifest: what they are, and which VM has them.

use crate::manifest::{ManifestError, OnCrash, VmConfig, is_name};
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Most disks in a system.
pub const MAX_DISKS: usize = 8;

/// A disk. It belongs to one VM at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name: as a VM's.
    pub name: String,
    /// Who serves it.
    pub driver: DiskDriver,
    /// For [`DiskDriver::Memory`], the boot module with its content. For the others, where `cargo nacre run` finds the file that
    /// it connects to the emulator; the root task does not look at it.
    #[serde(default)]
    pub image: String,
    /// Nobody writes to it.
    #[serde(default)]
    pub read_only: bool,
    /// What a crash of its driver does, beside I/O errors for what was pending.
    #[serde(default)]
    pub on_crash: OnCrash,
}

/// Who serves a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskDriver {
    /// The VMM itself, from a boot module: changes are lost when the VM ends.
    Memory,
    /// The driver process for the first drive of the first ATA channel (ports 1F0H to 1F7H and 3F6H, ISA interrupt 14).
    Ata,
    /// The driver process for virtio block devices on PCI. The disks with this driver are the machine's devices of that
    /// kind in the order of their PCI addresses.
    VirtioBlk,
}

impl DiskDriver {
    /// Its name in the manifest.
    pub const fn name(self) -> &'static str {
        match self {
            DiskDriver::Memory => "memory",
            DiskDriver::Ata => "ata",
            DiskDriver::VirtioBlk => "virtio-blk",
        }
    }

    /// Name of the boot module with the executable of its process, if it is one.
    pub const fn module(self) -> Option<&'static str> {
        match self {
            DiskDriver::Memory => None,
            DiskDriver::Ata => Some("drv-ata"),
            DiskDriver::VirtioBlk => Some("drv-virtio-blk"),
        }
    }
}

/// Checks what the types leave open about the disks and about who has them.
pub fn check(disks: &[DiskConfig], vms: &[VmConfig]) -> Result<(), ManifestError> {
    if disks.len() > MAX_DISKS {
        return Err(ManifestError::TooManyDisks(disks.len()));
    }
    for (index, disk) in disks.iter().enumerate() {
        if !is_name(&disk.name) {
            return Err(ManifestError::DiskName(disk.name.clone()));
        }
        if disks[..index].iter().any(|other| other.name == disk.name) {
            return Err(ManifestError::DuplicateDisk(disk.name.clone()));
        }
        if disk.driver == DiskDriver::Memory && disk.image.is_empty() {
            return Err(ManifestError::DiskImage(disk.name.clone()));
        }
        let is_second = disks[..index].iter().any(|other| other.driver == DiskDriver::Ata);
        if disk.driver == DiskDriver::Ata && is_second {
            return Err(ManifestError::SecondAtaDisk(disk.name.clone()));
        }
        let uses = vms.iter().flat_map(|vm| &vm.disks).filter(|name| **name == disk.name).count();
        if uses > 1 {
            return Err(ManifestError::SharedDisk(disk.name.clone()));
        }
    }
    for vm in vms {
        let unknown = vm.disks.iter().find(|name| disks.iter().all(|disk| disk.name != **name));
        if let Some(disk) = unknown {
            return Err(ManifestError::UnknownDisk { vm: vm.name.clone(), disk: disk.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn disk(name: &str, driver: DiskDriver) -> DiskConfig {
        DiskConfig {
            name: name.into(),
            driver,
            image: "image".into(),
            read_only: false,
            on_crash: OnCrash::Report,
        }
    }

    fn vm(disks: &[&str]) -> VmConfig {
        let disks = disks.iter().map(|&name| name.into()).collect();
        VmConfig { disks, ..crate::manifest::tests::vm("linux") }
    }

    fn check(disks: &[DiskConfig], vms: &[VmConfig]) -> Result<(), ManifestError> {
        super::check(disks, vms)
    }

    #[test]
    fn every_driver_may_serve_a_vm_at_once() {
        let disks = [
            disk("a", DiskDriver::Memory),
            disk("b", DiskDriver::Ata),
            disk("c", DiskDriver::VirtioBlk),
            disk("d", DiskDriver::VirtioBlk),
        ];
        assert_eq!(check(&disks, &[vm(&["a", "b", "c"]), vm(&["d"])]), Ok(()));
        assert_eq!(check(&disks, &[vm(&[])]), Ok(()), "a disk may be nobody's");
    }

    #[test]
    fn every_impossible_disk_is_named() {
        let (ata, memory) = (disk("a", DiskDriver::Ata), disk("m", DiskDriver::Memory));
        let many: Vec<DiskConfig> = vec![disk("m", DiskDriver::Memory); MAX_DISKS + 1];
        assert_eq!(check(&many, &[]), Err(ManifestError::TooManyDisks(MAX_DISKS + 1)));
        let unnamed = disk("a b", DiskDriver::Memory);
        assert_eq!(check(&[unnamed], &[]), Err(ManifestError::DiskName("a b".into())));
        let twice = [memory.clone(), memory.clone()];
        assert_eq!(check(&twice, &[]), Err(ManifestError::DuplicateDisk("m".into())));
        let empty = DiskConfig { image: String::new(), ..memory.clone() };
        assert_eq!(check(&[empty], &[]), Err(ManifestError::DiskImage("m".into())));
        let two = [ata, disk("b", DiskDriver::Ata)];
        assert_eq!(check(&two, &[]), Err(ManifestError::SecondAtaDisk("b".into())));
        let shared = [vm(&["m"]), vm(&["m"])];
        assert_eq!(
            check(core::slice::from_ref(&memory), &shared),
            Err(ManifestError::SharedDisk("m".into()))
        );
        let unknown = ManifestError::UnknownDisk { vm: "linux".into(), disk: "x".into() };
        assert_eq!(check(&[memory], &[vm(&["x"])]), Err(unknown));
    }
}
