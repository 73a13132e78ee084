//! The virtio devices of the VM.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use usys::cpu;
use usys::process::{ProcessInfo, padded};
use vdev::block::{Disk, MemoryDisk};
use vdev::entropy::Words;
use vdev::virtio::block::Block;
use vdev::virtio::entropy::EntropyDevice;
use vmm_core::virtio::VirtioDevice;
use vmm_protocol::manifest::{DiskConfig, VmConfig};
use vmm_protocol::process::DISK;

/// Queues of a disk: the VM has one CPU.
const DISK_QUEUES: usize = 1;

/// The disks that the manifest says, in its order, then a source of random numbers if this CPU has one.
pub fn devices(info: &'static ProcessInfo, config: &VmConfig) -> Result<Vec<VirtioDevice>, &'static str> {
    let disks = config.disks.iter().enumerate();
    let mut devices = disks.map(|(index, disk)| open(info, index, disk)).collect::<Result<Vec<_>, _>>()?;
    if cpu::has_random() {
        devices.push(VirtioDevice::Entropy(EntropyDevice::new(Box::new(Words(cpu::random)))));
    }
    Ok(devices)
}

fn open(info: &'static ProcessInfo, index: usize, disk: &DiskConfig) -> Result<VirtioDevice, &'static str> {
    const MISSING: &str = "a disk is not mapped";
    let region = format!("{DISK}{index}");
    let content = if disk.read_only {
        MemoryDisk::read_only(info.constant(&region).ok_or(MISSING)?)
    } else {
        MemoryDisk::writable(info.take_private(&region).ok_or(MISSING)?)
    };
    let disk = Disk::new(Box::new(content));
    Ok(VirtioDevice::Block(Block::new(disk, padded(&format!("nacre-{region}")), DISK_QUEUES)))
}
