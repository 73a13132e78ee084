//! The test guests of `tests/guests`, run and judged as `tproto::cases` says.

use super::Test;
use super::record::Outcome as Verdict;
use crate::image::manifest::{self, DEFAULT_PRIORITY, Plan};
use crate::request::{self, RunArgs};
use crate::run::machine::Machine;
use crate::run::outcome::{Report, Verdict as RunVerdict, VmReport};
use crate::run::{self, Options, Output, Script};
use crate::workspace;
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tproto::line::{self, Line};
use tproto::{Case, Expect, cases, exit};
use vmm_protocol::manifest::{
    ConsoleMode, MONITOR_MODULE, Manifest, NetworkConfig, OnCrash, OnReset, VmConfig, WhenDone,
};
use vmm_protocol::outcome::Outcome;

/// How long a case may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// Memory that the machine has beyond the VMs', at least, in MiB.
const HOST_SPARE_MIB: u32 = 256;
/// How long an endless guest with nothing beside it is watched, from the emulator's start.
const ENDLESS_TIME: Duration = Duration::from_secs(20);

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let vendor = match machine {
        Machine::Vtx => cases::Machine::Vtx,
        Machine::SvmBochs => cases::Machine::SvmBochs,
        _ => cases::Machine::Svm,
    };
    // Whether this host's KVM is of one vendor or the other is not known here; every case has to pass on either.
    let here = |case: &&Case| machine == Machine::Kvm || case.machines.contains(&vendor);
    let mut tests: Vec<Test> = Vec::new();
    for case in cases::CASES.iter().filter(here) {
        let mut name = name(machine, case);
        if tests.iter().any(|test| test.name == name) {
            name += &format!("-{}MiB", case.memory_mib);
        }
        tests.push(Test::on(machine, name, case.shows, move |name| run(machine, case, name)));
    }
    tests
}

fn name(machine: Machine, case: &Case) -> String {
    let words = case.cmdline.split_whitespace().map(|word| format!("-{word}")).collect::<String>();
    let beside = case.beside.map(|other| format!("+{other}")).unwrap_or_default();
    format!("{}/{}{words}{beside}", machine.name(), case.guest)
}

fn run(machine: Machine, case: &Case, name: &str) -> Result<Verdict> {
    let mut args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let mut vms = vec![vm(case.guest, case.guest, case.cmdline, case.memory_mib)];
    vms.extend(case.beside.map(|guest| vm("beside", guest, "", case.memory_mib)));
    let guest_memory: u32 = vms.iter().map(|vm| vm.memory_mib).sum();
    args.host_memory = args.host_memory.max(guest_memory + HOST_SPARE_MIB);
    let manifest = system(Vec::new(), vms);
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let is_endless = case.expect == Expect::Endless;
    let time = if is_endless && case.beside.is_none() { ENDLESS_TIME } else { TIME_LIMIT };
    let options = Options {
        script: Script {
            answer: (!case.input.is_empty()).then(|| (line::READY.to_owned(), case.input.to_owned())),
            until: (is_endless && case.beside.is_some()).then_some(1),
            terminal: None,
        },
        ..options(&args, name, time)?
    };
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || judge(case, &report)))
}

/// A VM of a test guest on CPU 0.
pub fn vm(name: &str, guest: &str, cmdline: &str, memory_mib: u32) -> VmConfig {
    VmConfig {
        name: name.chars().take(15).collect(),
        kernel: format!("guest:{guest}"),
        initrd: Vec::new(),
        cmdline: cmdline.into(),
        memory_mib,
        balloon: None,
        console: Default::default(),
        packed_queues: false,
        cpu: 0,
        priority: DEFAULT_PRIORITY,
        on_reset: OnReset::End,
        on_crash: OnCrash::Report,
        vmm: MONITOR_MODULE.into(),
        hide_features: Vec::new(),
        statistics: false,
        disks: Vec::new(),
        cards: Vec::new(),
        vsock: None,
        debug: false,
    }
}

/// Where a system test's log goes.
pub fn log_path(name: &str) -> Result<PathBuf> {
    Ok(workspace::own_dir("log")?.join(format!("{}.log", name.replace('/', "-"))))
}

/// A system of these, whose console `cargo nacre` reads and which ends with the last VM.
pub fn system(networks: Vec<NetworkConfig>, vms: Vec<VmConfig>) -> Manifest {
    Manifest { console: ConsoleMode::Framed, when_done: WhenDone::Poweroff, trace: None, networks, vms }
}

/// How a test runs a system for so long at most; its log is the test's.
pub fn options(args: &RunArgs, name: &str, time: Duration) -> Result<Options> {
    Ok(Options { timeout: Some(time), log: log_path(name)?, ..request::options(args, Output::Collect)? })
}

/// What a run with these options of `run` needs, of what is built already; its log is the test's.
pub fn planned(words: &[&str], name: &str) -> Result<(Plan, Options)> {
    let mut args = request::parse(words)?;
    args.is_built = true;
    let plan = request::plan(&args, request::ForWhom::Tool)?;
    Ok((plan, Options { log: log_path(name)?, ..request::options(&args, Output::Collect)? }))
}

