//! The disks of VMs.

use super::OnCrash;
use crate::process::driver;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Most disks of a VM.
pub const MAX_DISKS: usize = 6;

/// Most queues of a virtio disk, and pairs of queues of a virtio network card.
pub const MAX_QUEUES: u16 = 16;

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// For [`DiskDriver::Memory`], the boot module with its content, whole sectors of 512 bytes; one that a VM may write is
    /// nothing else to anybody. For the others, the file that `cargo nacre run` makes a disk of the machine; the root task does not
    /// look at it.
    #[serde(default)]
    pub image: String,
    /// Whether the VM may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Who serves it.
    #[serde(default)]
    pub driver: DiskDriver,
    /// What a crash of its driver process does, beside I/O errors for what was pending.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// A driver process that has something to do and completes nothing for so many ms, twice that at most, is ended as one that
    /// crashed (100 to 3 600 000). Less than a drive may take to find itself is too little: an ATA reset takes up to 31 s.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
    /// How the guest reaches it.
    #[serde(default)]
    pub interface: DiskInterface,
    /// Queues of a virtio disk: 1 to [`MAX_QUEUES`]. Linux uses one for each of its CPUs at most.
    #[serde(default = "one_queue")]
    pub queues: u16,
}

pub(super) const fn one_queue() -> u16 {
    1
}

/// What [`DiskConfig::timeout_ms`] is by itself: the drivers have given up after 91 s at most, of which an ATA drive may take 60 to empty
/// its cache.
pub const DEFAULT_TIMEOUT_MS: u32 = 100_000;
/// What it can be.
pub const TIMEOUTS_MS: core::ops::RangeInclusive<u32> = 100..=3_600_000;

const fn default_timeout_ms() -> u32 {
    DEFAULT_TIMEOUT_MS
}

/// Who serves a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskDriver {
    /// The VMM itself, from a boot module: changes are lost when the VM ends.
    #[default]
    Memory,
    /// A driver process for the first drive of an ATA channel. The first disk with this driver is on the first channel (ports
    /// 1F0H to 1F7H and 3F6H, ISA interrupt 14), the second one on the second (170H to 177H and 376H, 15).
    Ata,
    /// A driver process for a virtio block device on PCI. The disks with this driver are the machine's devices of that kind in
    /// the order of their addresses. Without an IOMMU the device reaches all memory.
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

    /// How many disks it can serve in a system.
    pub const fn max_disks(self) -> usize {
        match self {
            DiskDriver::Memory => usize::MAX,
            DiskDriver::Ata => driver::ata::IRQ.len(),
            DiskDriver::VirtioBlk => driver::virtio::MAX_DEVICES,
        }
    }

    /// Every driver.
    pub const ALL: [DiskDriver; 3] = [DiskDriver::Memory, DiskDriver::Ata, DiskDriver::VirtioBlk];

    /// Every driver that is a process.
    pub const PROCESSES: [DiskDriver; 2] = [DiskDriver::Ata, DiskDriver::VirtioBlk];
}

/// How a guest reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskInterface {
    /// By a virtio driver, such as Linux's.
    #[default]
    Virtio,
    /// By guest-pv-driver.
    Pv,
}
