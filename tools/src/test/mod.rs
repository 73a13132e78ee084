//! `cargo nacre test`: every test there is, and what they showed.

pub mod balloon;
pub mod bench;
pub mod checks;
pub mod conformance;
pub mod disks;
pub mod drivers;
pub mod features;
pub mod gdb;
pub mod graph;
pub mod guests;
pub mod hosts;
pub mod images;
pub mod linux;
pub mod mistakes;
pub mod networks;
pub mod power;
pub mod pv;
pub mod queues;
pub mod record;
pub mod refusals;
pub mod switches;
pub mod trace;
pub mod unikernel;
pub mod uplinks;
pub mod vmms;
pub mod vsock;

use crate::run::machine::Machine;
use crate::{compile, failure, progress, setup, workspace};
use anyhow::{Context, Result};
use clap::Args;
use record::{Outcome, Record};
use std::thread;
use std::time::Instant;

/// Options of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only tests whose name contains one of these (names: `--list`)
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only this machine's system tests, and the tests of the host
    #[arg(long, value_enum)]
    pub machine: Option<Machine>,
    /// List the tests and run none
    #[arg(long)]
    pub list: bool,
    /// Print the results as JSON on stdout
    #[arg(long)]
    pub json: bool,
    /// Write the status table into README.md, once every test has run
    #[arg(long, conflicts_with_all = ["only", "machine", "list"])]
    pub update_readme: bool,
}

/// A test.
pub struct Test {
    /// Its name: `check/…`, or the machine, `/` and what is run.
    pub name: String,
    /// What it shows, as a sentence.
    pub shows: String,
    /// The machine it runs on, if it runs on one.
    pub machine: Option<Machine>,
    /// Runs it.
    pub run: Box<dyn Fn() -> Result<Outcome> + Send + Sync>,
}

