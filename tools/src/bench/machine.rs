//! One run of the benchmark in an emulator.

use super::bochs_trace::{self, Trace};
use super::heavy::Counts;
use super::qemu_trace::{self, Code};
use crate::image::{BootImage, Module, elf, iso};
use crate::run::emulator::Emulator;
use crate::run::event::{Event, Events};
use crate::run::link::Listener;
use crate::run::machine::{Iommu, Machine};
use crate::run::{Options, Output, Script, bochs, log::Log, qemu};
use crate::{progress, workspace};
use anyhow::{Context, Result, bail};
use bench_protocol::{
    DISK_BYTES, DISK_MODULE, FIRST_MODULE, GUEST_MODULE, Line, REQUEST_MODULE, STRETCHES, Summary,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vmm_protocol::manifest::{MONITOR_MODULE, ROOT_MODULE, SWITCH_MODULE};

/// Memory of the machine.
pub const MEMORY_MIB: u32 = 2048;
/// How long a run may take.
const TIME_LIMIT: Duration = Duration::from_secs(900);
/// How long the benchmark may say nothing: an operation's samples take seconds, on a loaded machine minutes.
const PATIENCE: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_millis(50);

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Ticks.
    Measure,
    /// Which instructions are executed.
    Trace,
}

/// What is measured, where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The machine.
    pub machine: Machine,
    /// What runs in place of the root task.
    pub program: &'static str,
    /// Beginnings of the names of operations; empty for all.
    pub only: Vec<String>,
    /// Mitigations of side channels: `off` or `auto`.
    pub mitigations: &'static str,
    /// CPUs.
    pub cpus: u16,
    /// More for the kernel's command line.
    pub cmdline: &'static str,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Measurements {
    /// By operation: the samples, or why there are none.
    pub results: BTreeMap<String, Result<Summary, String>>,
    /// By operation: what was executed.
    pub heavy: BTreeMap<String, Counts>,
    /// The longest stretches with interrupts off, by event.
    pub stretches: BTreeMap<u16, u64>,
}

impl Measurements {
    /// Adds those of another run.
    pub fn merge(&mut self, other: Measurements) {
        self.results.extend(other.results);
        self.heavy.extend(other.heavy);
    }

    /// The median of an operation.
    pub fn median(&self, op: &str) -> Option<u64> {
        let result = self.results.get(op)?;
        Some(result.as_ref().ok()?.median)
    }
}

