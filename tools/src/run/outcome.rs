//! How a run ended: names, exit codes and sentences.

use crate::failure::Kind;
use serde_json::{Value, json};
use std::time::Duration;
use vmm_protocol::outcome::Outcome;

/// Exit code when the guest crashed.
pub const GUEST_DIED: u8 = 70;
/// Exit code when the VM was powered off or reset before the command ended.
pub const ENDED_EARLY: u8 = 71;
/// Exit code when the guest reset the VM.
pub const RESET: u8 = 73;
/// Exit code when the time was up.
pub const TIMED_OUT: u8 = 124;
/// Added to a signal's number, as a shell does.
pub const SIGNALLED: u8 = 128;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The command ended with this status.
    Command(u8),
    /// The guest powered off, and nothing more was asked of it.
    PoweredOff,
    /// The VM ended, in good order, before the command did.
    EndedEarly,
    /// The guest reset the VM.
    Reset,
    /// The guest wrote this value to port 0xf4.
    ExitCode(u32),
    /// The guest crashed, or did what the VMM does not support.
    GuestDied,
    /// The VM could not be started.
    NotStarted,
    /// The kernel cannot run on this machine.
    Refused,
    /// The VMM process crashed, or the kernel or the emulator did.
    NacreFailed,
    /// The time was up.
    TimedOut,
    /// The user left.
    Left,
    /// A signal ended the tool.
    Signalled(u8),
}

impl Verdict {
    /// What a VM's outcome means for the run.
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::PoweredOff => Verdict::PoweredOff,
            Outcome::Reset => Verdict::Reset,
            Outcome::ExitCode(value) => Verdict::ExitCode(*value),
            Outcome::TripleFault { .. }
            | Outcome::Stuck { .. }
            | Outcome::EntryFailure { .. }
            | Outcome::OutOfMemory
            | Outcome::Unsupported { .. } => Verdict::GuestDied,
            Outcome::NotStarted { .. } => Verdict::NotStarted,
            Outcome::VmmCrashed { .. } => Verdict::NacreFailed,
        }
    }

    /// The tool's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Verdict::Command(status) => *status,
            Verdict::PoweredOff | Verdict::Left => 0,
            Verdict::EndedEarly => ENDED_EARLY,
            Verdict::Reset => RESET,
            Verdict::ExitCode(value) => debug_exit_code(*value),
            Verdict::GuestDied => GUEST_DIED,
            Verdict::NotStarted | Verdict::Refused => Kind::Setup.code(),
            Verdict::NacreFailed => Kind::Internal.code(),
            Verdict::TimedOut => TIMED_OUT,
            Verdict::Signalled(signal) => SIGNALLED.wrapping_add(*signal),
        }
    }

    /// Its name in `--json`.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Command(_) => "command-ended",
            Verdict::PoweredOff => "powered-off",
            Verdict::EndedEarly => "powered-off-early",
            Verdict::Reset => "reset",
            Verdict::ExitCode(_) => "exit-code",
            Verdict::GuestDied => "guest-died",
            Verdict::NotStarted => "not-started",
            Verdict::Refused => "refused",
            Verdict::NacreFailed => Kind::Internal.name(),
            Verdict::TimedOut => "timed-out",
            Verdict::Left => "left",
            Verdict::Signalled(_) => "signalled",
        }
    }
}

/// The exit code of QEMU's isa-debug-exit device.
pub fn debug_exit_code(value: u32) -> u8 {
    ((value << 1) | 1) as u8
}

/// A VM's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmReport {
    /// Its name.
    pub name: String,
    /// How it ended, if it did.
    pub outcome: Option<Outcome>,
    /// What it wrote to its console, where that is collected.
    pub console: Vec<u8>,
}

/// A run's end.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub verdict: Verdict,
    /// A sentence about it, for a person; empty when all went well.
    pub detail: String,
    /// The VMs.
    pub vms: Vec<VmReport>,
    /// What the command wrote, where that is collected.
    pub stdout: Vec<u8>,
    /// What the command wrote to stderr, where that is collected.
    pub stderr: Vec<u8>,
    /// The epitaph of a kernel that panicked, with names for its addresses.
    pub epitaph: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// The report as JSON.
    pub fn json(&self) -> Value {
        let vms: Vec<Value> = self
            .vms
            .iter()
            .map(|vm| {
                json!({
                    "name": vm.name,
                    "outcome": vm.outcome.as_ref().map(|outcome| Verdict::of(outcome).name()),
                    "detail": vm.outcome.as_ref().map(ToString::to_string),
                    "console": String::from_utf8_lossy(&vm.console),
                })
            })
            .collect();
        json!({
            "outcome": self.verdict.name(),
            "code": self.verdict.code(),
            "detail": self.detail,
            "stdout": String::from_utf8_lossy(&self.stdout),
            "stderr": String::from_utf8_lossy(&self.stderr),
            "vms": vms,
            "epitaph": self.epitaph,
            "seconds": self.took.as_secs_f64(),
        })
    }
}

/// The verdict on a run whose VMs all ended. `command` says whether a command was to be run in the first VM, and with
/// which status it ended if it did.
pub fn verdict(vms: &[VmReport], command: Option<Option<u8>>) -> (Verdict, String) {
    if let Some(Some(status)) = command {
        return (Verdict::Command(status), String::new());
    }
    let mut judged =
        vms.iter().filter_map(|vm| vm.outcome.as_ref().map(|outcome| (vm, outcome, Verdict::of(outcome))));
    let first_bad = judged.clone().find(|(_, _, verdict)| verdict.code() != 0);
    let Some((vm, outcome, verdict)) = first_bad.or_else(|| judged.next()) else {
        return (Verdict::NacreFailed, "no VM reported how it ended".into());
    };
    let detail = format!("VM `{}`: {}", vm.name, outcome);
    match verdict {
        Verdict::PoweredOff | Verdict::Reset | Verdict::ExitCode(_) if command.is_some() => {
            (Verdict::EndedEarly, format!("{detail}, before the command ended"))
        }
        Verdict::PoweredOff => (verdict, String::new()),
        _ => (verdict, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, outcome: Outcome) -> VmReport {
        VmReport { name: name.into(), outcome: Some(outcome), console: vec![] }
    }

    #[test]
    fn a_test_kernels_code_is_qemus() {
        assert_eq!(debug_exit_code(0x10), 33);
        assert_eq!(debug_exit_code(0x7f), 255);
        assert_eq!(debug_exit_code(0x80), 1);
    }

    #[test]
    fn the_commands_status_wins() {
        let vms = [vm("linux", Outcome::PoweredOff)];
        assert_eq!(verdict(&vms, Some(Some(3))).0, Verdict::Command(3));
        assert_eq!(verdict(&vms, Some(None)).0, Verdict::EndedEarly);
        assert_eq!(verdict(&vms, None).0, Verdict::PoweredOff);
    }

    #[test]
    fn a_vm_that_died_outweighs_one_that_did_not() {
        let vms = [vm("good", Outcome::PoweredOff), vm("bad", Outcome::TripleFault { rip: 0x10 })];
        let (verdict, detail) = verdict(&vms, None);
        assert_eq!(verdict, Verdict::GuestDied);
        assert!(detail.contains("`bad`") && detail.contains("triple fault at 0x10"));
    }
}