/// A port of this computer that nobody has: its listener is gone, and nobody connected to it.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on a local port")?;
    Ok(listener.local_addr().context("a listener has no address")?.port())
}

/// The test's verdict on a run, with what helps to find out why.
pub fn verdict(report: &Report, log: &Path, judge: impl FnOnce() -> Result<(), String>) -> Verdict {
    if matches!(report.verdict, RunVerdict::Signalled(_)) {
        return Verdict::Interrupted(report.detail.clone());
    }
    match judge() {
        Ok(()) => Verdict::Passed,
        Err(mut why) => {
            if !report.detail.is_empty() {
                why += &format!("; {}", report.detail);
            }
            report.epitaph.iter().for_each(|line| why += &format!("\n{line}"));
            for vm in &report.vms {
                let console = String::from_utf8_lossy(&vm.console);
                let tail: Vec<&str> = console.lines().rev().take(8).collect();
                tail.iter().rev().for_each(|line| why += &format!("\n[{}] {line}", vm.name));
            }
            Verdict::Failed(format!("{why}\nlog: {}", log.display()))
        }
    }
}

fn judge(case: &Case, report: &Report) -> Result<(), String> {
    let [vm, others @ ..] = &report.vms[..] else {
        return Err("there was no VM".into());
    };
    if let Some(text) = case.prints {
        let console = String::from_utf8_lossy(&vm.console);
        if !console.lines().any(|line| line == text) {
            return Err(format!("the guest did not print {text:?}"));
        }
    }
    judge_vm(vm, case.expect)?;
    if case.expect == Expect::Endless && others.is_empty() && report.verdict != RunVerdict::TimedOut {
        return Err("the run ended by itself".into());
    }
    others
        .iter()
        .try_for_each(|other| judge_vm(other, Expect::Pass).map_err(|why| format!("the VM beside it: {why}")))
}

/// Whether a VM's guest passed.
pub fn passed(vm: &VmReport) -> Result<(), String> {
    judge_vm(vm, Expect::Pass).map_err(|why| format!("VM `{}`: {why}", vm.name))
}

/// Whether a VM ended so.
pub fn judge_end(vm: &VmReport, expected: &Outcome) -> Result<(), String> {
    if vm.outcome.as_ref() == Some(expected) {
        return Ok(());
    }
    let was = vm.outcome.as_ref().map_or_else(|| "it did not end".into(), ToString::to_string);
    Err(format!("expected {expected}, but: {was}{}", first_failure(&vm.console)))
}

fn judge_vm(vm: &VmReport, expect: Expect) -> Result<(), String> {
    let as_expected = match (expect, &vm.outcome) {
        (Expect::Pass, Some(Outcome::ExitCode(exit::PASS))) => return judge_tally(&vm.console),
        (Expect::Exit(wanted), Some(Outcome::ExitCode(value))) => wanted == *value,
        (Expect::TripleFault, Some(Outcome::TripleFault { .. }))
        | (Expect::Stuck, Some(Outcome::Stuck { .. }))
        | (Expect::PoweredOff, Some(Outcome::PoweredOff))
        | (Expect::Reset, Some(Outcome::Reset))
        | (Expect::Endless, None) => true,
        _ => false,
    };
    if as_expected {
        return Ok(());
    }
    let was = vm.outcome.as_ref().map_or_else(|| "it did not end".into(), ToString::to_string);
    Err(format!("expected {expect:?}, but: {was}{}", first_failure(&vm.console)))
}

/// A guest that says it passed must not have printed otherwise.
fn judge_tally(console: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(console);
    let is_bad = |line: &str| matches!(Line::parse(line), Line::Fail(_) | Line::Done { failed: 1.., .. });
    match text.lines().find(|line| is_bad(line)) {
        None => Ok(()),
        Some(line) => Err(format!("the guest printed {line:?} and yet said that it passed")),
    }
}

fn first_failure(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console);
    let failure = text.lines().find(|line| line.starts_with(line::FAIL));
    failure.map(|line| format!("; {line}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(outcome: Option<Outcome>, console: &str) -> VmReport {
        VmReport { name: "a".into(), outcome, console: console.into() }
    }

    #[test]
    fn a_pass_needs_the_value_and_a_clean_tally() {
        let pass = Some(Outcome::ExitCode(exit::PASS));
        assert_eq!(
            judge_vm(&vm(pass.clone(), "ok: a\r\ndone: 1 passed, 0 failed\r\n"), Expect::Pass),
            Ok(())
        );
        assert!(judge_vm(&vm(pass, "done: 1 passed, 1 failed\r\n"), Expect::Pass).is_err());
        let failed =
            judge_vm(&vm(Some(Outcome::ExitCode(exit::FAIL)), "FAIL: two and two\r\n"), Expect::Pass);
        assert!(failed.unwrap_err().contains("two and two"));
    }

    #[test]
    fn an_endless_guest_must_not_end() {
        assert_eq!(judge_vm(&vm(None, ""), Expect::Endless), Ok(()));
        assert!(judge_vm(&vm(Some(Outcome::PoweredOff), ""), Expect::Endless).is_err());
    }
}
