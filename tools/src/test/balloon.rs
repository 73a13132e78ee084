//! Memory that a guest gives away and gets back: Debian's balloon driver, and a VM that does not fit beside it.

use super::Test;
use super::guests::{self, judge_end, passed, system, verdict, vm};
use super::linux::check;
use super::record::Outcome as Verdict;
use crate::guest::{
    debian,
    initramfs::{self, Content},
};
use crate::image::manifest;
use crate::run::machine::Machine;
use crate::run::outcome::Report;
use crate::run::{self, Options, Script};
use crate::{request, workspace};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tproto::{balloon, line};
use vmm_protocol::manifest::{BalloonConfig, VmConfig};
use vmm_protocol::outcome::Outcome;

/// How long the test may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// The machine's memory in MiB.
const HOST_MIB: &str = "512";
/// Memory of Debian's VM, and what it keeps.
const LINUX_MIB: u32 = 256;
const LINUX_MIN_MIB: u32 = 128;
/// Memory of the VM that does not fit beside it.
const SECOND_MIB: u32 = 240;
/// The same of the guest with a paravirtual balloon.
const PV_HOST_MIB: &str = "160";
const PV_MIB: u32 = 112;
const PV_MIN_MIB: u32 = 16;
const PV_SECOND_MIB: u32 = 72;
/// What free page reporting gives back at least, in MiB, of what Debian does not need after its boot.
const REPORTED_MIB: u32 = 100;

/// Waits until the balloon was inflated and deflated, and uses memory that had been given away.
const GIVE: &str = r#"exec >/dev/console 2>&1
count() { grep "^$1 " /proc/vmstat | cut -d' ' -f2; }
while [ $(count balloon_inflate) -lt 4096 ]; do sleep 1; done
echo gave memory
while [ $(count balloon_deflate) -lt $(count balloon_inflate) ]; do sleep 1; done
echo has it again"#;

/// Uses memory that was reported as free, and lets it go again.
const REPORT: &str = "exec >/dev/console 2>&1; sleep 5";

/// Fills memory with copies of a file, looks at some, and frees it.
const USE: &str = r#"
mount -t tmpfs tmpfs /mnt
yes nacre | head -c 1000000 > /mnt/0
for copy in $(seq 40); do cp /mnt/0 /mnt/$copy; done
for copy in 1 20 40; do cmp /mnt/0 /mnt/$copy || exit; done && echo memory holds
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
sleep 5
echo done"#;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let test = |topic: &str, shows, run: fn(Machine, &str) -> Result<Verdict>| {
        Test::on(machine, format!("{}/{topic}", machine.name()), shows, move |name| run(machine, name))
    };
    vec![
        test(
            "linux-balloon",
            "Debian's balloon gives memory back, in which a VM starts that did not fit, and gets it again when that has ended",
            run_balloon,
        ),
        test(
            "linux-free-pages",
            "Debian's balloon reports free memory, which others could have, and gets zeroed memory where it needs some",
            run_reports,
        ),
        test(
            "pv-balloon",
            "a guest with a paravirtual balloon gives memory back, in which a VM starts, and gets it again, zeroed",
            run_pv,
        ),
        test(
            "pv-balloon-greedy",
            "a guest that uses its memory while it is another's, and there is no more, ends for want of memory; the other goes on",
            run_greedy,
        ),
    ]
}

fn run_balloon(machine: Machine, name: &str) -> Result<Verdict> {
    let balloon = BalloonConfig { min_mib: LINUX_MIN_MIB, reports: false };
    let beside = vm("second", "hello", "", SECOND_MIB);
    run(machine, name, balloon, GIVE, Some(beside), |report, log| {
        check(log.contains("VM second: waits for memory of others"), "the second VM found memory at once")?;
        report.vms.get(1).map_or(Err("there was no second VM".into()), passed)?;
        says(report, &["gave memory", "has it again", "memory holds", "done"])
    })
}

fn run_reports(machine: Machine, name: &str) -> Result<Verdict> {
    let balloon = BalloonConfig { min_mib: LINUX_MIB, reports: true };
    run(machine, name, balloon, REPORT, None, |report, log| {
        says(report, &["memory holds", "done"])?;
        let reported = free_for_others(log).ok_or("the VMM did not say what is free for others")?;
        check(reported >= REPORTED_MIB, &format!("{reported} MiB were reported as free"))
    })
}

