//! Sockets without a network: between two Debian guests, and to their VMMs.

use super::Test;
use super::guests::{self, judge_end, system, verdict, vm};
use super::record::Outcome as Verdict;
use crate::guest::{
    self, debian,
    initramfs::{self, Content},
};
use crate::image::manifest::{self, Plan};
use crate::image::modules::Collector;
use crate::request;
use crate::run;
use crate::run::machine::Machine;
use crate::run::outcome::{Report, VmReport};
use anyhow::Result;
use std::fs;
use std::time::Duration;
use vmm_protocol::manifest::{NetworkConfig, OnCrash, Uplink, VmConfig, VsockConfig};
use vmm_protocol::outcome::Outcome;

const TIME_LIMIT: Duration = Duration::from_secs(600);
const NETWORK: &str = "sockets";
/// Memory of a Debian guest that only has its initial file system, in MiB.
const LINUX_MIB: u32 = 96;
/// What is logged.
const LINE: &str = "vsock speaking";

/// Has its services' answers, then sends and gets a stream on one connection, more than any ring holds. Resets its machine while a
/// connection of the other's is open.
const ENDS: &str = "exec >/dev/console 2>&1
seq 30000 >/tmp/sent; sum sent
vsock connect 2 7 </tmp/sent >/tmp/echoed; sum echoed
echo 'vsock speaking' | vsock connect 2 514
vsock connect 2 80 || echo no service
vsock connect 9 80 || echo no VM
vsock listen 5000 </tmp/sent >/tmp/came; sum came
sleep 1000 | vsock connect 4 5001 >/tmp/ready &
until [ -s /tmp/ready ]; do sleep 0.1; done
reboot -f";
/// Is the other end, and stays until the open connection ends.
const STAYS: &str = "exec >/dev/console 2>&1
{ echo ready; sleep 1000; } | vsock listen 5001 >/tmp/nothing 2>/tmp/end &
open=$!
seq 50000 90000 >/tmp/sent; sum sent
until vsock connect 3 5000 </tmp/sent >/tmp/came 2>/dev/null; do sleep 0.1; done; sum came
until [ -s /tmp/end ]; do sleep 0.1; done; cat /tmp/end";
/// What both use: `sum NAME` shows the sum of a file.
const SUM: &str = r#"sum() { echo "$1 $(md5sum </tmp/$1)"; }"#;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    vec![Test::on(
        machine,
        format!("{}/vsock-linux", machine.name()),
        "sockets of two Debian guests carry a stream each way unharmed, and end when one resets; those to the VMM echo and log",
        move |name| run(machine, name),
    )]
}

fn run(machine: Machine, name: &str) -> Result<Verdict> {
    let args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let options = guests::options(&args, name, TIME_LIMIT)?;
    let report = run::run(&plan(machine)?, &options)?;
    let log = fs::read_to_string(&options.log).unwrap_or_default();
    Ok(verdict(&report, &options.log, || judge(&report, &log)))
}

fn plan(machine: Machine) -> Result<Plan> {
    let linux = debian::fetch()?;
    let drivers = linux.drivers(&manifest::drivers(&[], &[], Default::default(), false, true))?;
    let mut collector = Collector::default();
    let mut guest = |name: &str, cid: u32, command: &str| -> Result<VmConfig> {
        let command = format!("{SUM}\n{command}");
        let content = Content { modules: &drivers, dhcp: &[], exec: Some(&command), is_whole: true };
        let archive = initramfs::with_vsock(initramfs::build(&linux.busybox, content)?)?;
        Ok(VmConfig {
            kernel: collector.add_file(&linux.kernel)?,
            initrd: vec![collector.add_bytes(name, archive)?],
            cmdline: format!("{} quiet {}", guest::cmdline(Default::default()), initramfs::RDINIT),
            vsock: Some(VsockConfig { cid, network: Some(NETWORK.into()) }),
            ..vm(name, guest::LINUX, "", LINUX_MIB)
        })
    };
    let vms = vec![guest("ends", 3, ENDS)?, guest("stays", 4, STAYS)?];
    let network = NetworkConfig { name: NETWORK.into(), uplink: Uplink::None, on_crash: OnCrash::Report };
    let args = request::parse(&["--machine", machine.name()])?;
    manifest::check_all(&system(vec![network], vms), collector, request::host(&args))
}

fn judge(report: &Report, log: &str) -> Result<(), String> {
    let [ends, stays] = &report.vms[..] else { return Err("there were not two VMs".into()) };
    judge_end(ends, &Outcome::Reset)?;
    judge_end(stays, &Outcome::PoweredOff)?;
    let is_same = |one: &VmReport, name: &str, other: &VmReport| {
        let sum = sum(one, name);
        sum.is_some() && sum == self::sum(other, "sent")
    };
    for (is_so, otherwise) in [
        (is_same(ends, "echoed", ends), "the VMM's echo is not what was sent"),
        (is_same(ends, "came", stays) && is_same(stays, "came", ends), "a stream did not arrive whole"),
        (shows(ends, "no service") && shows(ends, "no VM"), "somebody answered where nobody is"),
        (shows(stays, "vsock: Broken pipe"), "the peer of a VM that reset did not see it"),
        (log.contains(&format!("the guest says: {LINE}")), "the VMM did not log what the guest said"),
    ] {
        if !is_so {
            return Err(otherwise.into());
        }
    }
    Ok(())
}

/// The sum that a guest showed.
fn sum(vm: &VmReport, name: &str) -> Option<String> {
    let console = String::from_utf8_lossy(&vm.console);
    console.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("  -").map(str::to_owned))
}

fn shows(vm: &VmReport, text: &str) -> bool {
    String::from_utf8_lossy(&vm.console).lines().any(|line| line.starts_with(text))
}
