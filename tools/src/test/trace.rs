//! `trace`: a guest's run as a time line and as JSON; and what it shows of a Debian's interrupts.

use super::Test;
use super::record::Outcome;
use crate::run::machine::Machine;
use anyhow::{Context, Result};
use serde_json::Value;
use std::env;
use std::process::{Command, Output, Stdio};

/// An exit that every guest causes which says something.
const EXIT: &str = "PortIo";

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let time_line = "the time line of a run names the guest's exits, and its times do not run backwards";
    let eoi = "Debian's unmodified kernel ends its interrupts by a word of memory, without exits";
    vec![
        Test::on(machine, format!("{}/trace", machine.name()), time_line, move |_| run(machine)),
        Test::on(machine, format!("{}/trace-eoi", machine.name()), eoi, move |_| end_interrupts(machine)),
    ]
}

fn run(machine: Machine) -> Result<Outcome> {
    let (output, drawn) = trace(machine, "trace", &["--json", "--guest", "hello"])?;
    Ok(outcome(check(machine, &output.stdout, &drawn), &output))
}

fn end_interrupts(machine: Machine) -> Result<Outcome> {
    let (output, _) = trace(machine, "trace-eoi", &["--exec", "cat /proc/interrupts"])?;
    Ok(outcome(check_eoi(&String::from_utf8_lossy(&output.stdout)), &output))
}

/// Runs `trace` with these options: its output, and the picture.
fn trace(machine: Machine, name: &str, options: &[&str]) -> Result<(Output, String)> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let picture = folder.path().join("trace.svg");
    let output = Command::new(env::current_exe()?)
        .args(["trace", "--deterministic", "--machine", machine.name()])
        .args(options)
        .arg("--log")
        .arg(super::guests::log_path(&format!("{}-{name}", machine.name()))?)
        .arg("--output")
        .arg(&picture)
        .stdin(Stdio::null())
        .output()
        .context("cannot start the trace")?;
    Ok((output, std::fs::read_to_string(&picture).unwrap_or_default()))
}

fn outcome(checked: Result<(), String>, output: &Output) -> Outcome {
    match checked {
        Ok(()) => Outcome::Passed,
        Err(why) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Outcome::Failed(format!("{why}; {}:\n{said}", output.status))
        }
    }
}

/// Without the word, each of the timer's interrupts ends by a WRMSR, which the kernel answers.
fn check_eoi(stdout: &str) -> Result<(), String> {
    let number = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let ticks = stdout.lines().find(|line| line.trim_start().starts_with("LOC:")).and_then(number);
    let (_, summary) = stdout.split_once("exits that the kernel answered").unwrap_or_default();
    let (answered, _) = summary.split_once("hypercalls").unwrap_or((summary, ""));
    let writes = answered.lines().find(|line| line.trim_start().starts_with("MsrWrite"));
    let writes = writes.map_or(Some(0), number);
    match (ticks, writes) {
        (Some(ticks @ 20..), Some(writes)) if writes < ticks / 4 => Ok(()),
        others => Err(format!("ticks, and writes to MSRs that the kernel answered: {others:?}")),
    }
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
    fn ticks_that_end_by_an_exit_each_are_noticed() {
        let said = |writes: &str| {
            format!(
                "LOC:   89   Local timer interrupts\nexits, until\n  MsrWrite  146  109.2\n\
                 exits that the kernel answered  count\n  InterruptWindow  25 0.0\n{writes}\
                 hypercalls, until they return\n  Wait 34 1.0\n"
            )
        };
        assert_eq!(check_eoi(&said("  MsrWrite  3  0.0\n")), Ok(()));
        assert_eq!(check_eoi(&said("")), Ok(()));
        assert!(check_eoi(&said("  MsrWrite  90  0.0\n")).is_err());
        assert!(check_eoi("").is_err());
    }

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
