//! What the options of `run` and `image` mean: which VMs, from what, on which machine.

use crate::guest::initramfs::Content;
use crate::guest::{self, debian, initramfs, kernel_file};
use crate::image::manifest::{self, Host, Plan};
use crate::image::modules::Collector;
use crate::image::{disks, elf};
use crate::run::machine::{Iommu, Machine};
use crate::run::network::{self, Publish};
use crate::run::outcome::Report;
use crate::run::{self, Options, Output, Script, bochs, terminal};
use crate::{compile, failure, progress, workspace};
use anyhow::{Context, Result};
use clap::{Args, Parser};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm_protocol::manifest::{
    CIDS, CardConfig, ConsoleInterface, ConsoleMode, DEFAULT_TIMEOUT_MS, DiskConfig, DiskDriver,
    DiskInterface, MAX_QUEUES, MONITOR_MODULE, Manifest, NetInterface, NetworkConfig, OnCrash, OnReset,
    TraceConfig, Uplink, VmConfig, VsockConfig, WhenDone,
};

/// Memory for Linux in MiB.
const LINUX_MEMORY_MIB: u32 = 256;
/// Memory for any other guest in MiB.
const GUEST_MEMORY_MIB: u32 = 64;
/// Time limit of a run that nobody types to.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(900);

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The machine to run on
    #[arg(long, value_enum, default_value_t = Machine::Auto)]
    pub machine: Machine,
    /// The guest: `linux`, or a test guest
    #[arg(long, value_name = "NAME", default_value = guest::LINUX, conflicts_with_all = ["kernel", "manifest"])]
    pub guest: String,
    /// A kernel of yours: bzImage, PVH ELF or Multiboot1 ELF32
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    pub kernel: Option<PathBuf>,
    /// Its initial file system, or a Multiboot module (may be repeated)
    #[arg(long, value_name = "FILE", conflicts_with = "manifest")]
    pub initrd: Vec<PathBuf>,
    /// A disk; the first is /dev/vda, and what is written to it is in the file (may be repeated). DRIVER is `ata`,
    /// with QEMU also `virtio-blk`, or `memory`: then the file stays as it is. `pv`: for guests with paravirtual drivers
    #[arg(long, value_name = "FILE[,ro][,DRIVER][,pv]", value_parser = parse_disk, conflicts_with = "manifest")]
    pub disk: Vec<DiskArg>,
    /// The guest's network. `user`: it gets an address by DHCP, reaches the world through this computer, and this computer's own
    /// loopback as 10.0.2.2. DRIVER is `ne2000`, with QEMU also `virtio-net`. `pv`: for guests with paravirtual drivers
    #[arg(long, value_name = "none|user[,DRIVER][,pv][,queues=N]", value_parser = parse_net, conflicts_with = "manifest")]
    pub net: Option<NetArg>,
    /// Pass a TCP port of this computer's loopback on to one of the guest's; goes with `--net user` (may be repeated)
    #[arg(long, value_name = "HOST:GUEST", value_parser = Publish::parse)]
    pub publish: Vec<Publish>,
    /// The guest's console. `virtio`: Linux's /dev/hvc0, which takes an exit for a line and not for each byte
    #[arg(long, value_name = "serial|virtio", value_parser = parse_console, default_value = "serial", conflicts_with = "manifest")]
    pub console: ConsoleInterface,
    /// A socket device, Linux's AF_VSOCK, and the guest's context id. At context id 2 are services of Nacre's: port 7 sends back what
    /// it gets, port 514 writes lines to the log. VMs that reach each other need a manifest
    #[arg(long, value_name = "CID", num_args = 0..=1, require_equals = true, default_missing_value = "3",
        value_parser = clap::value_parser!(u32).range(i64::from(*CIDS.start())..=i64::from(*CIDS.end())), conflicts_with = "manifest")]
    pub vsock: Option<u32>,
    /// The guest kernel's command line (for Linux: added to the usual one)
    #[arg(long, value_name = "STR", conflicts_with = "manifest")]
    pub cmdline: Option<String>,
    /// The guest's memory
    #[arg(long, value_name = "MiB", conflicts_with = "manifest")]
    pub memory: Option<u32>,
    /// The machine's memory
    #[arg(long, value_name = "MiB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub host_memory: u32,
    /// The machine's CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub host_cpus: Option<u16>,
    /// The machine's IOMMU, which confines the DMA of its devices; QEMU only, `amd` with machine svm
    #[arg(long, value_enum)]
    pub iommu: Option<Iommu>,
    /// The VMs, from a TOML file
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Run a command in the guest's shell; its output and status are passed on
    #[arg(long, value_name = "CMD", conflicts_with = "manifest")]
    pub exec: Option<String>,
    /// End the run after this many seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
    /// Where the log goes
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Log what time passed outside the guest, beside how often it exited
    #[arg(long, conflicts_with = "manifest")]
    pub statistics: bool,
    /// Stop the first VM before its first instruction, and serve gdb on this local port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub gdb: Option<u16>,
    /// Stop the machine before its first instruction, and debug Nacre itself on this local port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub gdb_nacre: Option<u16>,
    /// Repeat exactly: the guests' clocks count instructions
    #[arg(long)]
    pub deterministic: bool,
    /// Print how it ended, as JSON, and nothing else, on stdout
    #[arg(long)]
    pub json: bool,
    /// The machine's CPU model, as the emulator calls it
    #[arg(long, value_name = "MODEL", hide = true)]
    pub host_cpu: Option<String>,
    /// Nacre's own command line
    #[arg(long, value_name = "STR", default_value = "loglevel=info")]
    pub kernel_cmdline: String,
    /// Everything is built already.
    #[arg(skip)]
    pub is_built: bool,
    /// What the CPUs do is recorded.
    #[arg(skip)]
    pub trace: Option<TraceConfig>,
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArg {
    /// File with its content.
    pub path: PathBuf,
    /// The guest may only read it.
    pub is_read_only: bool,
    /// Who serves it, if the user says so.
    pub driver: Option<DiskDriver>,
    /// How the guest reaches it.
    pub interface: DiskInterface,
}

