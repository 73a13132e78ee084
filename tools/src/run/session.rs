//! A run from the emulator's start to its end: what comes over the line goes where it belongs, and an end of some kind is
//! always reached.

use super::emulator::Emulator;
use super::event::{Event, Events};
use super::gdb::Gdb;
use super::keys::{self, Action, Keys};
use super::log::{Lines, Log};
use super::multiplex::Multiplexer;
use super::outcome::{self, Report, Verdict, VmReport};
use super::size::Size;
use super::symbols::Symbols;
use super::terminal::{self, Raw};
use super::{Options, Output, bochs, contains, link};
use crate::{progress, workspace};
use anyhow::Result;
use std::io::{self, Write};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use vmm_protocol::link::{Frame, NO_VM, Stream, VERSION};
use vmm_protocol::outcome::Outcome;
use vmm_protocol::trace;

/// How long the system may take until its console server speaks, unless the whole run may take less.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// How long the machine may take to go off when everything is said.
const CLOSING_TIME: Duration = Duration::from_secs(5);
/// How long an epitaph may take.
const EPITAPH_TIME: Duration = Duration::from_secs(2);
/// How often the emulator's process is looked at.
const TICK: Duration = Duration::from_millis(50);
/// What the lines of the kernel's epitaph begin with.
const EPITAPH: &str = "epitaph: ";
/// What is around the kernel's reason not to run on a machine.
const REFUSAL: (&str, &str) = ("nacre: ", ": Nacre cannot run here");

/// A run.
pub struct Session<'a> {
    options: &'a Options,
    emulator: Emulator,
    log: Log,
    vms: Vec<VmReport>,
    console_lines: Vec<Lines>,
    agent_lines: Lines,
    command_status: Option<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    to_guest: Option<Box<dyn Write + Send>>,
    keys: Keys,
    screen: Multiplexer,
    gdb: Option<Gdb>,
    answer: Option<(String, String)>,
    size: Size,
    typing_to: u8,
    is_up: bool,
    is_done: bool,
    link_closed: bool,
    closing: Option<Instant>,
    epitaph: Vec<String>,
    refusal: Option<String>,
    emulator_errors: Vec<String>,
    start: Instant,
}

/// Why the loop ends.
enum Stop {
    /// The emulator ended.
    Exited(ExitStatus),
    /// Everything is said, or will not be said any more.
    Closed,
    /// For a reason of the tool's own.
    Verdict(Verdict, String),
}

impl<'a> Session<'a> {
    /// A session with VMs of these names.
    pub fn new(names: Vec<String>, options: &'a Options, emulator: Emulator, log: Log) -> Result<Self> {
        let console_lines = names.iter().map(|_| Lines::default()).collect();
        let size = Size::new(names.len(), options);
        let vms =
            names.into_iter().map(|name| VmReport { name, outcome: None, console: Vec::new() }).collect();
        Ok(Session {
            options,
            emulator,
            log,
            vms,
            console_lines,
            agent_lines: Lines::default(),
            command_status: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            to_guest: None,
            keys: Keys::default(),
            screen: Multiplexer::default(),
            gdb: None,
            answer: options.script.answer.clone(),
            size,
            typing_to: 0,
            is_up: false,
            is_done: false,
            link_closed: false,
            closing: None,
            epitaph: Vec::new(),
            refusal: None,
            emulator_errors: Vec::new(),
            start: Instant::now(),
        })
    }

    /// Runs until the end.
    pub fn run(mut self, events: &Events) -> Report {
        self.gdb = self.options.gdb.map(|port| Gdb::new(port, events.sender()));
        let raw = (self.options.output == Output::Interactive).then(Raw::enter).flatten();
        if self.options.output == Output::Interactive {
            terminal::read_input(events);
        }
        let stop = loop {
            if let Some(stop) = self.step(events) {
                break stop;
            }
        };
        self.emulator.stop();
        self.drain(events);
        drop(raw);
        self.report(stop)
    }

