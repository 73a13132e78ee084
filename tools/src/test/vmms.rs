//! Tests of the VMM as a process: one that crashes, and one that looks for what its guest has in its registers.

use super::Test;
use super::guests::{self, passed, system, verdict, vm};
use super::record::Outcome as Verdict;
use crate::image::manifest;
use crate::run;
use crate::run::machine::Machine;
use crate::run::outcome::Report;
use crate::{compile, request, workspace};
use anyhow::Result;
use std::path::Path;
use std::time::Duration;
use tproto::crash;
use vmm_protocol::manifest::{OnCrash, VmConfig};
use vmm_protocol::outcome::Outcome;

/// How long a test may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// Memory of a VM in MiB.
const MEMORY_MIB: u32 = 16;
/// Vector of the page fault.
const PAGE_FAULT: u8 = 14;
/// How often the root task starts a VM again (README, `on_crash`).
const RESTARTS: usize = 3;

/// What a test does and shows.
struct Case {
    name: &'static str,
    shows: &'static str,
    /// The guest, and what the VMM does with it.
    guest: &'static str,
    cmdline: &'static str,
    on_crash: OnCrash,
    /// The guest of a VM beside it, which has to pass.
    beside: Option<&'static str>,
    judge: fn(&Report, &str) -> Result<(), String>,
}

const CASES: [Case; 4] = [
    Case {
        name: "vmm-crash+interrupts",
        shows: "a VMM's crash is reported, and leaves another virtual machine's work unharmed",
        guest: "interrupts",
        cmdline: "vmm=crash-once",
        on_crash: OnCrash::Report,
        beside: Some("interrupts"),
        judge: judge_report,
    },
    Case {
        name: "vmm-crash-restart+interrupts",
        shows: "a VM whose VMM crashed starts again where the manifest says so, and nobody else notices",
        guest: "interrupts",
        cmdline: "vmm=crash-once",
        on_crash: OnCrash::Restart,
        beside: Some("interrupts"),
        judge: judge_restart,
    },
    Case {
        name: "vmm-crash-always",
        shows: "a VM whose VMM crashes again and again is given up",
        guest: "interrupts",
        cmdline: "vmm=crash-always",
        on_crash: OnCrash::Restart,
        beside: None,
        judge: judge_end,
    },
    Case {
        name: "poison-vmm",
        shows: "no exit leaves that pattern in registers or memory of the VMM",
        guest: "poison",
        cmdline: "vmm=witness",
        on_crash: OnCrash::Report,
        beside: None,
        judge: judge_witness,
    },
];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    CASES
        .iter()
        .map(|case| {
            let name = format!("{}/{}", machine.name(), case.name);
            Test {
                name: name.clone(),
                shows: case.shows.into(),
                machine: Some(machine),
                run: Box::new(move || run(machine, case, &name)),
            }
        })
        .collect()
}

fn run(machine: Machine, case: &Case, name: &str) -> Result<Verdict> {
    let args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let watched = VmConfig {
        vmm: workspace::bare_binary(compile::TEST_MONITOR).display().to_string(),
        on_crash: case.on_crash,
        ..vm(case.guest, case.guest, case.cmdline, MEMORY_MIB)
    };
    let mut vms = vec![watched];
    vms.extend(case.beside.map(|guest| vm("beside", guest, "", MEMORY_MIB)));
    let manifest = system(Vec::new(), vms);
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let options = guests::options(&args, name, TIME_LIMIT)?;
    let report = run::run(&plan, &options)?;
    let log = String::from_utf8_lossy(&workspace::read(&options.log)?).into_owned();
    let judge = || {
        (case.judge)(&report, &log)?;
        report.vms.iter().skip(1).try_for_each(passed)
    };
    Ok(verdict(&report, &options.log, judge))
}

fn is_crash(outcome: Option<&Outcome>) -> bool {
    let expected = crash::ADDRESS;
    matches!(outcome, Some(Outcome::VmmCrashed { vector: PAGE_FAULT, address, .. }) if *address == expected)
}

fn restarts(log: &str) -> usize {
    log.matches("starting it again").count()
}

fn ends_by_crash(report: &Report, log: &str, expected: usize) -> Result<(), String> {
    let outcome = report.vms.first().and_then(|vm| vm.outcome.as_ref());
    if !is_crash(outcome) {
        return Err(format!("expected a crash of the VMM, but: {outcome:?}"));
    }
    match restarts(log) {
        count if count == expected => Ok(()),
        count => Err(format!("the VM was started again {count} times instead of {expected}")),
    }
}

fn judge_report(report: &Report, log: &str) -> Result<(), String> {
    ends_by_crash(report, log, 0)
}

fn judge_end(report: &Report, log: &str) -> Result<(), String> {
    ends_by_crash(report, log, RESTARTS)
}

fn judge_restart(report: &Report, log: &str) -> Result<(), String> {
    if restarts(log) != 1 {
        return Err("the VM was not started again once".into());
    }
    report.vms.first().map_or(Err("there was no VM".into()), passed)
}

fn judge_witness(report: &Report, log: &str) -> Result<(), String> {
    let vm = report.vms.first().ok_or("there was no VM")?;
    if let Some(Outcome::Unsupported { what }) = &vm.outcome {
        return Err(what.clone());
    }
    if !log.contains("looked at ") {
        return Err("the VMM did not look".into());
    }
    passed(vm)
}
