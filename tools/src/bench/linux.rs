//! What Debian's boot to a shell costs outside the guest, and how its exits divide.

use crate::request;
use crate::run::Output;
use crate::run::machine::Machine;
use crate::run::outcome::Verdict;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// How long a boot may take, in seconds.
const TIME_LIMIT_S: u64 = 600;
/// The operations, in the order of the numbers in [`Boot`].
pub const OPERATIONS: [&str; 2] = ["linux.outside_guest", "boot.to_shell"];

/// What the VMM's statistics say when the shell's first command writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Instructions of kernel, VMM and services.
    pub outside: u64,
    /// Instructions since the kernel's first one, in the guest and waiting included.
    pub since_entry: u64,
    /// Exits by kind.
    pub exits: BTreeMap<String, u64>,
}

/// Boots Debian's kernel to the first command of its shell.
pub fn boot(machine: Machine, mitigations: &str) -> Result<Boot> {
    statistics(machine, mitigations, "linux", &["--exec", "echo"], parse)
}

/// Boots Debian's kernel with these options of `run` too, and reads the VMM's statistics in the last line of the log that `parse` knows.
pub fn statistics(
    machine: Machine,
    mitigations: &str,
    name: &str,
    options: &[&str],
    parse: fn(&str) -> Option<Boot>,
) -> Result<Boot> {
    let log = workspace::own_dir("log")?.join(format!("bench-{name}-{}.log", machine.name()));
    let log_name = log.display().to_string();
    let cmdline = format!("loglevel=error mitigations={mitigations}");
    let limit = TIME_LIMIT_S.to_string();
    let common = [
        "--machine",
        machine.name(),
        "--deterministic",
        "--statistics",
        "--timeout",
        &limit,
        "--cmdline",
        "quiet",
        "--kernel-cmdline",
        &cmdline,
        "--log",
        &log_name,
    ];
    let args = request::parse(&[&common, options].concat())?;
    let report = request::run(&args, Output::Collect)?;
    ensure!(report.verdict == Verdict::Command(0), "Linux did not run its command: {}", report.detail);
    let text = String::from_utf8_lossy(&workspace::read(&log)?).into_owned();
    let last = text.lines().filter_map(parse).next_back();
    last.with_context(|| format!("the log {log_name} has no statistics"))
}

/// Reads the VMM's line: `… booted at T after the kernel's entry: N exits, A of B ticks outside the guest: Kind N Kind N …`.
fn parse(line: &str) -> Option<Boot> {
    let (_, rest) = line.split_once("booted at ")?;
    let (since_entry, rest) = rest.split_once(" after the kernel's entry: ")?;
    Some(Boot { since_entry: since_entry.parse().ok()?, ..parse_end(rest)? })
}

/// Reads the same without the beginning, as the VMM says it when the VM has ended.
pub fn parse_end(line: &str) -> Option<Boot> {
    let (totals, kinds) = line.split_once(" ticks outside the guest:")?;
    let (_, ticks) = totals.split_once(" exits, ")?;
    let (outside, _) = ticks.split_once(" of ")?;
    let mut words = kinds.split_whitespace();
    let mut exits = BTreeMap::new();
    while let (Some(kind), Some(count)) = (words.next(), words.next()) {
        exits.insert(format!("exit {kind}"), count.parse().ok()?);
    }
    Some(Boot { outside: outside.parse().ok()?, since_entry: 0, exits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statistics_are_read_from_the_log() {
        let line = "linux: linux: booted at 530000123 after the kernel's entry: 2539 exits, 10431521 of 516033466 ticks outside the guest: Cpuid 1023 PortIo 749";
        let exits = [("exit Cpuid", 1023), ("exit PortIo", 749)];
        assert_eq!(
            parse(line),
            Some(Boot {
                outside: 10_431_521,
                since_entry: 530_000_123,
                exits: exits.map(|(kind, count)| (kind.to_owned(), count)).into(),
            })
        );
        assert_eq!(parse("linux: linux: powered off"), None);
    }
}
