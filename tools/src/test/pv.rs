//! Paravirtual devices: a guest with the drivers of guest-pv-driver, and a disk that it knows.

use super::Test;
use super::guests::{self, judge_end, passed, system, verdict, vm};
use super::record::Outcome as Verdict;
use crate::image::manifest;
use crate::request;
use crate::run::machine::Machine;
use crate::run::outcome::{Report, VmReport};
use crate::run::{self, Options, Script};
use crate::workspace;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tproto::{line, pv};
use vmm_protocol::manifest::{
    DEFAULT_TIMEOUT_MS, DiskConfig, DiskDriver, DiskInterface, OnCrash, VsockConfig,
};
use vmm_protocol::outcome::Outcome;

const TIME_LIMIT: Duration = Duration::from_secs(600);
/// What is typed, and comes back.
const TYPED: &str = "typed and sent back q";
/// The exit code that the guest is told.
const CODE: u32 = 77;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let test = |name: &str, shows, cmdline: String, judge: fn(&VmReport) -> Result<(), String>| {
        let name = format!("{}/{name}", machine.name());
        Test::on(machine, name, shows, move |name| run(machine, &cmdline, name, judge))
    };
    let virtio = "drivers of the crate virtio-drivers find and use virtio devices";
    vec![
        Test::on(machine, format!("{}/virtio", machine.name()), virtio, move |name| {
            run_virtio(machine, name)
        }),
        test(
            "pv",
            "a guest's paravirtual drivers find, use, break and reset their devices",
            String::new(),
            judge_talk,
        ),
        test("pv-exit", "a guest ends its VM by the control device", format!("exit={CODE}"), |vm| {
            judge_end(vm, &Outcome::ExitCode(CODE))
        }),
    ]
}

fn run(
    machine: Machine,
    cmdline: &str,
    name: &str,
    judge: fn(&VmReport) -> Result<(), String>,
) -> Result<Verdict> {
    let (report, log) = run_guest(machine, "pv", cmdline, name, DiskInterface::Pv)?;
    Ok(verdict(&report, &log, || judge_log(&report, &log, pv::LOGGED, judge)))
}

fn run_virtio(machine: Machine, name: &str) -> Result<Verdict> {
    let (report, log) = run_guest(machine, "virtio", "", name, DiskInterface::Virtio)?;
    Ok(verdict(&report, &log, || judge_log(&report, &log, pv::SAID, passed)))
}

/// Runs a guest with a disk that says where each word of it is; returns where the log is, too.
fn run_guest(
    machine: Machine,
    guest: &str,
    cmdline: &str,
    name: &str,
    interface: DiskInterface,
) -> Result<(Report, PathBuf)> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let image = folder.path().join("disk");
    let words: Vec<u8> = (0..pv::SECTORS * 64).flat_map(|word| (word * 8).to_le_bytes()).collect();
    workspace::write(&image, words)?;
    let disk = DiskConfig {
        image: image.to_string_lossy().into_owned(),
        read_only: false,
        driver: DiskDriver::Memory,
        on_crash: OnCrash::Report,
        timeout_ms: DEFAULT_TIMEOUT_MS,
        interface,
        queues: 1,
    };
    let mut vm = vm(guest, guest, cmdline, 16);
    if interface == DiskInterface::Virtio {
        vm.vsock = Some(VsockConfig { cid: pv::CID, network: None });
    }
    vm.disks.push(disk);
    let args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let manifest = system(Vec::new(), vec![vm]);
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let options = Options {
        script: Script { answer: Some((line::READY.to_owned(), TYPED.to_owned())), ..Default::default() },
        ..guests::options(&args, name, TIME_LIMIT)?
    };
    Ok((run::run(&plan, &options)?, options.log))
}

fn judge_log(
    report: &Report,
    log: &Path,
    said: &str,
    judge: fn(&VmReport) -> Result<(), String>,
) -> Result<(), String> {
    judge(report.vms.first().ok_or("there was no VM")?)?;
    let log = std::fs::read_to_string(log).map_err(|error| error.to_string())?;
    if log.contains(said) { Ok(()) } else { Err("the guest's line is not in the log".into()) }
}

fn judge_talk(vm: &VmReport) -> Result<(), String> {
    passed(vm)?;
    let console = String::from_utf8_lossy(&vm.console);
    for expected in [pv::SHOWN, TYPED] {
        if !console.lines().any(|line| line == expected) {
            return Err(format!("the console did not show {expected:?}"));
        }
    }
    Ok(())
}
