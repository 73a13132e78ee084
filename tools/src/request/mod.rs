//! What the options of `run` and `image` mean: which VMs, from what, on which machine.

mod args;
mod check;

pub use args::{DiskArg, NetArg, RunArgs, parse};

use crate::guest::initramfs::Content;
use crate::guest::{self, debian, initramfs};
use crate::image::manifest::{self, Host, Plan};
use crate::image::modules::Collector;
use crate::image::{disks, elf};
use crate::run::machine::Machine;
use crate::run::network;
use crate::run::outcome::Report;
use crate::run::{self, Options, Output, Script, terminal};
use crate::{compile, failure, progress, workspace};
use anyhow::{Context, Result};
use std::path::Path;
use vmm_protocol::manifest::{
    CardConfig, ConsoleMode, DEFAULT_TIMEOUT_MS, DiskConfig, DiskDriver, MONITOR_MODULE, Manifest,
    NetworkConfig, OnCrash, OnReset, VmConfig, VsockConfig, WhenDone,
};

/// Memory for Linux in MiB.
const LINUX_MEMORY_MIB: u32 = 256;
/// Memory for any other guest in MiB.
const GUEST_MEMORY_MIB: u32 = 64;

/// The machine that the options ask for.
pub fn host(args: &RunArgs) -> Host {
    Host { memory_mib: args.host_memory, cpus: args.host_cpus(args.machine.resolve()) }
}

/// Who reads the console of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForWhom {
    /// A person at a terminal.
    Person,
    /// This tool.
    Tool,
}

/// Builds what is needed, runs it and reports.
pub fn run(args: &RunArgs, output: Output) -> Result<Report> {
    let machine = args.machine.resolve();
    machine.prepare()?;
    let plan = plan(args, ForWhom::Tool)?;
    let options = options(args, output)?;
    if let Some(port) = args.gdb_nacre {
        let kernel = workspace::bare_binary("kernel");
        progress::step(format_args!(
            "the machine waits for gdb: gdb -ex 'target remote localhost:{port}' {}",
            kernel.display()
        ));
    }
    if output == Output::Interactive && terminal::is_interactive() {
        progress::step(format_args!(
            "starting machine {}; Ctrl-A X leaves, Ctrl-A ? lists the keys",
            machine.name()
        ));
    }
    run::run(&plan, &options)
}

/// How the options say to run.
pub fn options(args: &RunArgs, output: Output) -> Result<Options> {
    let machine = args.machine.resolve();
    Ok(Options {
        machine,
        host_memory_mib: args.host_memory,
        host_cpus: args.host_cpus(machine),
        deterministic: args.deterministic,
        timeout: args.timeout(),
        log: args.log_path()?,
        kernel_cmdline: machine.kernel_cmdline(&args.kernel_cmdline),
        output,
        exec: args.exec.is_some(),
        script: Script::default(),
        gdb: args.gdb,
        gdb_nacre: args.gdb_nacre,
        publish: args.publish.clone(),
        iommu: args.iommu.unwrap_or(machine.usual_iommu()),
        has_edu: false,
        write_log: None,
        cpu_model: args.host_cpu.clone(),
    })
}

/// The VMs that the options describe, built and packed.
pub fn plan(args: &RunArgs, for_whom: ForWhom) -> Result<Plan> {
    let host = host(args);
    check::host(args)?;
    check::debuggers(args)?;
    if let Some(path) = &args.manifest {
        let mut manifest = manifest::read(path)?;
        manifest::check(&manifest, host)
            .map_err(|error| failure::usage(format!("manifest {}: {error}", path.display())))?;
        if for_whom == ForWhom::Tool {
            disks::of_machine(&manifest).try_for_each(|disk| check::driver(args, disk.driver))?;
            manifest.networks.iter().try_for_each(|network| check::uplink(args, network.uplink))?;
            check::publish(args, &manifest)?;
        }
        build(args, &manifest::test_guests(&manifest))?;
        adapt(&mut manifest, args, for_whom);
        return manifest::resolve(manifest, path.parent().unwrap_or(Path::new("")), host);
    }
    // Mistakes are told before anything is built or fetched.
    let network = network(args, for_whom)?;
    args.initrd.iter().try_for_each(|path| check::readable(path))?;
    args.disk.iter().try_for_each(|disk| disks::check(&disk.path).map(drop))?;
    if for_whom == ForWhom::Tool {
        args.disk.iter().filter_map(|disk| disk.driver).try_for_each(|driver| check::driver(args, driver))?;
    }
    let kernel = args.kernel.as_deref().map(check::kernel).transpose()?;
    let is_linux = match kernel {
        Some(kind) => kind.is_linux(),
        None => args.guest == guest::LINUX,
    };
    if args.exec.is_some() && !is_linux {
        return Err(failure::usage("--exec needs Linux, whose shell runs the command"));
    }
    manifest::check_memory(u64::from(memory(args, is_linux)), &[], host).map_err(failure::usage)?;
    if args.kernel.is_none() && !is_linux {
        compile::check_guest_name(&args.guest)?;
        build(args, std::slice::from_ref(&args.guest))?;
    } else {
        build(args, &[])?;
    }
    let mut collector = Collector::default();
    let networks: Vec<NetworkConfig> = network.iter().map(|(network, _)| network.clone()).collect();
    let cards = network.into_iter().map(|(_, card)| card).collect();
    let disks =
        args.disk.iter().map(|disk| disk_config(disk, args.machine.resolve(), for_whom, &mut collector));
    let devices = Devices { disks: disks.collect::<Result<_>>()?, cards };
    let vm = vm(args, is_linux, devices, &networks, &mut collector)?;
    let mut manifest = Manifest {
        console: ConsoleMode::default(),
        when_done: WhenDone::Poweroff,
        trace: None,
        networks,
        vms: vec![vm],
    };
    adapt(&mut manifest, args, for_whom);
    manifest::check_all(&manifest, collector, host)
}

