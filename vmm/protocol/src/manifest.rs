//! Which VMs to start and from what.
//!
//! The host tool reads TOML, checks it, and puts the postcard form into the boot image as the module [`MODULE`].

mod devices;
mod disk;
mod network;
mod vsock;

use crate::balloon;
use crate::process::{MAX_VMS, switch};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

pub use devices::{ConsoleInterface, MAX_VIRTIO_DEVICES};
pub use disk::{
    DEFAULT_TIMEOUT_MS, DiskConfig, DiskDriver, DiskInterface, MAX_DISKS, MAX_QUEUES, TIMEOUTS_MS,
};
pub use network::{
    CardConfig, MAX_CARDS, MAX_NETWORKS, MacAddress, NetInterface, NetworkConfig, NotAnAddress,
    SWITCH_MODULE, Uplink,
};
pub use vsock::{CIDS, VsockConfig};

/// Name of the boot module that holds the manifest.
pub const MODULE: &str = "manifest";
/// Name of the boot module with the VMM's executable.
pub const MONITOR_MODULE: &str = "monitor";
/// Name of the boot module with the console server's executable.
pub const CONSOLE_MODULE: &str = "console";
/// Name of the boot module with the root task's executable: always the first module.
pub const ROOT_MODULE: &str = "root";

/// The whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// How the console server uses the serial line.
    #[serde(default)]
    pub console: ConsoleMode,
    /// What the root task does when every VM has ended.
    #[serde(default)]
    pub when_done: WhenDone,
    /// What the CPUs do is recorded, and printed at the end: see [`crate::trace`].
    #[serde(default)]
    pub trace: Option<TraceConfig>,
    /// The networks; names distinct.
    #[serde(default, rename = "network")]
    pub networks: Vec<NetworkConfig>,
    /// The VMs; at least one, names distinct.
    #[serde(rename = "vm")]
    pub vms: Vec<VmConfig>,
}

/// When to record what the CPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceConfig {
    /// How many events to keep for each CPU: the last ones.
    pub events: u32,
    /// Begin so long after the root task, in µs.
    #[serde(default)]
    pub from_us: u64,
    /// Stop so long after the root task, in µs; not there: when every VM has ended.
    #[serde(default)]
    pub to_us: Option<u64>,
}

/// How the console server uses COM1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleMode {
    /// Text for a person at the other end: with one VM its console as it is, with several each line behind the VM's name.
    #[default]
    Plain,
    /// Frames of [`crate::link`], for `cargo nacre`.
    Framed,
}

/// What to do when every VM has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenDone {
    /// Power the machine off (on test machines, end the emulator).
    #[default]
    Poweroff,
    /// Stay.
    Halt,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Its name: 1 to 15 letters, digits, `-`, `_`.
    pub name: String,
    /// Boot module with the kernel: bzImage, PVH ELF or Multiboot1 ELF32.
    pub kernel: String,
    /// Boot modules that make up the initrd, concatenated (each padded to 4 bytes); for Multiboot, the modules.
    #[serde(default)]
    pub initrd: Vec<String>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// Guest memory in MiB (1 to 1 048 576).
    pub memory_mib: u32,
    /// The VM may do with less memory, and then others get it.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// What its console is.
    #[serde(default)]
    pub console: ConsoleInterface,
    /// Whether its virtio devices offer packed queues beside split ones, which cost less.
    #[serde(default)]
    pub packed_queues: bool,
    /// Host CPU of its vCPU.
    #[serde(default)]
    pub cpu: u16,
    /// Scheduling priority (1 to 30); the console server has 31.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// What a reset by the guest does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// What a crash of the VMM does.
    #[serde(default)]
    pub on_crash: OnCrash,
    /// Boot module with the executable of the VMM.
    #[serde(default = "default_vmm")]
    pub vmm: String,
    /// CPU features to hide, by their name in Linux's /proc/cpuinfo (`avx2`, `x2apic`, …).
    #[serde(default)]
    pub hide_features: Vec<String>,
    /// Whether the VMM's log says at the end how much time passed outside the guest, beside how often it exited.
    #[serde(default)]
    pub statistics: bool,
    /// Its disks: the first that is virtio's is Linux's /dev/vda.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskConfig>,
    /// Its network cards.
    #[serde(default, rename = "network")]
    pub cards: Vec<CardConfig>,
    /// Its socket device: Linux's AF_VSOCK.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// The VM is debugged: it stops before its first instruction and waits for gdb on [`crate::link::Stream::Gdb`].
    #[serde(default)]
    pub debug: bool,
}

