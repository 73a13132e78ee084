//! Runs that must end although nothing works: machines on which Nacre cannot run, and guests that never end.

use super::Test;
use super::guests::{planned, verdict};
use super::record::Outcome;
use crate::run::machine::Machine;
use crate::run::outcome::Verdict;
use crate::run::{self};
use anyhow::Result;

/// A run and how it must end.
struct Case {
    name: &'static str,
    shows: &'static str,
    machine: Machine,
    options: &'static [&'static str],
    ends: Verdict,
}

const CASES: &[Case] = &[
    Case {
        name: "no-ept",
        shows: "on a CPU without EPT or NPT, the kernel says so and stops",
        machine: Machine::Vtx,
        options: &["--host-cpu", "bx_generic", "--timeout", "120"],
        ends: Verdict::Refused,
    },
    Case {
        name: "no-npt",
        shows: "on a CPU without EPT or NPT, the kernel says so and stops",
        machine: Machine::Svm,
        options: &["--host-cpu", "EPYC,+svm,-npt", "--timeout", "120"],
        ends: Verdict::Refused,
    },
    Case {
        name: "no-svm",
        shows: "on a CPU without virtualization, the kernel says so and stops",
        machine: Machine::Svm,
        options: &["--host-cpu", "EPYC,-svm", "--timeout", "120"],
        ends: Verdict::Refused,
    },
    Case {
        name: "timeout",
        shows: "a guest that never ends is ended by --timeout",
        machine: Machine::Svm,
        options: &["--guest", "spin", "--timeout", "15"],
        ends: Verdict::TimedOut,
    },
];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    CASES
        .iter()
        .filter(|case| case.machine == machine)
        .map(|case| {
            Test::on(machine, format!("{}/{}", machine.name(), case.name), case.shows, move |_| run(case))
        })
        .collect()
}

fn run(case: &Case) -> Result<Outcome> {
    let machine = ["--machine", case.machine.name(), "--deterministic", "--guest", "hello"];
    let has_guest = case.options.contains(&"--guest");
    let words = [if has_guest { &machine[..3] } else { &machine[..] }, case.options].concat();
    let (plan, options) = planned(&words, &format!("{}/{}", case.machine.name(), case.name))?;
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || {
        if report.verdict == case.ends {
            Ok(())
        } else {
            Err(format!("the run ended with {:?}", report.verdict))
        }
    }))
}
