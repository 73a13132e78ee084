//! Checks of the sources: format, lints, documentation, host tests, dependencies.

use super::record::Outcome;
use super::{Test, graph};
use crate::compile::{self, BARE_TARGET};
use crate::workspace;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// What the names of these tests begin with.
pub const GROUP: &str = "check/";

/// The tests.
pub fn tests() -> Vec<Test> {
    let check = |name: &str, shows: &str, run: fn() -> Result<Outcome>| Test {
        name: format!("{GROUP}{name}"),
        shows: shows.into(),
        machine: None,
        run: Box::new(run),
    };
    vec![
        check("format", "the sources are formatted", || cargo(&["fmt", "--all", "--check", "--", "-l"])),
        check("dependencies", "dependencies point one way", graph::check),
        check("lints-host", "clippy finds nothing in what runs on the host", || {
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
        }),
        check("lints-bare", "clippy finds nothing in what runs on the bare machine", || {
            cargo(&[
                "clippy",
                "--workspace",
                "--exclude",
                "nacre",
                "--target",
                BARE_TARGET,
                "--",
                "-D",
                "warnings",
            ])
        }),
        check("docs-host", "the documentation builds without warnings", || docs(&["--workspace"])),
        check(
            "docs-bare",
            "the documentation of what runs on the bare machine builds without warnings",
            || docs(&["--workspace", "--exclude", "nacre", "--target", BARE_TARGET]),
        ),
        check("host-tests", "the host tests of all pure logic pass", host_tests),
        check("miri", "Miri finds nothing in what has unsafe code and runs on the host", miri),
        check("licences", "licences, bans and sources of dependencies are as tools/deny.toml allows", deny),
    ]
}

fn cargo(arguments: &[&str]) -> Result<Outcome> {
    outcome(compile::cargo().args(arguments))
}

fn docs(arguments: &[&str]) -> Result<Outcome> {
    outcome(compile::cargo().args(["doc", "--no-deps"]).args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Runs a command that says what is wrong.
fn outcome(command: &mut Command) -> Result<Outcome> {
    let output = command.stdin(Stdio::null()).output().context("cannot start cargo")?;
    if output.status.success() {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Failed(complaint(&output.stdout, &output.stderr)))
}

/// The part of cargo's output that a person needs.
fn complaint(stdout: &[u8], stderr: &[u8]) -> String {
    const LINES: usize = 60;
    let all = [stdout, stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    let is_progress = |line: &&str| {
        ["Compiling ", "Checking ", "Documenting ", "Finished "]
            .iter()
            .any(|word| line.trim_start().starts_with(word))
    };
    all.lines().filter(|line| !is_progress(line)).take(LINES).collect::<Vec<_>>().join("\n")
}

fn host_tests() -> Result<Outcome> {
    let output = compile::cargo()
        .args(["test", "--no-fail-fast"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = count_passed(&text);
    if output.status.success() && passed > 0 {
        return Ok(Outcome::PassedMany(passed));
    }
    let failures: Vec<&str> = text
        .lines()
        .filter(|line| line.ends_with("FAILED") || line.contains("panicked at") || line.starts_with("error"))
        .collect();
    if failures.is_empty() {
        return Ok(Outcome::Failed(complaint(b"", &output.stderr)));
    }
    Ok(Outcome::Failed(failures.join("\n")))
}

/// The packages that have unsafe code and tests on the host. The others forbid it, and would take hours under Miri.
const WITH_UNSAFE: [&str; 2] = ["usys", "guest-pv-driver"];

/// Those packages under Miri. Leaks are no findings: shared memory is never given back.
fn miri() -> Result<Outcome> {
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("rustup");
        command
            .args(["run", "nightly", "cargo", "miri"])
            .args(arguments)
            .current_dir(workspace::root())
            .env_remove("RUSTFLAGS")
            .env("CARGO_TARGET_DIR", workspace::target().join("miri"))
            .env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-ignore-leaks")
            .env("PROPTEST_CASES", "2")
            .stdin(Stdio::null());
        command
    };
    let is_there = cargo(&["--version"]).output().is_ok_and(|output| output.status.success());
    if !is_there {
        return Ok(Outcome::Skipped(
            "there is no Miri: rustup toolchain install nightly --component miri rust-src".into(),
        ));
    }
    let output = cargo(&["test", "--lib"])
        .args(WITH_UNSAFE.iter().flat_map(|package| ["-p", package]))
        .output()
        .context("cannot start Miri")?;
    let passed = count_passed(&String::from_utf8_lossy(&output.stdout));
    if output.status.success() && passed > 0 {
        return Ok(Outcome::PassedMany(passed));
    }
    Ok(Outcome::Failed(complaint(&output.stdout, &output.stderr)))
}

/// The sum of the tests that passed in libtest's output.
fn count_passed(text: &str) -> u32 {
    text.lines()
        .filter_map(|line| line.strip_prefix("test result: "))
        .filter_map(|result| result.split_once(". ")?.1.split(' ').next()?.parse::<u32>().ok())
        .sum()
}

fn deny() -> Result<Outcome> {
    let is_there =
        compile::cargo().args(["deny", "--version"]).output().is_ok_and(|output| output.status.success());
    if !is_there {
        return Ok(Outcome::Skipped("cargo-deny is not installed: cargo install cargo-deny".into()));
    }
    cargo(&["deny", "--all-features", "--config", "tools/deny.toml", "check", "licenses", "bans", "sources"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtests_results_are_summed() {
        let text = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 0 ignored\n\ntest result: FAILED. 2 passed; 1 failed;\n";
        assert_eq!(count_passed(text), 5);
    }
}