/// The guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetArg {
    /// None.
    None,
    /// The emulator's.
    User {
        /// Who drives the machine's card, if the user says so.
        driver: Option<Uplink>,
        /// How the guest reaches its own.
        interface: NetInterface,
        /// Pairs of queues of its own.
        queues: u16,
    },
}

impl NetArg {
    /// What a published port asks for.
    const USER: NetArg = NetArg::User { driver: None, interface: NetInterface::Virtio, queues: 1 };
}

fn parse_net(text: &str) -> Result<NetArg, String> {
    let (mut driver, mut interface, mut queues) = (None, NetInterface::default(), 1);
    let mut words = text.split(',');
    match words.next() {
        Some("none") if text == "none" => return Ok(NetArg::None),
        Some("user") => {}
        _ => return Err("it is `none`, or `user` with options behind commas".into()),
    }
    for word in words {
        match Uplink::PROCESSES.into_iter().find(|driver| driver.name() == word) {
            Some(uplink) => driver = Some(uplink),
            None if word == "pv" => interface = NetInterface::Pv,
            None => match word.strip_prefix("queues=").map(str::parse) {
                Some(Ok(count)) if (1..=MAX_QUEUES).contains(&count) => queues = count,
                Some(_) => return Err(format!("`queues=` is 1 to {MAX_QUEUES}")),
                None => {
                    return Err(format!(
                        "`{word}` is neither a driver (virtio-net, ne2000), nor `pv`, nor `queues=N`"
                    ));
                }
            },
        }
    }
    Ok(NetArg::User { driver, interface, queues })
}

fn parse_console(text: &str) -> Result<ConsoleInterface, String> {
    match text {
        "serial" => Ok(ConsoleInterface::Serial),
        "virtio" => Ok(ConsoleInterface::Virtio),
        _ => Err("it is `serial` or `virtio`".into()),
    }
}

fn parse_disk(text: &str) -> Result<DiskArg, String> {
    let mut disk =
        DiskArg { path: PathBuf::new(), is_read_only: false, driver: None, interface: DiskInterface::Virtio };
    let mut rest = text;
    // From the end: the file's name may have commas.
    while let Some((before, option)) = rest.rsplit_once(',') {
        let driver = DiskDriver::ALL.into_iter().find(|driver| driver.name() == option);
        match (option, driver) {
            ("ro", _) => disk.is_read_only = true,
            ("pv", _) => disk.interface = DiskInterface::Pv,
            (_, Some(driver)) => disk.driver = Some(driver),
            _ => break,
        }
        rest = before;
    }
    if rest.is_empty() {
        return Err("it names no file".into());
    }
    disk.path = rest.into();
    Ok(disk)
}

/// Options from words, as on the command line.
pub fn parse(words: &[&str]) -> Result<RunArgs> {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Words {
        #[command(flatten)]
        args: RunArgs,
    }
    let words = Words::try_parse_from(words).map_err(|error| failure::usage(error.to_string()))?;
    Ok(words.args)
}

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