/// How little memory a VM can be asked to do with, by a driver of its balloon.
///
/// What the guest gives away, or reports as free, goes to the machine's free memory. A VM that does not start for want of memory
/// has the balloons of others inflated, and waits for it. What the guest touches comes back; where there is none, the VM ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Memory in MiB that it is never asked for.
    pub min_mib: u32,
    /// Whether the guest reports what is free without being asked. It costs what the memory costs that comes back.
    #[serde(default = "default_reports")]
    pub reports: bool,
}

const fn default_reports() -> bool {
    true
}

const fn default_priority() -> u8 {
    16
}

fn default_vmm() -> String {
    MONITOR_MODULE.into()
}

/// What a reset by the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// The VM ends.
    #[default]
    End,
    /// The VM starts again from its kernel.
    Restart,
}

/// What a crash of the VMM does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// It is reported.
    #[default]
    Report,
    /// It is reported, and the VM starts again in a new VMM, at most three times.
    Restart,
}

/// Most events that can be kept for each CPU.
pub const MAX_TRACE_EVENTS: u32 = 1 << 22;
/// Longest name of a VM, in bytes.
pub const MAX_NAME: usize = 15;
/// Most guest memory, in MiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Least and most important priority of a VM.
pub const PRIORITIES: core::ops::RangeInclusive<u8> = 1..=30;

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// It lists no VM.
    NoVm,
    /// It lists more VMs than [`MAX_VMS`].
    TooManyVms(usize),
    /// A VM's name is not 1 to [`MAX_NAME`] letters, digits, `-`, `_`.
    Name(String),
    /// Two VMs have this name.
    Duplicate(String),
    /// The memory of this VM is not 1 to [`MAX_MEMORY_MIB`] MiB.
    Memory(String),
    /// The balloon of this VM leaves it more memory than it has, or it has more than [`balloon::MAX_MEMORY_MIB`].
    Balloon(String),
    /// The priority of this VM is not in [`PRIORITIES`].
    Priority(String),
    /// This VM names no kernel.
    Kernel(String),
    /// This VM has more disks than [`MAX_DISKS`].
    TooManyDisks(String),
    /// A VM has more virtio devices than [`MAX_VIRTIO_DEVICES`].
    TooManyVirtioDevices {
        /// The VM.
        vm: String,
        /// How many.
        count: usize,
    },
    /// This boot module is a disk that a VM may write, and something else too.
    SharedDisk(String),
    /// The trace keeps none, or more than [`MAX_TRACE_EVENTS`] events.
    TraceEvents(u32),
    /// A disk in memory of this VM has no image.
    DiskImage(String),
    /// The time that a disk's driver of this VM has is not in [`TIMEOUTS_MS`].
    DiskTimeout(String),
    /// A disk of this VM has no queue, or more than [`MAX_QUEUES`].
    DiskQueues(String),
    /// A network card of this VM has no pair of queues, or more than [`MAX_QUEUES`].
    CardQueues(String),
    /// There are more disks with this driver than it can serve.
    DriverDisks(DiskDriver),
    /// It lists more networks than [`MAX_NETWORKS`].
    TooManyNetworks(usize),
    /// A network's name is not 1 to [`MAX_NAME`] letters, digits, `-`, `_`.
    NetworkName(String),
    /// Two networks have this name.
    DuplicateNetwork(String),
    /// This VM has more network cards than [`MAX_CARDS`].
    TooManyCards(String),
    /// A card of this VM is on a network that is not listed.
    NoNetwork {
        /// The VM.
        vm: String,
        /// The network.
        network: String,
    },
    /// This network has more cards than its switch has ports.
    TooManyPorts(String),
    /// The context id of this VM is not in [`CIDS`].
    Cid {
        /// The VM.
        vm: String,
        /// The context id.
        cid: u32,
    },
    /// Two VMs on this network have the same context id.
    DuplicateCid {
        /// The network.
        network: String,
        /// The context id.
        cid: u32,
    },
    /// Two cards on this network have the same address.
    DuplicateAddress {
        /// The network.
        network: String,
        /// The address.
        address: MacAddress,
    },
    /// More networks have this uplink than there can be.
    Uplinks(Uplink),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestError::NoVm => write!(f, "it lists no VM: add a [[vm]] section"),
            ManifestError::TooManyVms(count) => write!(f, "{count} VMs, at most {MAX_VMS} are possible"),
            ManifestError::Name(name) => {
                write!(f, "VM name {name:?}: give 1 to {MAX_NAME} letters, digits, '-' or '_'")
            }
            ManifestError::Duplicate(name) => write!(f, "two VMs are named {name:?}: rename one"),
            ManifestError::Memory(name) => {
                write!(f, "VM {name:?}: memory_mib must be 1 to {MAX_MEMORY_MIB}")
            }
            ManifestError::Balloon(name) => {
                let most = balloon::MAX_MEMORY_MIB;
                write!(
                    f,
                    "VM {name:?}: with a balloon, memory_mib must be at most {most}, and min_mib 1 to memory_mib"
                )
            }
            ManifestError::Priority(name) => {
                let (low, high) = (PRIORITIES.start(), PRIORITIES.end());
                write!(f, "VM {name:?}: priority must be {low} to {high}")
            }
            ManifestError::Kernel(name) => write!(f, "VM {name:?}: kernel is empty"),
            ManifestError::TooManyDisks(name) => {
                write!(f, "VM {name:?}: at most {MAX_DISKS} disks are possible")
            }
            ManifestError::TooManyVirtioDevices { vm, count } => {
                write!(
                    f,
                    "VM {vm:?}: {count} virtio devices (disks, network cards, console, balloon, sockets, random numbers), at most \
                     {MAX_VIRTIO_DEVICES} are possible: make some disks or cards `pv`"
                )
            }
            ManifestError::SharedDisk(image) => {
                write!(f, "disk {image:?} is used twice: make it read_only everywhere, or copy it")
            }
            ManifestError::TraceEvents(events) => {
                write!(f, "a trace of {events} events: it must keep 1 to {MAX_TRACE_EVENTS}")
            }
            ManifestError::DiskImage(name) => write!(f, "VM {name:?}: a disk in memory needs an image"),
            ManifestError::DiskTimeout(name) => {
                let (least, most) = (TIMEOUTS_MS.start(), TIMEOUTS_MS.end());
                write!(f, "VM {name:?}: a disk's timeout_ms must be {least} to {most}")
            }
            ManifestError::DiskQueues(name) => {
                write!(f, "VM {name:?}: a virtio disk has 1 to {MAX_QUEUES} queues, another one 1")
            }
            ManifestError::CardQueues(name) => {
                write!(f, "VM {name:?}: a virtio card has 1 to {MAX_QUEUES} pairs of queues, another one 1")
            }
            ManifestError::DriverDisks(driver) => {
                write!(f, "driver {:?} serves at most {} disks", driver.name(), driver.max_disks())
            }
            ManifestError::TooManyNetworks(count) => {
                write!(f, "{count} networks, at most {MAX_NETWORKS} are possible")
            }
            ManifestError::NetworkName(name) => {
                write!(f, "network name {name:?}: give 1 to {MAX_NAME} letters, digits, '-' or '_'")
            }
            ManifestError::DuplicateNetwork(name) => write!(f, "two networks are named {name:?}: rename one"),
            ManifestError::TooManyCards(name) => {
                write!(f, "VM {name:?}: at most {MAX_CARDS} network cards are possible")
            }
            ManifestError::NoNetwork { vm, network } => {
                write!(f, "VM {vm:?}: there is no network {network:?}: add a [[network]] with this name")
            }
            ManifestError::TooManyPorts(name) => {
                let most = switch::MAX_PORTS;
                write!(
                    f,
                    "network {name:?}: at most {most} cards and socket devices, the uplink counted, are possible: make two networks"
                )
            }
            ManifestError::Cid { vm, cid } => {
                let (least, most) = (CIDS.start(), CIDS.end());
                write!(f, "VM {vm:?}: vsock cid = {cid}: {least} to {most} are possible")
            }
            ManifestError::DuplicateCid { network, cid } => {
                write!(f, "network {network:?}: two VMs have the vsock cid {cid}: change one")
            }
            ManifestError::DuplicateAddress { network, address } => {
                write!(f, "network {network:?}: two cards have the address {address}: change one's mac")
            }
            ManifestError::Uplinks(uplink) => {
                write!(
                    f,
                    "at most {} networks can have the uplink {:?}",
                    uplink.max_networks(),
                    uplink.name()
                )
            }
        }
    }
}