/// Boots the benchmark and collects what it says.
pub fn run(plan: &Plan, purpose: Purpose) -> Result<Measurements> {
    plan.machine.prepare()?;
    let image = image(plan)?;
    let scratch = tempfile::Builder::new()
        .prefix("nacre-bench-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let folder = scratch.path();
    let options = options(plan)?;
    let (command, listener) = if plan.machine.is_bochs() {
        let listener = Listener::tcp()?;
        iso::make(&image, iso::Firmware::Bios, folder, &folder.join(iso::FILE))?;
        (bochs_command(&options, folder, listener.port(), purpose)?, listener)
    } else {
        let listener = Listener::unix(&folder.join(qemu::LINK_SOCKET))?;
        image.lay_out(folder)?;
        let mut command = qemu::command(&options, &image, &[], &[]);
        if purpose == Purpose::Trace {
            command.args(qemu_trace::options());
        }
        (command, listener)
    };
    Session::start(command, listener, folder, &options)?.collect(folder, purpose)
}

fn image(plan: &Plan) -> Result<BootImage> {
    let program = |name: &str| elf::loadable(&workspace::bare_binary(name));
    let module = |name: &str, bytes| Module { name: name.to_owned(), bytes };
    let asks_for_stretches = plan.only.iter().any(|word| word == STRETCHES);
    Ok(BootImage {
        kernel: program("kernel")?,
        cmdline: format!("loglevel=error mitigations={} {}", plan.mitigations, plan.cmdline),
        modules: vec![
            module(ROOT_MODULE, program(plan.program)?),
            module(REQUEST_MODULE, format!("{}\n", plan.only.join(" ")).into_bytes()),
            module(MONITOR_MODULE, program("monitor")?),
            module(SWITCH_MODULE, program("switch")?),
            module(FIRST_MODULE, program(FIRST_MODULE)?),
            module(GUEST_MODULE, program(GUEST_MODULE)?),
            module(DISK_MODULE, vec![0; DISK_BYTES]),
        ]
        .into_iter()
        .chain(asks_for_stretches.then(|| module(STRETCHES, b"\n".to_vec())))
        .collect(),
    })
}

fn options(plan: &Plan) -> Result<Options> {
    Ok(Options {
        machine: plan.machine,
        host_memory_mib: MEMORY_MIB,
        host_cpus: plan.cpus,
        deterministic: true,
        timeout: Some(TIME_LIMIT),
        log: workspace::own_dir("log")?.join(format!("bench-{}.log", plan.machine.name())),
        kernel_cmdline: String::new(),
        output: Output::Collect,
        exec: false,
        script: Script::default(),
        gdb: None,
        gdb_nacre: None,
        publish: Vec::new(),
        iommu: Iommu::None,
        has_edu: false,
        write_log: None,
        cpu_model: None,
    })
}

fn bochs_command(options: &Options, folder: &Path, port: u16, purpose: Purpose) -> Result<Command> {
    let command = bochs::command(options, &[], &[], folder, port)?;
    if purpose == Purpose::Trace {
        let configuration = folder.join(bochs::CONFIGURATION);
        let mut text = workspace::read(&configuration)?;
        text.extend(bochs_trace::CONFIGURATION.as_bytes());
        workspace::write(&configuration, text)?;
        workspace::write(&folder.join(bochs::DEBUGGER_COMMANDS), bochs_trace::commands())?;
    }
    Ok(command)
}

/// A running emulator.
struct Session {
    emulator: Emulator,
    events: Events,
    log: Log,
    measurements: Measurements,
    /// Operations that were announced, in order.
    windows: Vec<String>,
    trace: Trace,
    /// What is measured now, as far as it is known, and when the benchmark last said something.
    current: (String, Instant),
    is_complete: bool,
}

impl Session {
    fn start(command: Command, listener: Listener, folder: &Path, options: &Options) -> Result<Self> {
        let log = Log::create(&options.log)?;
        let events = Events::new()?;
        let emulator = Emulator::start(command, folder, options.machine, &events)?;
        listener.serve(&events)?;
        Ok(Session {
            emulator,
            events,
            log,
            measurements: Measurements::default(),
            windows: Vec::new(),
            trace: Trace::default(),
            current: ("the boot".to_owned(), Instant::now()),
            is_complete: false,
        })
    }

    fn collect(mut self, folder: &Path, purpose: Purpose) -> Result<Measurements> {
        let is_qemu_trace = purpose == Purpose::Trace && !self.emulator.machine().is_bochs();
        let windows = if is_qemu_trace { self.trace_qemu(folder)? } else { Vec::new() };
        self.wait()?;
        if !self.is_complete {
            let said = self.emulator.last_words().unwrap_or_default();
            let last: Vec<&str> = self.log.tail().collect();
            bail!(
                "the benchmark ended early, with `{}`; the log {} ends with:\n{}\n{said}",
                self.current.0,
                self.log.path().display(),
                last[last.len().saturating_sub(8)..].join("\n"),
            );
        }
        let windows = if is_qemu_trace { windows } else { self.trace.into_windows() };
        self.measurements.heavy = self.windows.into_iter().zip(windows).collect();
        Ok(self.measurements)
    }

    /// Steps through the operations by QEMU's gdb server.
    fn trace_qemu(&mut self, folder: &Path) -> Result<Vec<Counts>> {
        qemu_trace::trace(folder, &Code::read()?).map_err(|error| {
            // What the benchmark said meanwhile.
            while let Some(event) = self.events.next(TICK) {
                if let Event::Stdout(line) = event {
                    self.line(&line);
                }
            }
            error.context(format!("the trace ended early, with `{}`", self.current.0))
        })
    }

    /// Reads until the machine is off.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            while let Some(event) = self.events.next(TICK) {
                match event {
                    Event::Stdout(line) => self.line(&line),
                    Event::Stderr(line) => self.log.raw(&line),
                    Event::Signal(signal) => bail!("ended by signal {signal}"),
                    _ => {}
                }
            }
            if self.emulator.ended().is_some() {
                break;
            }
            let (op, since) = &self.current;
            if Instant::now() > deadline.min(*since + PATIENCE) {
                let said = since.elapsed().as_secs();
                progress::step(format_args!(
                    "the time is up: the last that was heard of `{op}` was {said} s ago"
                ));
                self.emulator.stop();
                break;
            }
        }
        // What was printed last is in the queue by now.
        while let Some(event) = self.events.next(TICK) {
            if let Event::Stdout(line) = event {
                self.line(&line);
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        if self.emulator.machine().is_bochs() {
            self.trace.push(line);
            if bochs::kernel_line(line).is_none() {
                return;
            }
        }
        self.log.raw(line);
        let results = &mut self.measurements.results;
        let said = Line::parse(line);
        if said.is_some() {
            self.current.1 = Instant::now();
        }
        match said {
            Some(Line::Begin { op }) => op.clone_into(&mut self.current.0),
            Some(Line::Result { op, summary }) => {
                results.insert(op.to_owned(), Ok(summary));
            }
            Some(Line::Failed { op, why }) => {
                results.insert(op.to_owned(), Err(why.to_owned()));
            }
            Some(Line::Stretch { event, ticks }) => {
                self.measurements.stretches.insert(event, ticks);
            }
            Some(Line::Window { op }) => self.windows.push(op.to_owned()),
            Some(Line::End) => self.is_complete = true,
            None => {}
        }
    }
}
