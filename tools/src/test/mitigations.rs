//! Side channels: a CPU that has mitigations runs with them.

use super::Test;
use super::guests::{passed, planned, verdict};
use super::record::Outcome;
use crate::run;
use crate::run::machine::Machine;
use crate::workspace;
use anyhow::Result;

/// A CPU model of Bochs with enhanced IBRS and IBPB, and what the kernel's log has to say on it.
const MODEL: &str = "corei7_icelake_u";
const LOG: &str = "against side channels: enhanced IBRS, IBPB, guarded exits";

/// The tests of a machine. QEMU's emulation has none of the features.
pub fn tests(machine: Machine) -> Vec<Test> {
    if machine != Machine::Vtx {
        return Vec::new();
    }
    let shows = "on a CPU that has mitigations of side channels, they are on and guests run";
    vec![Test::on(machine, "vtx/mitigations".into(), shows, run)]
}

fn run(name: &str) -> Result<Outcome> {
    let words = ["--machine", "vtx", "--deterministic", "--guest", "hello", "--host-cpu", MODEL];
    let (plan, options) = planned(&words, name)?;
    let report = run::run(&plan, &options)?;
    let log = String::from_utf8_lossy(&workspace::read(&options.log)?).into_owned();
    Ok(verdict(&report, &options.log, || {
        report.vms.first().map_or(Err("there was no VM".into()), passed)?;
        if log.contains(LOG) { Ok(()) } else { Err(format!("the kernel's log has no line with {LOG:?}")) }
    }))
}
