//! The conformance task, in place of the root task: the kernel against every rule of SPEC.md.

use super::Test;
use super::guests::{log_path, verdict};
use super::record::Outcome;
use crate::image::manifest::Plan;
use crate::image::{BootImage, Module, elf};
use crate::run::machine::{Iommu, Machine};
use crate::run::outcome::Verdict;
use crate::run::{self, Options, Output};
use crate::{compile, request, workspace};
use anyhow::Result;
use std::time::Duration;
use vmm_protocol::manifest::{ConsoleMode, Manifest, ROOT_MODULE, WhenDone};

/// What the names of these tests contain.
pub const TOPIC: &str = "/conformance";

/// How long it may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(900);
/// What begins the line of a test that failed.
const FAIL: &str = "FAIL: ";
/// What begins the tally.
const TALLY: &str = "conformance: ";

/// CPUs of the usual machine.
const CPUS: u16 = 2;
/// CPUs of the others: races need two, and what runs on one CPU must not need more.
const OTHER_CPUS: [u16; 2] = [1, 4];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let test = |name, cpus: u16| {
        let shows =
            format!("the kernel keeps to the hypercall contract on {cpus} CPUs, errors and races included");
        Test::on(machine, name, &shows, move |name| run(machine, &["--host-cpus", &cpus.to_string()], name))
    };
    let name = format!("{}{TOPIC}", machine.name());
    let mut tests = vec![test(name.clone(), CPUS)];
    tests.extend(OTHER_CPUS.map(|cpus| test(format!("{name}-{cpus}-cpus"), cpus)));
    if machine == Machine::Svm {
        let shows = "the kernel keeps to the hypercall contract with Intel's IOMMU, and a device to what is mapped for it";
        tests.push(Test::on(machine, format!("{name}-intel-iommu"), shows, move |name| {
            run(machine, &["--iommu", "intel", "--host-cpus", "1"], name)
        }));
    }
    if machine == Machine::Vtx {
        let shows = "the kernel keeps to the hypercall contract where the hardware has virtual APICs";
        tests.push(Test::on(machine, format!("{name}-apicv"), shows, move |name| {
            run(machine, &["--kernel-cmdline", "loglevel=info apicv", "--host-cpus", "1"], name)
        }));
    }
    tests
}

/// What the kernel says of a device that tried to do what it may not.
const REFUSED: &str = "was refused";

fn run(machine: Machine, words: &[&str], name: &str) -> Result<Outcome> {
    // Instructions can be counted on several CPUs in Bochs alone.
    let clock: &[&str] = if machine.is_bochs() { &["--deterministic"] } else { &[] };
    let words = [&["--machine", machine.name()], words, clock].concat();
    let options = Options {
        has_edu: !machine.is_bochs(),
        timeout: Some(TIME_LIMIT),
        log: log_path(name)?,
        ..request::options(&request::parse(&words)?, Output::Collect)?
    };
    let program = |name: &str| elf::loadable(&workspace::bare_binary(name));
    let image = BootImage {
        kernel: elf::loadable(&workspace::kernel_binary())?,
        cmdline: options.kernel_cmdline.clone(),
        modules: vec![Module { name: ROOT_MODULE.into(), bytes: program(compile::CONFORMANCE)? }],
    };
    // Without a console server nobody speaks frames: what there is to know is in the kernel's log.
    let nothing = Manifest {
        console: ConsoleMode::Plain,
        when_done: WhenDone::Poweroff,
        trace: None,
        networks: Vec::new(),
        vms: Vec::new(),
    };
    let report = run::boot(&image, &Plan { manifest: nothing, modules: Vec::new() }, &options)?;
    let log = String::from_utf8_lossy(&workspace::read(&options.log)?).into_owned();
    match (tally(&log), &report.verdict) {
        // AMD's in QEMU before 10.1 logs no events.
        _ if options.iommu == Iommu::Intel && !log.contains(REFUSED) => {
            Ok(verdict(&report, &options.log, || Err("no fault of a device was reported".into())))
        }
        (Some((passed, 0)), Verdict::NacreFailed) if report.epitaph.is_empty() && passed > 0 => {
            Ok(Outcome::PassedMany(passed))
        }
        _ => Ok(verdict(&report, &options.log, || Err(failures(&log)))),
    }
}

/// Tests that passed and failed, from the task's last line.
fn tally(log: &str) -> Option<(u32, u32)> {
    let line = log.lines().rev().find_map(|line| line.strip_prefix(TALLY))?;
    let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.parse().ok()?))
}

fn failures(log: &str) -> String {
    let failures: Vec<&str> = log.lines().filter(|line| line.starts_with(FAIL)).collect();
    if failures.is_empty() { "it did not come to its end".into() } else { failures.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tally_is_the_last_line_of_its_kind() {
        let log = "[kernel INFO] Nacre\nok: a (x, 1 ms)\nFAIL: b: saw 1 expected 2\nconformance: 1 passed, 1 failed\n";
        assert_eq!(tally(log), Some((1, 1)));
        assert_eq!(failures(log), "FAIL: b: saw 1 expected 2");
        assert_eq!(tally("ok: a"), None);
    }
}
