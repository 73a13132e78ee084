//! Cargo, started by the tool: building the freestanding programs and asking about the workspace.

use crate::{failure, setup, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs};

/// The target of the kernel, of user space and of the test guests.
pub const BARE_TARGET: &str = "x86_64-unknown-none";

/// The programs of every boot image: package and binary, the kernel first.
pub const SYSTEM: [(&str, &str); 9] = [
    ("kernel", "kernel"),
    ("root-task", "root"),
    ("console", "console"),
    ("monitor", "monitor"),
    ("switch", "switch"),
    ("drv-ata", "drv-ata"),
    ("drv-virtio-blk", "drv-virtio-blk"),
    ("drv-virtio-net", "drv-virtio-net"),
    ("drv-ne2000", "drv-ne2000"),
];

/// The package of the test guests.
pub const GUESTS: &str = "guests";

/// The package, and the program, of the guest that serves files.
pub const UNIKERNEL: &str = "unikernel";

/// The package, and the program, that holds the kernel to its contract.
pub const CONFORMANCE: &str = "conformance";

/// The package, and the program, of the VMM that is watched, or made to crash.
pub const TEST_MONITOR: &str = "test-monitor";

/// The package, and the program, of the switch that crashes.
pub const TEST_SWITCH: &str = "test-switch";

/// The package, and the program, of the disk driver that fails or crashes.
pub const TEST_DRIVER: &str = "test-driver";
/// The disk driver whose disk loses its power.
pub const TEST_POWER: &str = "test-power";

/// A cargo command in the workspace. The user's `RUSTFLAGS` would replace those of `.cargo/config.toml`, without which
/// the kernel does not link, so they are dropped.
pub fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_BUILD_RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command
}

/// The compiler that goes with [`cargo`].
pub fn rustc() -> Command {
    let beside = env::var_os("CARGO")
        .map(|cargo| Path::new(&cargo).with_file_name("rustc"))
        .filter(|path| path.exists());
    Command::new(beside.unwrap_or_else(|| "rustc".into()))
}

/// Builds the system and, if given, test guests, for the bare target.
pub fn system_and_guests(guests: &[String]) -> Result<()> {
    let guests = guests.iter().map(|guest| (GUESTS, &**guest));
    programs(SYSTEM.into_iter().chain(guests))
}

/// The profile of the kernel with the checkers.
const CHECKED: &str = "checked";

static USES_CHECKED_KERNEL: AtomicBool = AtomicBool::new(false);

/// The profile of the kernel that this process boots.
pub fn kernel_profile() -> &'static str {
    if USES_CHECKED_KERNEL.load(Ordering::Relaxed) { CHECKED } else { "release" }
}

/// Builds the kernel with the entry checker, the flush checker and every assertion. From here on this process boots that one.
pub fn checked_kernel() -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--profile", CHECKED, "--target", BARE_TARGET]);
    command.args(["-p", "kernel", "--bin", "kernel", "--features", "checkers"]);
    run(command)?;
    USES_CHECKED_KERNEL.store(true, Ordering::Relaxed);
    Ok(())
}

/// Builds the system, every test guest, the unikernel, the conformance task and the VMM of tests, and the kernel with the checkers.
pub fn everything_tested() -> Result<()> {
    let names = guest_names()?;
    let guests = names.iter().map(|guest| (GUESTS, &**guest));
    let tests =
        [UNIKERNEL, CONFORMANCE, TEST_MONITOR, TEST_DRIVER, TEST_POWER, TEST_SWITCH].map(|name| (name, name));
    programs(SYSTEM.into_iter().chain(tests).chain(guests))?;
    checked_kernel()
}

/// Builds a program for Linux guests, which needs nothing from them; returns its file.
pub fn linux_program(package: &str, binary: &str) -> Result<Vec<u8>> {
    let mut command = cargo();
    command.args(["rustc", "--release", "-p", package, "--bin", binary]);
    command.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    run(command)?;
    workspace::read(&workspace::target().join("release").join(binary))
}

/// Builds programs, each given by its package and its name.
fn programs<'a>(programs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
    setup::rust_target()?;
    let mut command = cargo();
    command.args(["build", "--release", "--target", BARE_TARGET]);
    for (package, binary) in programs {
        command.args(["-p", package, "--bin", binary]);
    }
    run(command)
}

/// Runs a build.
fn run(mut command: Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the build failed; cargo's messages above say where");
    }
    Ok(())
}

/// Names of the test guests, sorted.
pub fn guest_names() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let guests = packages.iter().find(|package| package["name"] == GUESTS);
    let targets = guests.and_then(|package| package["targets"].as_array()).into_iter().flatten();
    let is_binary = |target: &&Value| {
        target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
    };
    let mut names: Vec<String> =
        targets.filter(is_binary).filter_map(|target| target["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// `cargo metadata` of the workspace's own packages.
pub fn metadata() -> Result<Value> {
    let output = cargo()
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed; its message is above");
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")
}

/// Refuses a name that is no test guest, and says which there are.
pub fn check_guest_name(name: &str) -> Result<()> {
    let names = guest_names()?;
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    Err(failure::usage(format!("there is no guest `{name}`; there are: linux {}", names.join(" "))))
}

/// What is wrong with a boot image's parts after a build, if something is missing.
pub fn check_built() -> Result<()> {
    for (_, binary) in SYSTEM {
        let path = workspace::bare_binary(binary);
        fs::metadata(&path).with_context(|| format!("the build left no {}", path.display()))?;
    }
    Ok(())
}
