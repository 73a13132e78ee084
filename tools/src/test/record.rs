//! What a test showed, and the tables made of it.

use crate::progress;
use crate::run::machine::Machine;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It was a collection of this many tests, and all held.
    PassedMany(u32),
    /// It did not hold, and why.
    Failed(String),
    /// It could not be run here, and why.
    Skipped(String),
    /// The tests were ended from outside, and by what.
    Interrupted(String),
}

impl Outcome {
    /// How many tests it stands for that held.
    pub fn passed(&self) -> u32 {
        match self {
            Outcome::Passed => 1,
            Outcome::PassedMany(count) => *count,
            Outcome::Failed(_) | Outcome::Skipped(_) | Outcome::Interrupted(_) => 0,
        }
    }

    /// How many tests it stands for that did not.
    pub fn failed(&self) -> u32 {
        u32::from(matches!(self, Outcome::Failed(_) | Outcome::Interrupted(_)))
    }

    fn name(&self) -> &'static str {
        match self {
            Outcome::Passed | Outcome::PassedMany(_) => "passed",
            Outcome::Failed(_) => "FAILED",
            Outcome::Skipped(_) => "skipped",
            Outcome::Interrupted(_) => "interrupted",
        }
    }

    fn detail(&self) -> String {
        match self {
            Outcome::PassedMany(count) => format!("{count} tests"),
            Outcome::Failed(why) | Outcome::Skipped(why) | Outcome::Interrupted(why) => why.clone(),
            Outcome::Passed => String::new(),
        }
    }
}

/// A test and how it ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// The test's name.
    pub name: String,
    /// What it shows.
    pub shows: String,
    /// Its machine.
    pub machine: Option<Machine>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

impl Record {
    /// A line about it.
    pub fn line(&self) -> String {
        let detail = self.outcome.detail();
        let separator = if detail.is_empty() { "" } else { ": " };
        format!(
            "{:<11} {} ({}){separator}{detail}",
            self.outcome.name(),
            self.name,
            progress::seconds(self.took)
        )
    }
}

/// The records as JSON.
pub fn json(records: &[Record]) -> Value {
    let tests: Vec<Value> = records
        .iter()
        .map(|record| {
            json!({
                "name": record.name,
                "shows": record.shows,
                "machine": record.machine.map(Machine::name),
                "outcome": record.outcome.name().to_lowercase(),
                "detail": record.outcome.detail(),
                "seconds": record.took.as_secs_f64(),
            })
        })
        .collect();
    json!({ "tests": tests, "passed": passed(records), "failed": failed(records), "skipped": skipped(records) })
}

fn passed(records: &[Record]) -> u32 {
    records.iter().map(|record| record.outcome.passed()).sum()
}

fn failed(records: &[Record]) -> u32 {
    records.iter().map(|record| record.outcome.failed()).sum()
}

fn skipped(records: &[Record]) -> usize {
    records.iter().filter(|record| matches!(record.outcome, Outcome::Skipped(_))).count()
}

/// Where a test counts in the summary: its machine, or the host.
fn place(record: &Record) -> &'static str {
    record.machine.map_or("host", Machine::name)
}

/// A table of what ran, and what failed.
pub fn summary(records: &[Record], took: Duration) -> String {
    let mut text = format!("\n{:<12} {:>7} {:>7} {:>8}\n", "", "passed", "failed", "skipped");
    for group in records.iter().map(place).collect::<BTreeSet<_>>() {
        let of_group: Vec<Record> = records.iter().filter(|record| place(record) == group).cloned().collect();
        let _ = writeln!(
            text,
            "{group:<12} {:>7} {:>7} {:>8}",
            passed(&of_group),
            failed(&of_group),
            skipped(&of_group)
        );
    }
    for record in records.iter().filter(|record| record.outcome.failed() > 0) {
        let _ = write!(
            text,
            "\nFAILED {} ({})\n  {}\n",
            record.name,
            record.shows,
            record.outcome.detail().replace('\n', "\n  ")
        );
    }
    let _ = writeln!(text, "\n{}", progress::seconds(took));
    text
}

/// The line that ends the tests.
pub fn closing_line(records: &[Record]) -> String {
    format!("{} passed, {} failed", passed(records), failed(records))
}

/// The machines that have a column in the status table.
const COLUMNS: [Machine; 4] = [Machine::Vtx, Machine::Svm, Machine::SvmBochs, Machine::Kvm];

/// A Markdown table: what the system tests show, by machine.
pub fn status_table(records: &[Record]) -> String {
    let mut table =
        String::from("| shown by a test | vtx | svm | svm-bochs | kvm |\n|---|---|---|---|---|\n");
    let mut seen = BTreeSet::new();
    for record in records.iter().filter(|record| record.machine.is_some()) {
        if !seen.insert(&record.shows) {
            continue;
        }
        let _ = write!(table, "| {} |", record.shows);
        for machine in COLUMNS {
            let of_machine =
                records.iter().find(|other| other.shows == record.shows && other.machine == Some(machine));
            let mark = match of_machine.map(|record| &record.outcome) {
                Some(Outcome::Passed | Outcome::PassedMany(_)) => "yes",
                Some(Outcome::Failed(_)) => "**no**",
                Some(Outcome::Skipped(_) | Outcome::Interrupted(_)) | None => "not tested",
            };
            let _ = write!(table, " {mark} |");
        }
        table.push('\n');
    }
    table
}

const BEGIN: &str = "<!-- status: generated by `cargo nacre test --update-readme` -->\n";
const END: &str = "<!-- status: end -->";

/// Writes the status table into the README, between its markers.
pub fn update_readme(path: &Path, records: &[Record]) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let updated = with_table(&text, &status_table(records))
        .with_context(|| format!("{} has no status markers", path.display()))?;
    crate::workspace::write(path, updated)
}

fn with_table(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, machine: Option<Machine>, outcome: Outcome) -> Record {
        Record {
            name: name.into(),
            shows: "a guest says hello".into(),
            machine,
            outcome,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn the_closing_line_counts_tests() {
        let records = [
            record("check/tests", None, Outcome::PassedMany(40)),
            record("vtx/hello", Some(Machine::Vtx), Outcome::Passed),
            record("svm/hello", Some(Machine::Svm), Outcome::Failed("why".into())),
            record("check/deny", None, Outcome::Skipped("missing".into())),
        ];
        assert_eq!(closing_line(&records), "41 passed, 1 failed");
        assert!(summary(&records, Duration::ZERO).contains("FAILED svm/hello"));
    }

    #[test]
    fn the_status_table_has_a_row_for_each_sentence() {
        let records = [
            record("vtx/hello", Some(Machine::Vtx), Outcome::Passed),
            record("svm/hello", Some(Machine::Svm), Outcome::Failed("x".into())),
        ];
        let rows: Vec<String> = status_table(&records).lines().skip(2).map(str::to_owned).collect();
        assert_eq!(rows, ["| a guest says hello | yes | **no** | not tested | not tested |"]);
    }

    #[test]
    fn the_readmes_table_is_replaced_between_its_markers() {
        let text = format!("a\n{BEGIN}old\n{END}\nb");
        assert_eq!(with_table(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}\nb"));
        assert_eq!(with_table("no markers", "new"), None);
    }
}
