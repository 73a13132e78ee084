//! The manifest: read from TOML, checked, and turned into the form that the root task reads.
//!
//! In TOML, `kernel`, `initrd` and a disk's `image` are paths relative to the manifest's folder, or `guest:NAME` for a test guest or
//! `guest:linux`; here they become boot modules. So does `vmm`, the path of a VMM of the user's own.

use super::modules::Collector;
use super::{Module, disks};
use crate::guest::initramfs::Content;
use crate::guest::{self, kernel_file};
use crate::{compile, failure, workspace};
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::path::Path;
use vmm_protocol::manifest::{
    CardConfig, ConsoleInterface, DiskConfig, DiskDriver, MAX_DISKS, MONITOR_MODULE, Manifest, NetInterface,
    NetworkConfig, Uplink, VmConfig,
};

/// Memory that the kernel and the root task's processes take beside the VMs and the boot modules, in MiB.
const SYSTEM_MIB: u64 = 64;
/// Largest guest memory that the manifest may ask for, in MiB.
const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Highest priority a VM may have; the console server is above.
const MAX_PRIORITY: u8 = 30;
/// Priority of a VM that does not say.
pub const DEFAULT_PRIORITY: u8 = 16;
/// Frames of the serial line number VMs in a byte and keep 255 for "none".
const MAX_VMS: usize = 255;

/// A manifest in its final form, with the modules it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the root task reads.
    pub manifest: Manifest,
    /// The modules with the guests' kernels and initrds.
    pub modules: Vec<Module>,
}

/// What the machine has for the VMs.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// CPUs.
    pub cpus: u16,
}

/// Reads a manifest file. Test guests that it names are not built yet: [`test_guests`] lists them.
pub fn read(path: &Path) -> Result<Manifest> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| failure::usage(format!("cannot read the manifest {}: {error}", path.display())))?;
    parse(&text).map_err(|error| failure::usage(format!("manifest {}: {error}", path.display())))
}

fn parse(text: &str) -> Result<Manifest, String> {
    toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())
}

/// The test guests that the manifest names, each once.
pub fn test_guests(manifest: &Manifest) -> Vec<String> {
    let mut names: Vec<String> = manifest
        .vms
        .iter()
        .flat_map(files)
        .filter_map(guest_name)
        .filter(|name| *name != guest::LINUX)
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

fn files(vm: &VmConfig) -> impl Iterator<Item = &str> {
    std::iter::once(&*vm.kernel).chain(vm.initrd.iter().map(|path| &**path))
}

fn guest_name(path: &str) -> Option<&str> {
    path.strip_prefix("guest:")
}

/// Packs the files that `manifest` names, relative to `folder`, and checks the whole against the machine.
pub fn resolve(mut manifest: Manifest, folder: &Path, host: Host) -> Result<Plan> {
    check(&manifest, host).map_err(failure::usage)?;
    let mut collector = Collector::default();
    for vm in &mut manifest.vms {
        pack(vm, &manifest.networks, folder, &mut collector).with_context(|| format!("VM `{}`", vm.name))?;
    }
    check_all(&manifest, collector, host)
}

/// Checks a manifest whose files are packed already.
pub fn check_all(manifest: &Manifest, collector: Collector, host: Host) -> Result<Plan> {
    check(manifest, host).map_err(failure::usage)?;
    disks::check_shared(manifest)?;
    let modules = collector.into_modules();
    check_fit(manifest, &modules, host).map_err(failure::usage)?;
    Ok(Plan { manifest: manifest.clone(), modules })
}

fn pack(
    vm: &mut VmConfig,
    networks: &[NetworkConfig],
    folder: &Path,
    collector: &mut Collector,
) -> Result<()> {
    if guest_name(&vm.kernel) == Some(guest::LINUX) {
        let linux = guest::debian::fetch()?;
        vm.kernel = collector.add_file(&linux.kernel)?;
        if vm.initrd.is_empty() {
            let devices = drivers(&vm.disks, &vm.cards, vm.console, vm.balloon.is_some(), vm.vsock.is_some());
            let drivers = linux.drivers(&devices)?;
            let dhcp = dhcp(&vm.cards, networks);
            let content = Content { modules: &drivers, dhcp: &dhcp, exec: None, is_whole: true };
            let mut archive = guest::initramfs::build(&linux.busybox, content)?;
            if vm.vsock.is_some() {
                archive = guest::initramfs::with_vsock(archive)?;
            }
            vm.initrd.push(collector.add_bytes("initrd", archive)?);
        }
        if vm.cmdline.is_empty() {
            vm.cmdline = format!("{} {}", guest::cmdline(vm.console), guest::initramfs::RDINIT);
        }
    } else {
        vm.kernel = pack_file(&vm.kernel, folder, collector)?;
    }
    let kernel = collector.bytes(&vm.kernel).unwrap_or_default();
    kernel_file::recognise(kernel)
        .map_err(|error| failure::usage(format!("kernel {}: {error}", vm.kernel)))?;
    if vm.vmm != MONITOR_MODULE && collector.bytes(&vm.vmm).is_none() {
        vm.vmm = pack_vmm(&vm.vmm, folder, collector)?;
    }
    for path in &mut vm.initrd {
        if collector.bytes(path).is_none() {
            *path = pack_file(path, folder, collector)?;
        }
    }
    for disk in &mut vm.disks {
        if disk.driver == DiskDriver::Memory || !disk.image.is_empty() {
            disk.image = disks::pack(&folder.join(&disk.image), disk, collector)?;
        }
    }
    Ok(())
}

/// The modules of Debian's kernel that drive the devices of a VM with these disks and network cards, this console, and perhaps a
/// balloon and sockets.
pub fn drivers(
    disks: &[DiskConfig],
    cards: &[CardConfig],
    console: ConsoleInterface,
    has_balloon: bool,
    has_vsock: bool,
) -> Vec<&'static str> {
    // The console first: the others may have something to say.
    let of_console: &[_] =
        if console == ConsoleInterface::Virtio { &["virtio_mmio", "virtio_console"] } else { &[] };
    let of_disks: &[_] = if disks.is_empty() { &[] } else { &["virtio_blk"] };
    let of_cards: &[_] = if cards.is_empty() { &[] } else { &["virtio_net"] };
    let of_balloon: &[_] = if has_balloon { &["virtio_mmio", "virtio_balloon"] } else { &[] };
    let of_vsock: &[_] = if has_vsock { &["virtio_mmio", "vmw_vsock_virtio_transport"] } else { &[] };
    let of_all: &[_] =
        if disks.is_empty() && cards.is_empty() { &[] } else { &["virtio_mmio", "virtio-rng"] };
    [of_console, of_all, of_disks, of_cards, of_balloon, of_vsock].concat()
}