impl Test {
    /// A test on a machine, whose name begins with the machine's. `run` gets the name: its log's is made of it.
    pub fn on(
        machine: Machine,
        name: String,
        shows: &str,
        run: impl Fn(&str) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Self {
        Test {
            name: name.clone(),
            shows: shows.into(),
            machine: Some(machine),
            run: Box::new(move || run(&name)),
        }
    }
}

/// The machines that are tested, if the user does not say: one per vendor.
const MACHINES: [Machine; 2] = [Machine::Vtx, Machine::Svm];
/// What is tested beside them, if the user does not say, on SVM with next-RIP saving and many ASIDs, which QEMU has not.
const ALSO: [&str; 5] = [
    "svm-bochs/conformance-1-cpus",
    "svm-bochs/hello",
    "svm-bochs/interrupts-nmi=exits",
    "svm-bochs/fpu",
    "svm-bochs/linux-exec",
];

/// Runs the tests; the exit code is 1 if one failed.
pub fn test(args: &TestArgs) -> Result<u8> {
    let tests = match args.machine {
        Some(machine) => all(&[machine.resolve()]),
        None => usual(),
    };
    let tests = select(tests, &args.only)?;
    if args.list {
        tests.iter().for_each(|test| println!("{:<36} {}", test.name, test.shows));
        return Ok(0);
    }
    prepare(&tests)?;
    let start = Instant::now();
    let records = run_all(&tests);
    let took = start.elapsed();
    let folder = workspace::own_dir("")?;
    workspace::write(&folder.join("status.json"), record::json(&records).to_string())?;
    workspace::write(&folder.join("status.md"), record::status_table(&records))?;
    // A table of the tests before the interruption would call the others untested.
    let is_whole = !records.iter().any(|record| matches!(record.outcome, Outcome::Interrupted(_)));
    if args.update_readme && is_whole {
        record::update_readme(&workspace::root().join("README.md"), &records)?;
    }
    if args.json {
        println!("{}", record::json(&records));
    } else {
        print!("{}", record::summary(&records, took));
        println!("{}", record::closing_line(&records));
    }
    Ok(u8::from(records.iter().any(|record| record.outcome.failed() > 0)))
}

/// The tests of the host, and every test on these machines.
fn all(machines: &[Machine]) -> Vec<Test> {
    let mut tests = checks::tests();
    tests.extend(mistakes::tests());
    tests.extend(machines.iter().flat_map(|&machine| on(machine)));
    tests
}

/// What is tested if the user does not name a machine.
fn usual() -> Vec<Test> {
    let is_brief = |test: &Test| ALSO.contains(&test.name.as_str());
    let mut tests = all(&MACHINES);
    tests.extend(on(Machine::SvmBochs).into_iter().filter(is_brief));
    tests
}

/// Every test on a machine.
fn on(machine: Machine) -> Vec<Test> {
    [
        conformance::tests(machine),
        guests::tests(machine),
        pv::tests(machine),
        unikernel::tests(machine),
        vmms::tests(machine),
        hosts::tests(machine),
        bench::tests(machine),
        linux::tests(machine),
        disks::tests(machine),
        balloon::tests(machine),
        drivers::tests(machine),
        power::tests(machine),
        networks::tests(machine),
        queues::tests(machine),
        switches::tests(machine),
        uplinks::tests(machine),
        vsock::tests(machine),
        images::tests(machine),
        gdb::tests(machine),
        trace::tests(machine),
        features::tests(machine),
        refusals::tests(machine),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The tests whose name contains one of the patterns, or all of them if there is none.
///
/// # Errors
/// A pattern that no name contains: a run that tests nothing must not look like one that passed.
fn select(mut tests: Vec<Test>, patterns: &[String]) -> Result<Vec<Test>> {
    let matches = |test: &Test, pattern: &String| test.name.contains(pattern.as_str());
    if let Some(pattern) = patterns.iter().find(|pattern| !tests.iter().any(|test| matches(test, pattern))) {
        return Err(failure::usage(format!(
            "no test's name contains \"{pattern}\"; `cargo nacre test --list` lists them"
        )));
    }
    tests.retain(|test| patterns.is_empty() || patterns.iter().any(|pattern| matches(test, pattern)));
    Ok(tests)
}

/// Installs and builds what the tests need, once.
fn prepare(tests: &[Test]) -> Result<()> {
    setup::rust_components()?;
    let mut needs = Vec::new();
    for machine in tests.iter().filter_map(|test| test.machine) {
        machine.check()?;
        needs.extend(machine.needs());
    }
    if tests.iter().any(|test| test.name.contains(images::TOPIC)) {
        needs.extend([&setup::IMAGE, &setup::UEFI_IMAGE, &setup::OVMF]);
    }
    if tests.iter().any(|test| test.name.contains(gdb::TOPIC)) {
        needs.push(setup::GDB);
    }
    if tests.iter().any(|test| test.name.contains(disks::TOPIC)) {
        needs.push(setup::DISK);
    }
    if tests.iter().any(|test| test.name.contains(drivers::QCOW2)) {
        needs.push(setup::QCOW2);
    }
    setup::packages(&needs)?;
    if tests.iter().any(|test| !test.name.starts_with(checks::GROUP)) {
        progress::timed(
            "building the kernel, user space and the tests' programs",
            compile::everything_tested,
        )?;
    }
    if tests.iter().any(|test| test.name.contains(linux::TOPIC)) {
        crate::guest::debian::fetch().context("the Linux tests need a guest")?;
    }
    Ok(())
}

/// The host's tests first, as they use every core; then the emulators, which use one each, side by side.
fn run_all(tests: &[Test]) -> Vec<Record> {
    let (host, system): (Vec<&Test>, Vec<&Test>) = tests.iter().partition(|test| test.machine.is_none());
    let (bochs, qemu): (Vec<&Test>, Vec<&Test>) =
        system.into_iter().partition(|test| test.machine.is_some_and(Machine::is_bochs));
    let mut records = run_in_turn(&host);
    thread::scope(|scope| {
        let beside = scope.spawn(|| run_in_turn(&bochs));
        let qemu = run_in_turn(&qemu);
        records.extend(beside.join().unwrap_or_default());
        records.extend(qemu);
    });
    records
}

fn run_in_turn(tests: &[&Test]) -> Vec<Record> {
    let mut records = Vec::new();
    for test in tests {
        let start = Instant::now();
        let outcome = (test.run)().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        let record = Record {
            name: test.name.clone(),
            shows: test.shows.clone(),
            machine: test.machine,
            outcome,
            took: start.elapsed(),
        };
        progress::step(record.line());
        let is_end = matches!(record.outcome, Outcome::Interrupted(_));
        records.push(record);
        if is_end {
            break;
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(patterns: &[&str]) -> Result<Vec<String>> {
        let tests = ["svm/hello", "svm/fpu", "vtx/hello"].map(|name| Test {
            name: name.into(),
            shows: String::new(),
            machine: None,
            run: Box::new(|| Ok(Outcome::Passed)),
        });
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        Ok(select(tests.into(), &patterns)?.into_iter().map(|test| test.name).collect())
    }

    #[test]
    fn the_usual_tests_include_each_that_is_named_beside_them() {
        let names: Vec<String> = usual().into_iter().map(|test| test.name).collect();
        for name in ALSO {
            assert!(names.iter().any(|other| other == name), "{name}");
        }
    }

    #[test]
    fn tests_are_selected_by_any_of_several_patterns() {
        assert_eq!(selected(&[]).unwrap().len(), 3);
        assert_eq!(selected(&["svm/fpu", "vtx"]).unwrap(), ["svm/fpu", "vtx/hello"]);
    }

    #[test]
    fn a_pattern_that_selects_nothing_is_an_error_that_names_it() {
        let error = selected(&["svm", "fpv"]).unwrap_err();
        assert_eq!(failure::kind(&error), failure::Kind::Usage);
        assert!(error.to_string().contains("\"fpv\""));
    }
}
