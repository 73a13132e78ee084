//! Running Nacre in an emulator: starting it, being the host's end of its serial line, and saying how it ended.

pub mod bochs;
pub mod emulator;
pub mod event;
pub mod gdb;
pub mod keys;
pub mod link;
pub mod log;
pub mod machine;
pub mod multiplex;
pub mod network;
pub mod outcome;
pub mod qemu;
pub mod session;
pub mod size;
pub mod symbols;
pub mod terminal;

use crate::image::manifest::Plan;
use crate::image::{BootImage, disks, iso};
use crate::workspace;
use anyhow::{Context, Result};
use emulator::Emulator;
use link::Listener;
use machine::{Iommu, Machine};
use outcome::Report;
use session::Session;
use std::path::PathBuf;
use std::time::Duration;
use vmm_protocol::link::TerminalSize;

/// What to run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine, resolved: never [`Machine::Auto`].
    pub machine: Machine,
    /// Memory of the machine in MiB.
    pub host_memory_mib: u32,
    /// CPUs of the machine.
    pub host_cpus: u16,
    /// Same input, same instruction counts; else the guests' clocks follow the wall clock.
    pub deterministic: bool,
    /// How long the run may take.
    pub timeout: Option<Duration>,
    /// Where the log goes.
    pub log: PathBuf,
    /// The kernel's command line.
    pub kernel_cmdline: String,
    /// What becomes of the guests' output.
    pub output: Output,
    /// The first VM's agent runs a command, whose end counts.
    pub exec: bool,
    /// What a test does during the run.
    pub script: Script,
    /// Local port for the first VM's debugger.
    pub gdb: Option<u16>,
    /// Local port for Nacre's own debugger.
    pub gdb_nacre: Option<u16>,
    /// Ports that are passed on to a guest.
    pub publish: Vec<network::Publish>,
    /// The machine's IOMMU.
    pub iommu: Iommu,
    /// It has a device that does DMA when it is told to, for tests; QEMU's only.
    pub has_edu: bool,
    /// QEMU logs here what is written to the first disk, which is virtio-blk's, for `crate::replay`.
    pub write_log: Option<PathBuf>,
    /// Another CPU model than the machine's usual one.
    pub cpu_model: Option<String>,
}

/// What a test does during the run.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// When the first VM's console has shown this text, the other is typed there, once.
    pub answer: Option<(String, String)>,
    /// The terminal that the consoles are shown on.
    pub terminal: Option<Resize>,
    /// The run ends when this VM has ended, whatever the others do.
    pub until: Option<usize>,
}

/// A terminal that gets another size.
#[derive(Clone, Debug)]
pub struct Resize {
    /// Its size at first.
    pub first: TerminalSize,
    /// When the first VM's console has shown this text, it has another.
    pub when: String,
    /// That one.
    pub then: TerminalSize,
}

/// What becomes of the guests' output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Consoles on stdout, and what is typed goes to the first VM's.
    Interactive,
    /// Consoles go to the log; the command's stdout and stderr are passed on.
    Command,
    /// Everything is collected in the [`Report`].
    Collect,
}

/// Runs `plan` and reports how it ended. Errors are failures to start; what goes wrong later is in the report.
pub fn run(plan: &Plan, options: &Options) -> Result<Report> {
    options.machine.prepare()?;
    boot(&BootImage::collect(plan, &options.kernel_cmdline)?, plan, options)
}

/// Runs `image`, which holds the VMs of `plan`.
pub fn boot(image: &BootImage, plan: &Plan, options: &Options) -> Result<Report> {
    let scratch =
        tempfile::Builder::new().prefix("nacre-").tempdir().context("cannot make a temporary folder")?;
    let disks = disks::lay_out(&plan.manifest, scratch.path(), options.machine)?;
    let cards = network::cards(&plan.manifest, &options.publish);
    let listener;
    let command = if options.machine.is_bochs() {
        listener = Listener::tcp()?;
        let iso = scratch.path().join(iso::FILE);
        iso::make(image, iso::Firmware::Bios, scratch.path(), &iso)?;
        bochs::command(options, &disks, &cards, scratch.path(), listener.port())?
    } else {
        listener = Listener::unix(&scratch.path().join(qemu::LINK_SOCKET))?;
        image.lay_out(scratch.path())?;
        if let Some(log) = &options.write_log {
            workspace::write(log, [])?;
            let link = scratch.path().join(qemu::WRITE_LOG);
            std::os::unix::fs::symlink(log, link).context("cannot link to a log")?;
        }
        qemu::command(options, image, &disks, &cards)
    };
    run_machine(command, listener, scratch.path(), plan, options)
}

/// Runs an emulator that is ready to start, in `folder`.
pub fn run_machine(
    command: std::process::Command,
    listener: Listener,
    folder: &std::path::Path,
    plan: &Plan,
    options: &Options,
) -> Result<Report> {
    let log = log::Log::create(&options.log)?;
    let events = event::Events::new()?;
    let emulator = Emulator::start(command, folder, options.machine, &events)?;
    listener.serve(&events)?;
    let names = plan.manifest.vms.iter().map(|vm| vm.name.clone()).collect();
    let report = Session::new(names, options, emulator, log)?.run(&events);
    if options.machine.is_bochs() {
        bochs::keep_log(folder, &options.log);
    }
    Ok(report)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len().max(1)).any(|window| window == part)
}

/// Where a run's log goes if the user does not say.
pub fn default_log() -> Result<PathBuf> {
    Ok(workspace::own_dir("log")?.join("run.log"))
}
