//! Debugging guests with a stock gdb.

use super::Test;
use super::guests::{free_port, planned, verdict};
use super::record::Outcome;
use crate::run::machine::Machine;
use crate::run::outcome::Verdict;
use crate::run::{self, Options};
use crate::workspace;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// What the names of these tests contain.
pub const TOPIC: &str = "/gdb";

/// How long a session may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// A session: what gdb is told, and what it has to say.
struct Case {
    name: &'static str,
    shows: &'static str,
    guest: &'static str,
    script: &'static [&'static str],
    expects: &'static [&'static str],
    ends: Verdict,
}

/// What works wherever the guest can be stepped.
const EVERYWHERE: &[Case] = &[Case {
    name: "gdb",
    shows: "gdb breaks a guest, reads and changes registers and memory, steps, and sees it end",
    guest: "hello",
    script: &[
        "break *trt_guest",
        "continue",
        "printf \"at %d, paging %d, long mode %d\\n\", $rip == (long)&trt_guest, ($cr0 >> 31) & 1, ($efer >> 10) & 1",
        "stepi",
        "printf \"stepped %d, trap flag %d\\n\", $rip > (long)&trt_guest && $rip < (long)&trt_guest + 16, ($eflags >> 8) & 1",
        "set $r15 = 0x1234567890abcdef",
        "set *(long *)($rsp - 64) = 0x0fedcba987654321",
        "maintenance flush register-cache",
        "printf \"r15 %lx, memory %lx\\n\", $r15, *(long *)($rsp - 64)",
        "delete",
        "continue",
    ],
    expects: &[
        "at 1, paging 1, long mode 1",
        "stepped 1, trap flag 0",
        "r15 1234567890abcdef, memory fedcba987654321",
        "exited with code 020",
    ],
    ends: Verdict::ExitCode(0x10),
}];

/// What works in QEMU; in Bochs, Ctrl-C did not stop a guest that never exits.
const ON_SVM: &[Case] = &[Case {
    name: "gdb-interrupt",
    shows: "Ctrl-C in gdb stops a guest that never exits by itself, and kill ends it",
    guest: "spin",
    script: &[
        "python import os, signal, threading",
        "python threading.Timer(5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()",
        "continue",
        "printf \"stopped %d\\n\", $rip > 0x100000",
        "kill",
    ],
    expects: &["SIGINT", "stopped 1"],
    ends: Verdict::PoweredOff,
}];

/// What needs debug registers that work, which QEMU's emulator of AMD-V has not.
const ON_VTX: &[Case] = &[Case {
    name: "gdb-hardware",
    shows: "gdb stops a guest by a debug register before an instruction",
    guest: "hello",
    script: &[
        "hbreak *trt_guest",
        "continue",
        "printf \"at %d\\n\", $rip == (long)&trt_guest",
        "delete",
        "continue",
    ],
    expects: &["Hardware assisted breakpoint", "at 1", "exited with code 020"],
    ends: Verdict::ExitCode(0x10),
}];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let of_machine = match machine {
        Machine::Vtx => ON_VTX,
        Machine::Svm => ON_SVM,
        _ => &[],
    };
    // gdb steps off a breakpoint, and Bochs 2.7 takes a step on SVM for one of the host's.
    let everywhere = if machine == Machine::SvmBochs { &[] } else { EVERYWHERE };
    let cases = everywhere.iter().chain(of_machine);
    cases
        .map(|case| {
            Test::on(machine, format!("{}/{}", machine.name(), case.name), case.shows, move |name| {
                run(machine, case, name)
            })
        })
        .collect()
}

fn run(machine: Machine, case: &'static Case, name: &str) -> Result<Outcome> {
    let port = free_port()?.to_string();
    let words = ["--machine", machine.name(), "--guest", case.guest, "--gdb", &port];
    let (plan, options) = planned(&words, name)?;
    let options = Options { timeout: Some(TIME_LIMIT), ..options };
    let debugger = thread::spawn(move || debug(case, &port));
    let report = run::run(&plan, &options)?;
    let said = debugger.join().map_err(|_| anyhow::anyhow!("the debugger's thread panicked"))??;
    Ok(verdict(&report, &options.log, || {
        if let Some(missing) = case.expects.iter().find(|text| !said.contains(**text)) {
            return Err(format!("gdb did not say {missing:?} but\n{said}"));
        }
        if report.verdict != case.ends {
            return Err(format!("the run ended with {:?}; gdb said\n{said}", report.verdict));
        }
        Ok(())
    }))
}

/// Runs gdb; returns what it said.
fn debug(case: &Case, port: &str) -> Result<String> {
    let connect = format!("target remote localhost:{port}");
    let mut command = Command::new("timeout");
    command.arg(TIME_LIMIT.as_secs().to_string());
    command.args(["gdb", "-nx", "-batch"]);
    command.arg(workspace::bare_binary(case.guest));
    let first = ["set tcp connect-timeout unlimited", "set remotetimeout 60", "set language c", &connect];
    for line in first.iter().chain(case.script) {
        command.args(["-ex", line]);
    }
    let output = command.stdin(Stdio::null()).output().context("cannot start gdb")?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said += &String::from_utf8_lossy(&output.stderr);
    Ok(said)
}