impl core::error::Error for ManifestError {}

impl Manifest {
    /// Checks what the types leave open.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.vms.is_empty() {
            return Err(ManifestError::NoVm);
        }
        if self.vms.len() > MAX_VMS {
            return Err(ManifestError::TooManyVms(self.vms.len()));
        }
        if let Some(trace) = self.trace.filter(|trace| !(1..=MAX_TRACE_EVENTS).contains(&trace.events)) {
            return Err(ManifestError::TraceEvents(trace.events));
        }
        for (index, vm) in self.vms.iter().enumerate() {
            vm.check()?;
            if self.vms[..index].iter().any(|other| other.name == vm.name) {
                return Err(ManifestError::Duplicate(vm.name.clone()));
            }
        }
        let disks = || self.vms.iter().flat_map(|vm| &vm.disks);
        let is_shared = |disk: &&DiskConfig| {
            disk.driver == DiskDriver::Memory && !disk.read_only && self.uses(&disk.image) > 1
        };
        if let Some(disk) = disks().find(is_shared) {
            return Err(ManifestError::SharedDisk(disk.image.clone()));
        }
        let is_too_often =
            |driver: &DiskDriver| disks().filter(|disk| disk.driver == *driver).count() > driver.max_disks();
        match DiskDriver::PROCESSES.into_iter().find(is_too_often) {
            Some(driver) => Err(ManifestError::DriverDisks(driver)),
            None => self.check_networks(),
        }
    }

    /// Names of the boot modules with the processes that its disks and networks need, each once.
    pub fn driver_modules(&self) -> impl Iterator<Item = &'static str> {
        let is_needed =
            |driver: &DiskDriver| self.vms.iter().flat_map(|vm| &vm.disks).any(|disk| disk.driver == *driver);
        let disks = DiskDriver::PROCESSES.into_iter().filter(is_needed).filter_map(DiskDriver::module);
        disks.chain(self.network_modules())
    }

    /// How often this boot module is something for a VM.
    fn uses(&self, module: &str) -> usize {
        let of = |vm: &VmConfig| {
            let in_memory = vm.disks.iter().filter(|disk| disk.driver == DiskDriver::Memory);
            let disks = in_memory.map(|disk| &disk.image);
            let modules = [&vm.kernel, &vm.vmm].into_iter().chain(&vm.initrd).chain(disks);
            modules.filter(|name| *name == module).count()
        };
        self.vms.iter().map(of).sum()
    }
}

