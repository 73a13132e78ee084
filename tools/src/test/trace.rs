//! `trace`: a guest's run as a time line and as JSON.

use super::Test;
use super::record::Outcome;
use crate::run::machine::Machine;
use anyhow::{Context, Result};
use serde_json::Value;
use std::env;
use std::process::{Command, Stdio};

/// An exit that every guest causes which says something.
const EXIT: &str = "PortIo";

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let shows = "the time line of a run names the guest's exits, and its times do not run backwards";
    vec![Test::on(machine, format!("{}/trace", machine.name()), shows, move |_| run(machine))]
}

fn run(machine: Machine) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let picture = folder.path().join("trace.svg");
    let output = Command::new(env::current_exe()?)
        .args(["trace", "--json", "--deterministic", "--guest", "hello", "--machine", machine.name()])
        .arg("--log")
        .arg(super::guests::log_path(&format!("{}-trace", machine.name()))?)
        .arg("--output")
        .arg(&picture)
        .stdin(Stdio::null())
        .output()
        .context("cannot start the trace")?;
    let drawn = std::fs::read_to_string(&picture).unwrap_or_default();
    Ok(match check(machine, &output.stdout, &drawn) {
        Ok(()) => Outcome::Passed,
        Err(why) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Outcome::Failed(format!("{why}; {}:\n{said}", output.status))
        }
    })
}

fn check(machine: Machine, stdout: &[u8], drawn: &str) -> Result<(), String> {
    let trace: Value = serde_json::from_slice(stdout).map_err(|error| format!("stdout: {error}"))?;
    if trace["machine"] != machine.name() {
        return Err(format!("machine: {}", trace["machine"]));
    }
    let cpus = trace["cpus"].as_array().filter(|cpus| !cpus.is_empty()).ok_or("there are no CPUs")?;
    for (cpu, events) in cpus.iter().enumerate() {
        let times: Vec<u64> =
            events.as_array().into_iter().flatten().filter_map(|event| event["at"].as_u64()).collect();
        if times.is_empty() || !times.is_sorted() {
            return Err(format!("CPU {cpu}: {} events, not in the order of time", times.len()));
        }
    }
    let exits = &trace["summary"]["exits"][EXIT];
    if exits["count"].as_u64().unwrap_or_default() == 0 {
        return Err(format!("{EXIT}: {exits}"));
    }
    if !drawn.starts_with("<svg") || !drawn.contains(EXIT) || !drawn.contains("CPU 0") {
        return Err(format!("the picture does not show {EXIT}: {} bytes", drawn.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_without_exits_or_order_is_noticed() {
        let json = |second: u64, exit: &str| {
            format!(
                r#"{{"machine":"svm","cpus":[[{{"at":5}},{{"at":{second}}}]],"summary":{{"exits":{{"{exit}":{{"count":1}}}}}}}}"#
            )
        };
        let drawn = "<svg>CPU 0 PortIo</svg>";
        assert_eq!(check(Machine::Svm, json(6, "PortIo").as_bytes(), drawn), Ok(()));
        assert!(check(Machine::Svm, json(4, "PortIo").as_bytes(), drawn).is_err());
        assert!(check(Machine::Svm, json(6, "Hlt").as_bytes(), drawn).is_err());
        assert!(check(Machine::Svm, json(6, "PortIo").as_bytes(), "<svg></svg>").is_err());
        assert!(check(Machine::Vtx, json(6, "PortIo").as_bytes(), drawn).is_err());
    }
}