fn run(
    machine: Machine,
    name: &str,
    balloon: BalloonConfig,
    command: &str,
    beside: Option<VmConfig>,
    judge: impl FnOnce(&Report, &str) -> Result<(), String>,
) -> Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let linux = debian::fetch()?;
    let drivers = linux.drivers(&manifest::drivers(&[], &[], Default::default(), true, false))?;
    let command = format!("{command}{USE}");
    let initrd = folder.path().join("initrd");
    let content = Content { modules: &drivers, dhcp: &[], exec: Some(&command), is_whole: true };
    workspace::write(&initrd, initramfs::build(&linux.busybox, content)?)?;
    let first = VmConfig {
        kernel: "guest:linux".into(),
        initrd: vec![initrd.display().to_string()],
        balloon: Some(balloon),
        ..vm("linux", "hello", "", LINUX_MIB)
    };
    let vms = [first].into_iter().chain(beside).collect();
    let manifest = system(Vec::new(), vms);
    let args = request::parse(&["--machine", machine.name(), "--deterministic", "--host-memory", HOST_MIB])?;
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let options = guests::options(&args, name, TIME_LIMIT)?;
    let report = run::run(&plan, &options)?;
    let log = String::from_utf8_lossy(&workspace::read(&options.log)?).into_owned();
    Ok(verdict(&report, &options.log, || judge(&report, &log)))
}

fn run_pv(machine: Machine, name: &str) -> Result<Verdict> {
    let (report, log) = run_pair(machine, "", "hello", name)?;
    Ok(verdict(&report, &log, || {
        waited(&log)?;
        report.vms.iter().try_for_each(passed)
    }))
}

/// The VM beside waits for what nobody types, and so keeps its memory.
fn run_greedy(machine: Machine, name: &str) -> Result<Verdict> {
    let (report, log) = run_pair(machine, &format!("mode={}", balloon::GREEDY), "echo", name)?;
    Ok(verdict(&report, &log, || {
        waited(&log)?;
        let [greedy, beside] = &report.vms[..] else { return Err("there were not two VMs".into()) };
        judge_end(greedy, &Outcome::OutOfMemory)?;
        let console = String::from_utf8_lossy(&greedy.console);
        let is_back = console.lines().any(|line| line == format!("{}{}", line::OK, balloon::BACK));
        check(is_back, "the guest ended before it took its memory back")?;
        check(beside.outcome.is_none(), "the VM beside it did not go on")
    }))
}

/// Runs the guest of the paravirtual balloon, and beside it one that does not fit until the first gave memory.
fn run_pair(machine: Machine, cmdline: &str, beside: &str, name: &str) -> Result<(Report, PathBuf)> {
    let first = VmConfig {
        balloon: Some(BalloonConfig { min_mib: PV_MIN_MIB, reports: false }),
        ..vm("balloon", "pv_balloon", cmdline, PV_MIB)
    };
    let manifest = system(Vec::new(), vec![first, vm("second", beside, "", PV_SECOND_MIB)]);
    let args =
        request::parse(&["--machine", machine.name(), "--deterministic", "--host-memory", PV_HOST_MIB])?;
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let script = Script { until: Some(0), ..Script::default() };
    let options = Options { script, ..guests::options(&args, name, TIME_LIMIT)? };
    Ok((run::run(&plan, &options)?, options.log))
}

/// Whether the second VM did not fit at first.
fn waited(log: &Path) -> Result<(), String> {
    let log = std::fs::read_to_string(log).map_err(|error| error.to_string())?;
    check(log.contains("VM second: waits for memory of others"), "the second VM found memory at once")
}

/// Whether Debian said all of this, and then powered off.
fn says(report: &Report, lines: &[&str]) -> Result<(), String> {
    let linux = report.vms.first().ok_or("there was no VM")?;
    let console = String::from_utf8_lossy(&linux.console);
    let is_said = |line: &str| console.lines().any(|has| has.trim_end() == line);
    match lines.iter().find(|line| !is_said(line)) {
        Some(line) => Err(format!("Debian did not say {line:?}")),
        None if linux.outcome == Some(Outcome::PoweredOff) => Ok(()),
        None => Err(format!("Debian ended with {:?}", linux.outcome)),
    }
}

/// What the VMM says at the end, in MiB.
fn free_for_others(log: &str) -> Option<u32> {
    let line = log.lines().find(|line| line.contains("MiB of the guest's memory are free for others"))?;
    line.split(" MiB of the guest's").next()?.rsplit(' ').next()?.parse().ok()
}