impl VmConfig {
    /// The least memory that it has, in MiB.
    pub fn min_memory_mib(&self) -> u32 {
        self.balloon.map_or(self.memory_mib, |balloon| balloon.min_mib.min(self.memory_mib))
    }

    fn check(&self) -> Result<(), ManifestError> {
        if !is_name(&self.name) {
            return Err(ManifestError::Name(self.name.clone()));
        }
        if !(1..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ManifestError::Memory(self.name.clone()));
        }
        if let Some(balloon) = self.balloon
            && (!(1..=self.memory_mib).contains(&balloon.min_mib)
                || self.memory_mib > balloon::MAX_MEMORY_MIB)
        {
            return Err(ManifestError::Balloon(self.name.clone()));
        }
        if !PRIORITIES.contains(&self.priority) {
            return Err(ManifestError::Priority(self.name.clone()));
        }
        if self.kernel.is_empty() {
            return Err(ManifestError::Kernel(self.name.clone()));
        }
        if self.disks.len() > MAX_DISKS {
            return Err(ManifestError::TooManyDisks(self.name.clone()));
        }
        if self.disks.iter().any(|disk| disk.driver == DiskDriver::Memory && disk.image.is_empty()) {
            return Err(ManifestError::DiskImage(self.name.clone()));
        }
        if self.disks.iter().any(|disk| !TIMEOUTS_MS.contains(&disk.timeout_ms)) {
            return Err(ManifestError::DiskTimeout(self.name.clone()));
        }
        self.check_devices()
    }
}