    /// Handles one event, or the passing of time.
    fn step(&mut self, events: &Events) -> Option<Stop> {
        if let Some(event) = events.next(TICK) {
            match self.handle(event) {
                Ok(None) => {}
                Ok(Some(stop)) => return Some(stop),
                Err(error) => {
                    // Whoever read our output is gone; a shell would say the same.
                    const SIGPIPE: u8 = 13;
                    return Some(Stop::Verdict(
                        Verdict::Signalled(SIGPIPE),
                        format!("cannot write the output: {error}"),
                    ));
                }
            }
        }
        let now = Instant::now();
        if self.options.timeout.is_some_and(|limit| now >= self.start + limit) {
            let limit = self.options.timeout.unwrap_or_default();
            return Some(Stop::Verdict(
                Verdict::TimedOut,
                format!("the time is up: {}", progress::seconds(limit)),
            ));
        }
        let is_stopped = self.options.gdb_nacre.is_some();
        let awaits_console = !self.is_up && !self.vms.is_empty() && !is_stopped;
        if awaits_console && now >= self.start + BOOT_TIME {
            let detail = format!("Nacre did not come up within {}", progress::seconds(BOOT_TIME));
            return Some(Stop::Verdict(Verdict::NacreFailed, detail));
        }
        if self.closing.is_some_and(|at| now >= at) {
            return Some(Stop::Closed);
        }
        self.emulator.ended().map(Stop::Exited)
    }

    /// Takes what is still in the queue when the emulator has ended; its line is the last to close.
    fn drain(&mut self, events: &Events) {
        let deadline = Instant::now() + EPITAPH_TIME;
        let expects_close = self.to_guest.is_some();
        while Instant::now() < deadline {
            match events.next(TICK) {
                Some(event) => {
                    // The run is over: neither a full pipe nor a request to end changes that.
                    let _ = self.handle(event);
                }
                None if self.link_closed || !expects_close => break,
                None => {}
            }
        }
    }

    fn handle(&mut self, event: Event) -> io::Result<Option<Stop>> {
        match event {
            Event::Connected(writer) => self.to_guest = Some(writer),
            Event::LinkClosed => self.link_closed = true,
            Event::Frame(frame) => self.frame(frame)?,
            Event::Stdout(line) => self.kernel_line(&line),
            Event::Stderr(line) => self.emulator_errors.push(line),
            Event::Input(bytes) => {
                for action in self.keys.push(&bytes) {
                    if action == Action::Leave {
                        return Ok(Some(Stop::Verdict(Verdict::Left, String::new())));
                    }
                    self.act(&action)?;
                }
            }
            Event::Resized => self.size.follow_terminal(&mut self.to_guest),
            Event::Gdb(event) => {
                if let (Some(gdb), Some(writer)) = (&mut self.gdb, &mut self.to_guest) {
                    // A line that is closed ends the run by itself.
                    let _ = link::send(writer, Stream::Gdb, 0, &gdb.handle(event));
                }
            }
            Event::Signal(signal) => {
                let verdict = Verdict::Signalled(u8::try_from(signal).unwrap_or_default());
                return Ok(Some(Stop::Verdict(verdict, format!("ended by signal {signal}"))));
            }
        }
        Ok(None)
    }

    fn act(&mut self, action: &Action) -> io::Result<()> {
        let mut out = io::stdout();
        match action {
            Action::Send(bytes) => {
                if let Some(writer) = &mut self.to_guest {
                    // A line that is closed ends the run by itself.
                    let _ = link::send(writer, Stream::Console, self.typing_to, bytes);
                }
            }
            Action::NextVm => {
                self.typing_to = ((usize::from(self.typing_to) + 1) % self.vms.len().max(1)) as u8;
                write!(out, "\r\nnacre: typing to VM `{}`\r\n", self.vms[usize::from(self.typing_to)].name)?;
            }
            Action::Help => write!(out, "\r\n{}", keys::HELP)?,
            Action::Leave => {}
        }
        out.flush()
    }

    fn kernel_line(&mut self, line: &str) {
        let line = if self.emulator.machine().is_bochs() { bochs::kernel_line(line) } else { Some(line) };
        let Some(line) = line else { return };
        self.log.raw(line);
        if line.starts_with(trace::PREFIX) && self.closing.is_some() {
            // There is more to come.
            self.closing = Some(Instant::now() + CLOSING_TIME);
        }
        if line.starts_with(EPITAPH) {
            self.epitaph.push(line.to_owned());
            self.close_within(EPITAPH_TIME);
        } else if let Some(why) = refusal(line) {
            self.refusal = Some(why.to_owned());
            self.close_within(EPITAPH_TIME);
        }
    }