/// What the options change in a manifest.
fn adapt(manifest: &mut Manifest, args: &RunArgs, for_whom: ForWhom) {
    manifest.trace = args.trace.or(manifest.trace);
    if for_whom == ForWhom::Tool {
        manifest.console = ConsoleMode::Framed;
        if let (Some(_), Some(vm)) = (args.gdb, manifest.vms.first_mut()) {
            vm.debug = true;
        }
    }
}

fn build(args: &RunArgs, guests: &[String]) -> Result<()> {
    if args.is_built {
        return Ok(());
    }
    progress::timed("building the kernel and user space", || compile::system_and_guests(guests))
}

/// The network that the options ask for, with the guest's card on it.
fn network(args: &RunArgs, for_whom: ForWhom) -> Result<Option<(NetworkConfig, CardConfig)>> {
    let NetArg::User { driver, interface, queues } = args.net()? else { return Ok(None) };
    let uplink = match driver {
        Some(driver) => driver,
        None if for_whom == ForWhom::Person => {
            return Err(failure::usage(
                "an image is for one kind of card: --net user,virtio-net or user,ne2000",
            ));
        }
        None => args.machine.resolve().uplinks()[0],
    };
    if for_whom == ForWhom::Tool {
        check::uplink(args, uplink)?;
        network::check(&args.publish)?;
    }
    let name = "user".to_owned();
    let card = CardConfig { network: name.clone(), interface, mac: None, bridge: false, queues };
    Ok(Some((NetworkConfig { name, uplink, on_crash: OnCrash::Restart }, card)))
}

fn memory(args: &RunArgs, is_linux: bool) -> u32 {
    args.memory.unwrap_or(if is_linux { LINUX_MEMORY_MIB } else { GUEST_MEMORY_MIB })
}

/// A disk of the machine; in an image for other machines, one that the image carries.
fn disk_config(
    disk: &DiskArg,
    machine: Machine,
    for_whom: ForWhom,
    collector: &mut Collector,
) -> Result<DiskConfig> {
    let usual = match machine.disk_drivers() {
        [usual, ..] if for_whom == ForWhom::Tool => *usual,
        _ => DiskDriver::Memory,
    };
    let mut config = DiskConfig {
        image: String::new(),
        read_only: disk.is_read_only,
        driver: disk.driver.unwrap_or(usual),
        on_crash: OnCrash::Restart,
        timeout_ms: DEFAULT_TIMEOUT_MS,
        interface: disk.interface,
        queues: 1,
    };
    config.image = disks::pack(&disk.path, &config, collector)?;
    Ok(config)
}

/// What a VM has beside memory and a CPU.
struct Devices {
    disks: Vec<DiskConfig>,
    cards: Vec<CardConfig>,
}

/// The one VM of a run without a manifest.
fn vm(
    args: &RunArgs,
    is_linux: bool,
    devices: Devices,
    networks: &[NetworkConfig],
    collector: &mut Collector,
) -> Result<VmConfig> {
    let Devices { disks, cards } = devices;
    let (name, kernel) = match &args.kernel {
        Some(path) => ("guest", collector.add_file(path)?),
        None if is_linux => (guest::LINUX, collector.add_file(&debian::fetch()?.kernel)?),
        None => {
            let program = elf::loadable(&workspace::bare_binary(&args.guest))?;
            ("guest", collector.add_bytes(&args.guest, program)?)
        }
    };
    let mut initrd = args.initrd.iter().map(|path| collector.add_file(path)).collect::<Result<Vec<_>>>()?;
    let mut cmdline = args.cmdline.clone().unwrap_or_default();
    if is_linux {
        // The system of ours goes where the user has none; the agent that runs a command goes to either.
        let is_whole = initrd.is_empty();
        let mut ours = String::new();
        if is_whole || args.exec.is_some() {
            let linux = debian::fetch()?;
            // Its modules fit no other kernel.
            let drivers = if args.kernel.is_none() {
                manifest::drivers(&disks, &cards, args.console, false, args.vsock.is_some())
            } else {
                Vec::new()
            };
            let content = Content {
                modules: &linux.drivers(&drivers)?,
                dhcp: &manifest::dhcp(&cards, networks),
                exec: args.exec.as_deref(),
                is_whole,
            };
            let mut archive = initramfs::build(&linux.busybox, content)?;
            if is_whole && args.vsock.is_some() {
                archive = initramfs::with_vsock(archive)?;
            }
            initrd
                .push(collector.add_bytes("initrd", archive).context("cannot add the initial file system")?);
            ours = format!(" {}", initramfs::RDINIT);
        }
        cmdline = format!("{}{ours} {cmdline}", guest::cmdline(args.console)).trim_end().to_owned();
    }
    Ok(VmConfig {
        name: name.into(),
        kernel,
        initrd,
        cmdline,
        memory_mib: memory(args, is_linux),
        balloon: None,
        console: args.console,
        packed_queues: false,
        cpu: 0,
        priority: manifest::DEFAULT_PRIORITY,
        on_reset: OnReset::End,
        on_crash: OnCrash::Report,
        vmm: MONITOR_MODULE.into(),
        hide_features: Vec::new(),
        statistics: args.statistics,
        disks,
        cards,
        vsock: args.vsock.map(|cid| VsockConfig { cid, network: None }),
        debug: false,
    })
}
