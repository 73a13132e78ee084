//! What the options ask for and cannot have.

use super::RunArgs;
use crate::failure;
use crate::guest::kernel_file;
use crate::run::machine::Iommu;
use crate::run::{self, bochs, network};
use anyhow::Result;
use std::path::Path;
use vmm_protocol::manifest::{DiskDriver, Manifest, Uplink};

/// Refuses a machine that its emulator does not have.
pub(super) fn host(args: &RunArgs) -> Result<()> {
    let machine = args.machine.resolve();
    if machine.is_bochs() && args.host_memory > bochs::MOST_MEMORY_MIB {
        let most = bochs::MOST_MEMORY_MIB;
        return Err(failure::usage(format!(
            "machine {} has at most {most} MiB of memory; --host-memory",
            machine.name()
        )));
    }
    if machine.is_bochs() && args.iommu.is_some_and(|iommu| iommu != Iommu::None) {
        return Err(failure::usage(format!("machine {} has no IOMMU; --iommu none", machine.name())));
    }
    if machine.is_bochs() && args.host_cpus(machine) > bochs::MOST_CPUS {
        let most = bochs::MOST_CPUS;
        return Err(failure::usage(format!(
            "machine {} has at most {most} CPUs; --host-cpus",
            machine.name()
        )));
    }
    Ok(())
}

/// Refuses a disk that the machine cannot have.
pub(super) fn driver(args: &RunArgs, driver: DiskDriver) -> Result<()> {
    let machine = args.machine.resolve();
    if driver == DiskDriver::Memory || machine.disk_drivers().contains(&driver) {
        return Ok(());
    }
    let has: Vec<&str> = machine.disk_drivers().iter().map(|driver| driver.name()).collect();
    Err(failure::usage(format!(
        "machine {} has no disk for driver {}; it has disks for {}, and any machine for memory",
        machine.name(),
        driver.name(),
        has.join(", ")
    )))
}

/// Refuses a network card that the machine cannot have.
pub(super) fn uplink(args: &RunArgs, driver: Uplink) -> Result<()> {
    let machine = args.machine.resolve();
    if driver == Uplink::None || machine.uplinks().contains(&driver) {
        return Ok(());
    }
    let has: Vec<&str> = machine.uplinks().iter().map(|driver| driver.name()).collect();
    Err(failure::usage(format!(
        "machine {} has no network card for driver {}; it has cards for {}",
        machine.name(),
        driver.name(),
        has.join(", ")
    )))
}

/// Refuses ports that cannot be published with this manifest.
pub(super) fn publish(args: &RunArgs, manifest: &Manifest) -> Result<()> {
    let has_uplink = manifest.networks.iter().any(|network| network.uplink != Uplink::None);
    if !args.publish.is_empty() && !has_uplink {
        return Err(failure::usage("--publish needs a [[network]] with an uplink in the manifest"));
    }
    network::check(&args.publish)
}

/// Refuses what would leave a debugger without an answer.
pub(super) fn debuggers(args: &RunArgs) -> Result<()> {
    let machine = args.machine.resolve();
    if args.gdb_nacre.is_some() && machine.is_bochs() {
        return Err(failure::usage(format!(
            "--gdb-nacre needs QEMU: Bochs has no stub for gdb; --machine svm, not {}",
            machine.name()
        )));
    }
    let ports = [args.gdb, args.gdb_nacre];
    ports.into_iter().flatten().try_for_each(run::gdb::check_port)
}

pub(super) fn readable(path: &Path) -> Result<()> {
    let opened = std::fs::File::open(path).map(drop);
    opened.map_err(|error| failure::usage(format!("cannot read {}: {error}", path.display())))
}

pub(super) fn kernel(path: &Path) -> Result<kernel_file::Kind> {
    let bytes = std::fs::read(path)
        .map_err(|error| failure::usage(format!("cannot read {}: {error}", path.display())))?;
    kernel_file::recognise(&bytes).map_err(|error| failure::usage(format!("{}: {error}", path.display())))
}