    fn frame(&mut self, frame: Frame) -> io::Result<()> {
        match frame.stream {
            Stream::Hello => self.hello(&frame.payload),
            Stream::Bye => {
                self.is_done = true;
                self.close_within(CLOSING_TIME);
            }
            Stream::Log => {
                let who = self.vms.get(usize::from(frame.vm)).map_or("system", |vm| &vm.name).to_owned();
                self.log.line(&who, String::from_utf8_lossy(&frame.payload).trim_end());
            }
            Stream::Outcome => self.outcome(&frame),
            Stream::Console => self.console(&frame)?,
            Stream::Stdout => self.pass(&frame, io::stdout(), |session| &mut session.stdout)?,
            Stream::Stderr => self.pass(&frame, io::stderr(), |session| &mut session.stderr)?,
            Stream::Agent => self.agent(&frame.payload),
            Stream::Gdb if frame.vm == 0 => self.stub(&frame.payload),
            Stream::Gdb => {}
            Stream::Size => self.size.ask(frame.vm, &mut self.to_guest),
        }
        Ok(())
    }

    fn hello(&mut self, payload: &[u8]) {
        if self.is_up {
            self.log.line("nacre", "the machine started again; ending it");
            self.close_within(Duration::ZERO);
        }
        self.is_up = true;
        if payload != [VERSION] {
            self.log.line(
                "nacre",
                &format!("the console server speaks version {payload:?}, this tool {VERSION}"),
            );
        }
    }

    fn outcome(&mut self, frame: &Frame) {
        let Some(outcome) = Outcome::decode(&frame.payload) else {
            self.log.line("nacre", "an outcome came that this tool does not know");
            return;
        };
        let Some(vm) = self.vms.get_mut(usize::from(frame.vm)) else {
            self.log.line("nacre", &format!("an outcome came of VM {}, which does not exist", frame.vm));
            return;
        };
        self.log.line(&vm.name, &outcome.to_string());
        vm.outcome = Some(outcome);
        if self.options.script.until == Some(usize::from(frame.vm)) {
            self.close_within(Duration::ZERO);
        } else if self.vms.iter().all(|vm| vm.outcome.is_some()) {
            self.close_within(CLOSING_TIME);
        }
    }

    /// Console output: to the user, or to the log and the report.
    fn console(&mut self, frame: &Frame) -> io::Result<()> {
        let number = usize::from(frame.vm);
        let is_alone = self.vms.len() == 1;
        let Some(vm) = self.vms.get_mut(number) else {
            return Ok(());
        };
        let mut out = io::stdout();
        match self.options.output {
            Output::Interactive if is_alone => {
                out.write_all(&frame.payload)?;
                return out.flush();
            }
            Output::Interactive => {
                out.write_all(&self.screen.push(number, &vm.name, &frame.payload))?;
                return out.flush();
            }
            Output::Collect => vm.console.extend(&frame.payload),
            Output::Command => {}
        }
        let log = &mut self.log;
        self.console_lines[number].push(&frame.payload, |line| log.line(&vm.name, line));
        if number == 0 {
            self.size.follow_script(&vm.console, &mut self.to_guest);
        }
        if number == 0
            && let Some((prompt, _)) = &self.answer
            && contains(&vm.console, prompt.as_bytes())
            && let Some((_, text)) = self.answer.take()
        {
            self.act(&Action::Send(text.into_bytes()))?;
        }
        Ok(())
    }

    /// What the command writes: passed on as it is, or collected.
    fn pass(
        &mut self,
        frame: &Frame,
        mut to: impl Write,
        collected: fn(&mut Self) -> &mut Vec<u8>,
    ) -> io::Result<()> {
        if self.options.output == Output::Command {
            to.write_all(&frame.payload)?;
            return to.flush();
        }
        collected(self).extend(&frame.payload);
        Ok(())
    }

