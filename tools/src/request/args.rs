//! The options of `run` and `image`, as words on the command line.

use crate::run::machine::{Iommu, Machine};
use crate::run::network::Publish;
use crate::run::{self, Output, terminal};
use crate::{failure, guest};
use anyhow::Result;
use clap::{Args, Parser};
use std::path::PathBuf;
use std::time::Duration;
use vmm_protocol::manifest::{
    CIDS, ConsoleInterface, DiskDriver, DiskInterface, MAX_QUEUES, NetInterface, TraceConfig, Uplink,
};

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
    pub(super) fn net(&self) -> Result<NetArg> {
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

    pub(super) fn host_cpus(&self, machine: Machine) -> u16 {
        // A second CPU takes as much of the emulator's time as the first, and under QEMU 7.2 it does not go together with
        // counting instructions.
        let default = if machine.is_bochs() || self.deterministic { 1 } else { 2 };
        self.host_cpus.unwrap_or(default)
    }

    pub(super) fn timeout(&self) -> Option<Duration> {
        let is_attended = self.output() == Output::Interactive && terminal::is_interactive();
        // A debugger takes its time.
        let is_attended = is_attended || self.gdb.is_some() || self.gdb_nacre.is_some();
        let default = (!is_attended).then_some(DEFAULT_TIMEOUT);
        self.timeout.map(Duration::from_secs).or(default)
    }
}
