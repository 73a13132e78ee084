//! CPUs with features beyond those of the usual model, or without some of them.

use super::Test;
use super::guests::{passed, planned, verdict};
use super::record::Outcome;
use crate::run;
use crate::run::machine::Machine;
use crate::workspace;
use anyhow::Result;

/// A run, and what the kernel's log has to say in it.
struct Case {
    name: &'static str,
    shows: &'static str,
    options: &'static [&'static str],
    log: &'static str,
}

/// In Bochs: QEMU's emulation has neither of the features.
const CASES: &[Case] = &[
    Case {
        name: "vtx/mitigations",
        shows: "on a CPU that has mitigations of side channels, they are on and guests run",
        options: &["--guest", "hello", "--host-cpu", "corei7_icelake_u"],
        log: "against side channels: enhanced IBRS, IBPB, guarded exits",
    },
    Case {
        name: "vtx/interrupts-apicv",
        shows: "interrupts arrive as they should by APIC virtualization, too",
        options: &["--guest", "interrupts", "--kernel-cmdline", "loglevel=info apicv"],
        log: "APIC virtualization",
    },
];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let cases = if machine == Machine::Vtx { CASES } else { &[] };
    cases
        .iter()
        .map(|case| Test::on(machine, case.name.into(), case.shows, move |name| run(case, name)))
        .collect()
}

fn run(case: &Case, name: &str) -> Result<Outcome> {
    let (plan, options) = planned(&[&["--machine", "vtx", "--deterministic"], case.options].concat(), name)?;
    let report = run::run(&plan, &options)?;
    let log = String::from_utf8_lossy(&workspace::read(&options.log)?).into_owned();
    Ok(verdict(&report, &options.log, || {
        report.vms.first().map_or(Err("there was no VM".into()), passed)?;
        if log.contains(case.log) {
            Ok(())
        } else {
            Err(format!("the kernel's log has no line with {:?}", case.log))
        }
    }))
}