    /// What the first VM's stub says to gdb.
    fn stub(&mut self, payload: &[u8]) {
        match self.gdb.as_mut().map(|gdb| gdb.receive(payload)) {
            Some(Ok(Some(news))) => progress::step(news),
            Some(Err(error)) => self.log.line("nacre", &format!("{error:#}")),
            Some(Ok(None)) | None => {}
        }
    }

    fn agent(&mut self, payload: &[u8]) {
        let mut status = None;
        self.agent_lines.push(payload, |line| status = exit_status(line).or(status));
        self.command_status = status.or(self.command_status);
    }

    /// Ends the run after this long at the latest.
    fn close_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.closing = Some(self.closing.map_or(at, |earlier| earlier.min(at)));
    }

    fn report(mut self, stop: Stop) -> Report {
        for (vm, lines) in self.vms.iter().zip(&mut self.console_lines) {
            if let Some(rest) = lines.take_rest() {
                self.log.line(&vm.name, &rest);
            }
        }
        let command = self.options.exec.then_some(self.command_status);
        let (verdict, detail) = match stop {
            Stop::Verdict(verdict, detail) => (verdict, detail),
            _ if self.refusal.is_some() => {
                let why = self.refusal.take().unwrap_or_default();
                (Verdict::Refused, format!("Nacre cannot run on this machine: {why}"))
            }
            _ if !self.epitaph.is_empty() => {
                (Verdict::NacreFailed, "the kernel panicked; its epitaph is below".into())
            }
            _ if self.is_done || self.vms.iter().any(|vm| vm.outcome.is_some()) => {
                outcome::verdict(&self.vms, command)
            }
            Stop::Exited(status) => (Verdict::NacreFailed, self.emulator_failure(status)),
            Stop::Closed => (Verdict::NacreFailed, "the machine restarted by itself".into()),
        };
        let epitaph = explained(&self.epitaph);
        epitaph.iter().filter(|line| line.starts_with(' ')).for_each(|line| self.log.raw(line));
        Report {
            verdict,
            detail,
            vms: self.vms,
            stdout: self.stdout,
            stderr: self.stderr,
            epitaph,
            took: self.start.elapsed(),
        }
    }

    /// A sentence about an emulator that ended before Nacre did.
    fn emulator_failure(&self, status: ExitStatus) -> String {
        let machine = self.emulator.machine().name();
        let said = self.emulator.last_words().or_else(|| {
            self.emulator_errors
                .iter()
                .rev()
                .find(|line| !line.is_empty() && !line.contains("warning: "))
                .cloned()
        });
        let last = self.log.tail().last().map(|line| format!("; the last line of the log: {line}"));
        format!(
            "machine {machine} ended ({status}) before Nacre did{}{}",
            said.map(|said| format!(", saying: {said}")).unwrap_or_default(),
            last.unwrap_or_default()
        )
    }
}

/// The status in the agent's line `exit N`.
fn exit_status(line: &str) -> Option<u8> {
    line.strip_prefix("exit ")?.trim().parse().ok()
}

/// The reason in a line with which the kernel refuses a machine.
fn refusal(line: &str) -> Option<&str> {
    line.strip_prefix(REFUSAL.0)?.strip_suffix(REFUSAL.1)
}

/// The epitaph with a line of explanation under each line that has kernel addresses.
fn explained(epitaph: &[String]) -> Vec<String> {
    if epitaph.is_empty() {
        return Vec::new();
    }
    let symbols = Symbols::read(&workspace::kernel_binary());
    let mut lines = Vec::new();
    for line in epitaph {
        lines.push(line.clone());
        lines.extend(symbols.explain(line).into_iter().map(|name| format!("    {name}")));
    }
    lines
}

/// Frames that concern no VM carry this number; a VM list can never be that long.
const _: () = assert!(NO_VM == u8::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_line_gives_the_status() {
        assert_eq!(exit_status("exit 7"), Some(7));
        assert_eq!(exit_status("exit 255\r"), Some(255));
        assert_eq!(exit_status("exiting"), None);
    }

    #[test]
    fn a_refusal_is_told_from_other_lines() {
        assert_eq!(refusal("nacre: no EPT: Nacre cannot run here"), Some("no EPT"));
        assert_eq!(refusal("[kernel INFO] Nacre 0.1.0"), None);
    }
}