/// Linux's names for those of a VM's cards that get their addresses from outside: the ones on networks with an uplink.
pub fn dhcp(cards: &[CardConfig], networks: &[NetworkConfig]) -> Vec<String> {
    let has_uplink = |card: &CardConfig| {
        networks.iter().any(|network| network.name == card.network && network.uplink != Uplink::None)
    };
    let of_linux = cards.iter().filter(|card| card.interface == NetInterface::Virtio).enumerate();
    of_linux.filter(|(_, card)| has_uplink(card)).map(|(index, _)| format!("eth{index}")).collect()
}

fn pack_vmm(path: &str, folder: &Path, collector: &mut Collector) -> Result<String> {
    let program = super::elf::loadable(&folder.join(path))
        .map_err(|error| failure::usage(format!("the VMM {path}: {error:#}")))?;
    collector.add_bytes("vmm", program)
}

fn pack_file(path: &str, folder: &Path, collector: &mut Collector) -> Result<String> {
    match guest_name(path) {
        Some(name) => {
            compile::check_guest_name(name)?;
            collector.add_bytes(name, super::elf::loadable(&workspace::bare_binary(name))?)
        }
        None => collector.add_file(&folder.join(path)),
    }
}

/// What can be said before any file is read.
pub fn check(manifest: &Manifest, host: Host) -> Result<(), String> {
    if manifest.vms.is_empty() {
        return Err("the manifest has no VM; add a [[vm]] table".into());
    }
    if manifest.vms.len() > MAX_VMS {
        return Err(format!("the manifest has {} VMs; at most {MAX_VMS} are possible", manifest.vms.len()));
    }
    let mut names = HashSet::new();
    for vm in &manifest.vms {
        check_vm(vm, host).map_err(|error| format!("VM `{}`: {error}", vm.name))?;
        if !names.insert(&vm.name) {
            return Err(format!("two VMs are called `{}`; names must differ", vm.name));
        }
    }
    manifest.vms.iter().try_for_each(VmConfig::check_devices).map_err(|error| error.to_string())?;
    manifest.check_networks().map_err(|error| error.to_string())
}

