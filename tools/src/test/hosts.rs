//! Other machines than the usual one: more CPUs, more memory, two VMs.

use super::Test;
use super::guests::{self, passed, system, verdict, vm};
use super::record::Outcome;
use crate::image::manifest;
use crate::request;
use crate::run;
use crate::run::machine::Machine;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// How long a case may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// A machine, and the VMs on it: guest, MiB and CPU.
struct Case {
    name: &'static str,
    shows: &'static str,
    options: &'static [&'static str],
    vms: &'static [(&'static str, u32, u16)],
}

const CASES: &[Case] = &[
    Case {
        name: "two-vms",
        shows: "two VMs run at once, their consoles told apart",
        options: &["--deterministic"],
        vms: &[("hello", 16, 0), ("ports", 16, 0)],
    },
    // QEMU 7.2 cannot count instructions on several CPUs.
    Case {
        name: "two-cpus",
        shows: "every CPU starts, and two VMs run on two CPUs",
        options: &["--host-cpus", "2"],
        vms: &[("hello", 16, 0), ("hello", 16, 1)],
    },
    Case {
        name: "four-cpus",
        shows: "four CPUs start, and a VM runs on the last",
        options: &["--host-cpus", "4"],
        vms: &[("hello", 16, 3)],
    },
];

/// Bochs's memory ends at 4 GiB.
const ON_SVM: &[Case] = &[Case {
    name: "above-4g",
    shows: "a VM has memory above 4 GiB",
    options: &["--deterministic", "--host-memory", "6144"],
    // Guest memory goes on at 4 GiB after the 3rd GiB.
    vms: &[("memory", 3328, 0)],
}];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let of_machine: &[Case] = if machine.is_bochs() { &[] } else { ON_SVM };
    CASES
        .iter()
        .chain(of_machine)
        .map(|case| {
            Test::on(machine, format!("{}/{}", machine.name(), case.name), case.shows, move |_| {
                run(machine, case)
            })
        })
        .collect()
}

fn run(machine: Machine, case: &Case) -> Result<Outcome> {
    let args = request::parse(&[&["--machine", machine.name()], case.options].concat())?;
    let vms = case.vms.iter().enumerate().map(|(number, &(guest, memory, cpu))| {
        let mut vm = vm(&format!("vm{number}"), guest, "", memory);
        vm.cpu = cpu;
        vm
    });
    let manifest = system(Vec::new(), vms.collect());
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let options = guests::options(&args, &format!("{}/{}", machine.name(), case.name), TIME_LIMIT)?;
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || report.vms.iter().try_for_each(passed)))
}
