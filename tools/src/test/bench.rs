//! The benchmark itself: a short one says what it says at length.

use super::Test;
use super::record::Outcome;
use crate::run::machine::Machine;
use anyhow::{Context, Result};
use serde_json::Value;
use std::env;
use std::process::{Command, Stdio};

/// A hypercall and an exit.
const OPS: [&str; 2] = ["hypercall.null", "exit.pio_in"];
/// The fields of a result.
const FIELDS: [&str; 8] = ["best_peer", "heavy", "max", "median", "min", "n", "op", "peer_name"];
/// No median is of fewer samples.
const LEAST_SAMPLES: u64 = 200;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    if ![Machine::Vtx, Machine::Svm].contains(&machine) {
        return Vec::new();
    }
    let shows = "the benchmark measures, and says so in JSON and nothing else";
    vec![Test::on(machine, format!("{}/bench", machine.name()), shows, move |_| run(machine))]
}

fn run(machine: Machine) -> Result<Outcome> {
    let output = Command::new(env::current_exe()?)
        .args(["bench", "--json", "--machine", machine.name(), "--only"])
        .arg(OPS.join(","))
        .stdin(Stdio::null())
        .output()
        .context("cannot start the benchmark")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Ok(Outcome::Failed(format!("{}:\n{said}", output.status)));
    }
    Ok(match check(machine, &output.stdout) {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Failed(why),
    })
}

/// Whether all of stdout is the documented object with these operations.
fn check(machine: Machine, stdout: &[u8]) -> Result<(), String> {
    let report: Value = serde_json::from_slice(stdout).map_err(|error| format!("stdout: {error}"))?;
    if report["machine"] != machine.name() {
        return Err(format!("machine: {}", report["machine"]));
    }
    let results = report["results"].as_array().ok_or("there are no results")?;
    for op in OPS {
        let result =
            results.iter().find(|result| result["op"] == op).ok_or_else(|| format!("{op} is missing"))?;
        let mut fields: Vec<&str> =
            result.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default();
        fields.sort_unstable();
        let number = |name: &str| result[name].as_u64().unwrap_or_default();
        let is_ordered =
            0 < number("min") && number("min") <= number("median") && number("median") <= number("max");
        // Every hypercall begins with SYSCALL, and each of the two runs contains one.
        let has_trace = result["heavy"]["syscall_sysret"].as_u64() >= Some(2);
        if fields != FIELDS || !is_ordered || number("n") < LEAST_SAMPLES || !has_trace {
            return Err(format!("{op}: {result}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_too_much_is_noticed() {
        let result = |op: &str| {
            format!(
                r#"{{"op":"{op}","median":50,"min":49,"max":60,"n":256,"best_peer":85,"peer_name":"NOVA","heavy":{{"syscall_sysret":2}}}}"#
            )
        };
        let both = format!(r#"{{"machine":"svm","results":[{},{}]}}"#, result(OPS[0]), result(OPS[1]));
        assert_eq!(check(Machine::Svm, both.as_bytes()), Ok(()));
        assert!(check(Machine::Vtx, both.as_bytes()).is_err());
        assert!(check(Machine::Svm, format!("{both}\nmore").as_bytes()).is_err());
        assert!(check(Machine::Svm, both.replace("256", "2").as_bytes()).is_err());
        assert!(check(Machine::Svm, both.replace(OPS[1], "other").as_bytes()).is_err());
    }
}
