//! Switches that crash, and guests that mean harm to theirs.

use super::Test;
use super::drivers::run_with_module;
use super::guests::{self, passed, verdict, vm};
use super::linux::check;
use super::networks::{card, console, linux_guests, manifest_with};
use super::record::Outcome as Verdict;
use crate::compile;
use crate::image::manifest::{self, Plan};
use crate::request::{self, RunArgs};
use crate::run;
use crate::run::machine::Machine;
use crate::run::outcome::Report;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;
use vmm_protocol::manifest::{NetInterface, OnCrash, SWITCH_MODULE, VmConfig};
use vmm_protocol::outcome::Outcome;

const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Serves pings, until the other is gone; what it is asked last says so.
const ANSWER: &str = "ip link set eth0 up; ip addr add 10.9.0.1/24 dev eth0
nc -l -p 5000 </dev/console >/dev/console; sleep 1";
/// Has the switch crash by a ping of the length that it does not survive, and talks to the other before and afterwards.
const CRASH: &str = "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
until ping -c 1 -W 1 10.9.0.1; do :; done >/dev/null
ping -c 1 -W 1 -s 735 10.9.0.1 >/dev/null && echo survived >/dev/console
until ping -c 1 -W 1 10.9.0.1; do :; done >/dev/null
ping -q -c 20 -A 10.9.0.1 >/dev/console
echo good-bye | nc 10.9.0.1 5000
while ping -c 1 -W 1 10.9.0.1; do sleep 0.1; done >/dev/null";

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let test = |topic, shows, run: fn(Machine, &str) -> Result<Verdict>| {
        let name = format!("{}/net-switch-{topic}", machine.name());
        Test::on(machine, name, shows, move |name| run(machine, name))
    };
    vec![
        test(
            "crash",
            "a switch that crashes is started again: guests on its channel and behind VMMs lose frames, and go on",
            pv_crash,
        ),
        test(
            "crash-linux",
            "a switch that crashes is started again: Debian's virtio drivers lose a ping, and go on",
            linux_crash,
        ),
        test("gone", "a switch that crashed for good takes no guest and no VMM with it", pv_gone),
        test(
            "hostile",
            "a guest that writes nonsense into its channel, and from the addresses of others, harms nobody but itself",
            hostile,
        ),
    ]
}

fn pv(name: &str, guest: &str, cmdline: &str) -> VmConfig {
    VmConfig { cards: vec![card(NetInterface::Pv)], ..vm(name, guest, cmdline, 16) }
}

fn pv_crash(machine: Machine, name: &str) -> Result<Verdict> {
    let vms = vec![
        pv("ping", "pv_net", "role=ping crash=yes"),
        pv("pong", "pv_net", "role=pong streams=2 by=queues"),
    ];
    crash(machine, name, resolve(machine, OnCrash::Restart, vms)?, |report, log| {
        report.vms.iter().try_for_each(passed)?;
        check_log(log, &["switch.lan crashed", "switch.lan: starting it again (1 of 3)"])
    })
}

fn pv_gone(machine: Machine, name: &str) -> Result<Verdict> {
    let vms =
        vec![pv("channel", "pv_net", "role=last crash=yes"), pv("queues", "pv_net", "role=last by=queues")];
    crash(machine, name, resolve(machine, OnCrash::Report, vms)?, |report, log| {
        report.vms.iter().try_for_each(passed)?;
        check(!log.contains("starting it again"), "the switch was started again")?;
        check_log(log, &["switch.lan crashed"])
    })
}

fn linux_crash(machine: Machine, name: &str) -> Result<Verdict> {
    let plan = linux_guests(machine, OnCrash::Restart, &[], &[("answer", ANSWER), ("crash", CRASH)])?;
    crash(machine, name, plan, |report, log| {
        let [answer, crash] = &report.vms[..] else { return Err("there were not two VMs".into()) };
        for vm in [answer, crash] {
            check(
                vm.outcome == Some(Outcome::PoweredOff),
                &format!("{} ended so: {:?}", vm.name, vm.outcome),
            )?;
        }
        check(!console(crash).contains("survived"), "the switch survived")?;
        check(console(crash).contains("20 packets transmitted, 20 packets received"), "a ping was lost")?;
        check(console(answer).contains("good-bye"), "nothing arrived by TCP")?;
        check_log(log, &["switch.lan crashed", "switch.lan: starting it again (1 of 3)"])
    })
}

/// The hostile one is on a CPU of its own: it writes while the switch reads.
fn hostile(machine: Machine, name: &str) -> Result<Verdict> {
    let vms = vec![
        pv("ping", "pv_net", "role=ping"),
        pv("pong", "pv_net", "role=pong clients=2"),
        VmConfig { cpu: 1, ..pv("hostile", "pv_hostile", "") },
    ];
    let args = request::parse(&["--machine", machine.name(), "--host-cpus", "2"])?;
    let plan = manifest::resolve(manifest_with(OnCrash::Report, vms), Path::new(""), request::host(&args))?;
    let options = guests::options(&args, name, TIME_LIMIT)?;
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || report.vms.iter().try_for_each(passed)))
}

fn deterministic(machine: Machine) -> Result<RunArgs> {
    request::parse(&["--machine", machine.name(), "--deterministic"])
}

fn resolve(machine: Machine, on_crash: OnCrash, vms: Vec<VmConfig>) -> Result<Plan> {
    let args = deterministic(machine)?;
    manifest::resolve(manifest_with(on_crash, vms), Path::new(""), request::host(&args))
}

/// Runs a plan with the switch that crashes.
fn crash(
    machine: Machine,
    name: &str,
    plan: Plan,
    judge: fn(&Report, &str) -> Result<(), String>,
) -> Result<Verdict> {
    let options = guests::options(&deterministic(machine)?, name, TIME_LIMIT)?;
    let (report, options, log) = run_with_module(&plan, options, SWITCH_MODULE, compile::TEST_SWITCH)?;
    Ok(verdict(&report, &options.log, || judge(&report, &log)))
}

fn check_log(log: &str, lines: &[&str]) -> Result<(), String> {
    lines.iter().try_for_each(|line| check(log.contains(line), &format!("the log does not say {line:?}")))
}
