//! The emulator's process.

use super::event::{Event, Events};
use super::machine::Machine;
use crate::failure;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A running emulator; dropping it kills it.
pub struct Emulator {
    child: Child,
    machine: Machine,
    folder: PathBuf,
    readers: Vec<JoinHandle<()>>,
}

impl Emulator {
    /// Starts `command` in `folder`; what it prints becomes events.
    pub fn start(command: Command, folder: &Path, machine: Machine, events: &Events) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        // The emulator dies with us even if we are killed; setpriv belongs to every Debian system.
        let mut guarded = Command::new("setpriv");
        guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                guarded.env(name, value);
            }
        }
        let mut child = guarded
            .current_dir(folder)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failure::setup(format!("cannot start {program}: {error}")))?;
        let stdout = child.stdout.take().context("the emulator has no stdout")?;
        let stderr = child.stderr.take().context("the emulator has no stderr")?;
        let readers = vec![
            thread::spawn(forward(stdout, events.sender(), Event::Stdout)),
            thread::spawn(forward(stderr, events.sender(), Event::Stderr)),
        ];
        Ok(Emulator { child, machine, folder: folder.to_path_buf(), readers })
    }

    /// Its exit status, once it has ended and all that it printed is in the queue.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        for reader in self.readers.drain(..) {
            // The pipes are at their end, unless a process outside the group holds them, which nothing starts.
            let _ = reader.join();
        }
        Some(status)
    }

    /// The machine that it emulates.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// What it says about why it stopped, where it leaves a log.
    pub fn last_words(&self) -> Option<String> {
        if self.machine.is_bochs() { super::bochs::last_words(&self.folder) } else { None }
    }

    /// Ends it: politely, then not.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        for _ in 0..20 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            thread::sleep(Duration::from_millis(25));
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile, which is what is wanted.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.stop();
        }
    }
}

/// Reads lines until the end and sends each as an event.
fn forward(source: impl Read + Send, to: Sender<Event>, event: fn(String) -> Event) -> impl FnOnce() + Send {
    move || {
        for line in BufReader::new(source).split(b'\n') {
            let Ok(line) = line else { break };
            if to.send(event(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())).is_err() {
                break;
            }
        }
    }
}