/// Whether this can be the name of a VM or a network.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn manifest(vms: Vec<VmConfig>) -> Manifest {
        let (console, when_done) = (ConsoleMode::Plain, WhenDone::Poweroff);
        Manifest { console, when_done, trace: None, networks: Vec::new(), vms }
    }

    pub(super) fn vm(name: &str) -> VmConfig {
        VmConfig {
            name: name.into(),
            kernel: "kernel".into(),
            initrd: Vec::new(),
            cmdline: String::new(),
            memory_mib: 64,
            balloon: None,
            console: ConsoleInterface::Serial,
            packed_queues: false,
            cpu: 0,
            priority: 16,
            on_reset: OnReset::End,
            on_crash: OnCrash::Report,
            vmm: MONITOR_MODULE.into(),
            hide_features: Vec::new(),
            statistics: false,
            disks: Vec::new(),
            cards: Vec::new(),
            vsock: None,
            debug: false,
        }
    }

    pub(super) fn disk(image: &str, read_only: bool) -> DiskConfig {
        DiskConfig {
            image: image.into(),
            read_only,
            driver: DiskDriver::Memory,
            on_crash: OnCrash::Report,
            timeout_ms: DEFAULT_TIMEOUT_MS,
            interface: DiskInterface::Virtio,
            queues: 1,
        }
    }

    fn check(vms: Vec<VmConfig>) -> Result<(), ManifestError> {
        manifest(vms).check()
    }

    #[test]
    fn a_plain_manifest_passes() {
        assert_eq!(check(alloc::vec![vm("linux"), vm("second-vm_2")]), Ok(()));
    }

    #[test]
    fn every_impossible_value_is_named() {
        assert_eq!(check(Vec::new()), Err(ManifestError::NoVm));
        assert_eq!(check(alloc::vec![vm("a"); 31]), Err(ManifestError::TooManyVms(31)));
        assert_eq!(check(alloc::vec![vm("a"), vm("a")]), Err(ManifestError::Duplicate("a".into())));
        assert_eq!(check(alloc::vec![vm("a b")]), Err(ManifestError::Name("a b".into())));
        assert_eq!(
            check(alloc::vec![vm("sixteen-letters-")]),
            Err(ManifestError::Name("sixteen-letters-".into()))
        );
        for broken in [
            VmConfig { memory_mib: 0, ..vm("a") },
            VmConfig { memory_mib: MAX_MEMORY_MIB + 1, ..vm("a") },
            VmConfig { balloon: Some(BalloonConfig { min_mib: 65, reports: true }), ..vm("a") },
            VmConfig { balloon: Some(BalloonConfig { min_mib: 0, reports: true }), ..vm("a") },
            VmConfig {
                balloon: Some(BalloonConfig { min_mib: 1, reports: true }),
                memory_mib: balloon::MAX_MEMORY_MIB + 1,
                ..vm("a")
            },
            VmConfig { priority: 31, ..vm("a") },
            VmConfig { priority: 0, ..vm("a") },
            VmConfig { kernel: String::new(), ..vm("a") },
            VmConfig { disks: alloc::vec![disk("d", true); MAX_DISKS + 1], ..vm("a") },
            VmConfig { disks: alloc::vec![disk("", true)], ..vm("a") },
            VmConfig { disks: alloc::vec![DiskConfig { timeout_ms: 0, ..disk("d", true) }], ..vm("a") },
        ] {
            assert!(check(alloc::vec![broken]).is_err());
        }
    }

    #[test]
    fn a_disk_that_is_written_is_one_vms_and_nothing_else() {
        let with = |name: &str, disks: &[DiskConfig]| VmConfig { disks: disks.into(), ..vm(name) };
        let read = [disk("d", true)];
        let write = [disk("d", false)];
        assert_eq!(check(alloc::vec![with("a", &read), with("b", &read)]), Ok(()));
        assert_eq!(check(alloc::vec![with("a", &write), with("b", &[disk("e", false)])]), Ok(()));
        let shared = Err(ManifestError::SharedDisk("d".into()));
        assert_eq!(check(alloc::vec![with("a", &write), with("b", &read)]), shared);
        assert_eq!(check(alloc::vec![with("a", &[disk("d", false), disk("d", true)])]), shared);
        let initrd = VmConfig { initrd: alloc::vec!["d".into()], ..vm("b") };
        assert_eq!(check(alloc::vec![with("a", &write), initrd]), shared);
    }

    #[test]
    fn a_real_disk_needs_no_image_and_each_driver_has_its_limit() {
        let ata = DiskConfig { driver: DiskDriver::Ata, ..disk("", false) };
        let with = |name: &str, count: usize| VmConfig { disks: alloc::vec![ata.clone(); count], ..vm(name) };
        assert_eq!(check(alloc::vec![with("a", 1), with("b", 1)]), Ok(()));
        let too_many = Err(ManifestError::DriverDisks(DiskDriver::Ata));
        assert_eq!(check(alloc::vec![with("a", 1), with("b", 2)]), too_many);
    }
}