fn check_vm(vm: &VmConfig, host: Host) -> Result<(), String> {
    let is_name_char = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !(1..=15).contains(&vm.name.len()) || !vm.name.chars().all(is_name_char) {
        return Err("a name is 1 to 15 letters, digits, `-` and `_`".into());
    }
    if vm.kernel.is_empty() {
        return Err("`kernel` is empty; it names a file".into());
    }
    if !(1..=MAX_MEMORY_MIB).contains(&vm.memory_mib) {
        return Err(format!(
            "memory_mib = {} is out of range; 1 to {MAX_MEMORY_MIB} are possible",
            vm.memory_mib
        ));
    }
    if vm.cpu >= host.cpus {
        return Err(format!(
            "cpu = {} does not exist; the machine has {} (--host-cpus), numbered from 0",
            vm.cpu, host.cpus
        ));
    }
    if !(1..=MAX_PRIORITY).contains(&vm.priority) {
        return Err(format!("priority = {} is out of range; 1 to {MAX_PRIORITY} are possible", vm.priority));
    }
    if vm.disks.len() > MAX_DISKS {
        return Err(format!("{} disks; at most {MAX_DISKS} are possible", vm.disks.len()));
    }
    if vm.cmdline.contains('\0') {
        return Err("`cmdline` contains a zero byte".into());
    }
    Ok(())
}

/// Whether everything fits into the machine's memory.
fn check_fit(manifest: &Manifest, modules: &[Module], host: Host) -> Result<(), String> {
    check_memory(manifest.vms.iter().map(|vm| u64::from(vm.min_memory_mib())).sum(), modules, host)
}

/// Whether `guests` MiB of guest memory and the modules fit into the machine's memory.
pub fn check_memory(guests: u64, modules: &[Module], host: Host) -> Result<(), String> {
    let packed: u64 = modules.iter().map(|module| module.bytes.len() as u64).sum::<u64>().div_ceil(1 << 20);
    let needed = guests + packed + SYSTEM_MIB;
    if needed > u64::from(host.memory_mib) {
        return Err(format!(
            "the VMs need {needed} MiB ({guests} of guest memory, {packed} of kernels and initrds, {SYSTEM_MIB} for Nacre) but \
             the machine has {}; give less with --memory or memory_mib, or more with --host-memory",
            host.memory_mib
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { memory_mib: 1024, cpus: 2 };

    fn problem(text: &str) -> String {
        match parse(text) {
            Err(error) => error,
            Ok(manifest) => match check(&manifest, HOST).and_then(|()| check_fit(&manifest, &[], HOST)) {
                Err(error) => error,
                Ok(()) => "none".into(),
            },
        }
    }

    #[test]
    fn a_plain_manifest_is_fine() {
        assert_eq!(problem("[[vm]]\nname = 'a'\nkernel = 'vmlinuz'\nmemory_mib = 256"), "none");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let problem = problem("[[vm]]\nname = 'a'\nkernel = 'k'\nmemory_mib = 1\ncolour = 'blue'");
        assert!(problem.contains("line 5") && problem.contains("colour"), "{problem}");
    }

    #[test]
    fn mistakes_are_named() {
        let vm = |rest: &str| format!("[[vm]]\nname = 'a'\nkernel = 'k'\n{rest}\n");
        let cases = [
            ("vm = []".into(), "no VM"),
            (vm("memory_mib = 0"), "out of range"),
            (vm("memory_mib = 4096"), "--host-memory"),
            (vm("memory_mib = 1\ncpu = 2"), "cpu = 2"),
            (vm("memory_mib = 1\npriority = 31"), "priority = 31"),
            (vm("memory_mib = 1") + &vm("memory_mib = 1"), "two VMs"),
            (vm("memory_mib = 1\nconsole = 'tty'"), "console = 'tty'"),
            (vm("memory_mib = 1\nvsock = { cid = 2 }"), "vsock cid = 2: 3 to 4294967294 are possible"),
            (vm("memory_mib = 1\nvsock = { cid = 3, network = 'lan' }"), "there is no network \"lan\""),
            (
                vm(
                    "memory_mib = 64\nconsole = 'virtio'\nballoon = { min_mib = 1 }\ndisk = [{},{},{},{},{},{}]",
                ),
                "9 virtio devices",
            ),
            ("[[vm]]\nname = 'a b'\nkernel = 'k'\nmemory_mib = 1".into(), "a name is"),
            ("[[vm]]\nname = 'a'\nmemory_mib = 1".into(), "missing field `kernel`"),
            ("not toml".into(), "line 1"),
        ];
        for (text, expected) in cases {
            let problem = problem(&text);
            assert!(problem.contains(expected), "{text:?} gave {problem:?}");
        }
    }

    #[test]
    fn guests_named_by_a_manifest_are_found_once() {
        let text = "[[vm]]\nname='a'\nkernel='guest:hello'\nmemory_mib=1\n[[vm]]\nname='b'\nkernel='guest:hello'\nmemory_mib=1\n\
                    [[vm]]\nname='c'\nkernel='guest:linux'\nmemory_mib=1";
        assert_eq!(test_guests(&parse(text).unwrap()), ["hello"]);
    }
}