impl RunArgs {
    /// What becomes of the guests' output.
    pub fn output(&self) -> Output {
        match (self.json, &self.exec) {
            (true, _) => Output::Collect,
            (false, Some(_)) => Output::Command,
            (false, None) => Output::Interactive,
        }
    }

    /// Where the log goes.
    pub fn log_path(&self) -> Result<PathBuf> {
        self.log.clone().map_or_else(run::default_log, Ok)
    }

    /// The network that the options ask for. A published port wants one.
    fn net(&self) -> Result<NetArg> {
        match self.net {
            Some(NetArg::None) if !self.publish.is_empty() => {
                Err(failure::usage("--publish needs a network: --net user"))
            }
            Some(net) => Ok(net),
            // A network takes time to come up, and repeats no run exactly.
            None if self.publish.is_empty() => Ok(NetArg::None),
            None => Ok(NetArg::USER),
        }
    }

    fn host_cpus(&self, machine: Machine) -> u16 {
        // A second CPU takes as much of the emulator's time as the first, and under QEMU 7.2 it does not go together with
        // counting instructions.
        let default = if machine.is_bochs() || self.deterministic { 1 } else { 2 };
        self.host_cpus.unwrap_or(default)
    }

    fn timeout(&self) -> Option<Duration> {
        let is_attended = self.output() == Output::Interactive && terminal::is_interactive();
        // A debugger takes its time.
        let is_attended = is_attended || self.gdb.is_some() || self.gdb_nacre.is_some();
        let default = (!is_attended).then_some(DEFAULT_TIMEOUT);
        self.timeout.map(Duration::from_secs).or(default)
    }
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
    check_host(args)?;
    check_debuggers(args)?;
    if let Some(path) = &args.manifest {
        let mut manifest = manifest::read(path)?;
        manifest::check(&manifest, host)
            .map_err(|error| failure::usage(format!("manifest {}: {error}", path.display())))?;
        if for_whom == ForWhom::Tool {
            disks::of_machine(&manifest).try_for_each(|disk| check_driver(args, disk.driver))?;
            manifest.networks.iter().try_for_each(|network| check_uplink(args, network.uplink))?;
            check_publish(args, &manifest)?;
        }
        build(args, &manifest::test_guests(&manifest))?;
        adapt(&mut manifest, args, for_whom);
        return manifest::resolve(manifest, path.parent().unwrap_or(Path::new("")), host);
    }
    // Mistakes are told before anything is built or fetched.
    let network = network(args, for_whom)?;
    args.initrd.iter().try_for_each(|path| check_readable(path))?;
    args.disk.iter().try_for_each(|disk| disks::check(&disk.path).map(drop))?;
    if for_whom == ForWhom::Tool {
        args.disk.iter().filter_map(|disk| disk.driver).try_for_each(|driver| check_driver(args, driver))?;
    }
    let kernel = args.kernel.as_deref().map(check_kernel).transpose()?;
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

/// Refuses a machine that its emulator does not have.
fn check_host(args: &RunArgs) -> Result<()> {
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
fn check_driver(args: &RunArgs, driver: DiskDriver) -> Result<()> {
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
fn check_uplink(args: &RunArgs, driver: Uplink) -> Result<()> {
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
fn check_publish(args: &RunArgs, manifest: &Manifest) -> Result<()> {
    let has_uplink = manifest.networks.iter().any(|network| network.uplink != Uplink::None);
    if !args.publish.is_empty() && !has_uplink {
        return Err(failure::usage("--publish needs a [[network]] with an uplink in the manifest"));
    }
    network::check(&args.publish)
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
        check_uplink(args, uplink)?;
        network::check(&args.publish)?;
    }
    let name = "user".to_owned();
    let card = CardConfig { network: name.clone(), interface, mac: None, bridge: false, queues };
    Ok(Some((NetworkConfig { name, uplink, on_crash: OnCrash::Restart }, card)))
}

/// Refuses what would leave a debugger without an answer.
fn check_debuggers(args: &RunArgs) -> Result<()> {
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

fn check_readable(path: &Path) -> Result<()> {
    let opened = std::fs::File::open(path).map(drop);
    opened.map_err(|error| failure::usage(format!("cannot read {}: {error}", path.display())))
}

fn check_kernel(path: &Path) -> Result<kernel_file::Kind> {
    let bytes = std::fs::read(path)
        .map_err(|error| failure::usage(format!("cannot read {}: {error}", path.display())))?;
    kernel_file::recognise(&bytes).map_err(|error| failure::usage(format!("{}: {error}", path.display())))
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
