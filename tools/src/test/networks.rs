//! Networks between VMs: cards of either kind, and Debian's drivers.

use super::Test;
use super::guests::{self, judge_end, passed, system, verdict, vm};
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
use std::path::Path;
use std::time::Duration;
use vmm_protocol::manifest::{CardConfig, Manifest, NetInterface, NetworkConfig, OnCrash, Uplink, VmConfig};
use vmm_protocol::net::MAX_FRAME;
use vmm_protocol::outcome::Outcome;

const TIME_LIMIT: Duration = Duration::from_secs(600);
const LAN: &str = "lan";
/// Memory of a Debian guest that only has its initial file system, in MiB.
const LINUX_MIB: u32 = 96;

/// Waits for a connection of each IP, shows the sum of what it brought, and in how many frames. The console, where nobody types, keeps it
/// from closing its direction.
const LISTEN: &str = "ip link set eth0 up; ip addr add 10.9.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0
cd /sys/class/net/eth0/statistics
for port in 5000 5001; do
nc -l -p $port </dev/console | md5sum >/dev/console
echo \"came: $(cat rx_bytes) bytes in $(cat rx_packets) frames\" >/dev/console
done
sleep 1";
/// Waits for the other, and sends it by TCP, whose checksums it leaves to its card, more than any ring holds; shows the sum.
/// Stays until the other is gone: what is on its way is the kernel's. Says then what its CPU did.
const TALK: &str = "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0
until ping -c 1 -W 1 10.9.0.1; do :; done >/dev/null
ping -q -c 3 -s 1400 -A 10.9.0.1 >/dev/console
seq 200000 >/tmp/numbers; md5sum </tmp/numbers >/dev/console; nc 10.9.0.1 5000 </tmp/numbers
until nc fd00::1 5001 </tmp/numbers; do sleep 0.1; done
while ping -c 1 -W 1 10.9.0.1; do sleep 0.1; done >/dev/null
grep '^cpu ' /proc/stat >/dev/console
echo \"several queues: $(cut -c 23 /sys/class/net/eth0/device/features)\" >/dev/console";

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let name = |name: &str| format!("{}/net-{name}", machine.name());
    vec![
        Test::on(
            machine,
            name("pv"),
            "two guests with paravirtual network cards talk to the switch themselves; nothing is lost",
            move |name| run(machine, name, pv_pair("channel")?, judge_pair),
        ),
        Test::on(
            machine,
            name("pv-queues"),
            "two guests with paravirtual network cards talk through the VMM and the switch; nothing is lost",
            move |name| run(machine, name, pv_pair("queues")?, judge_pair),
        ),
        Test::on(
            machine,
            name("linux"),
            "two Debian guests talk over ICMP and TCP with their own virtio driver, which gets long segments uncut, and see what time the other took",
            move |name| run(machine, name, linux_pair(machine)?, judge_linux),
        ),
    ]
}

pub(super) fn card(interface: NetInterface) -> CardConfig {
    CardConfig { network: LAN.into(), interface, mac: None, bridge: false, queues: 1 }
}

fn manifest_of(vms: Vec<VmConfig>) -> Manifest {
    manifest_with(OnCrash::Report, vms)
}

/// These VMs on a network whose switch is, or is not, started again after a crash.
pub(super) fn manifest_with(on_crash: OnCrash, vms: Vec<VmConfig>) -> Manifest {
    let lan = NetworkConfig { name: LAN.into(), uplink: Uplink::None, on_crash };
    system(vec![lan], vms)
}

/// Two guests that reach the switch by this.
fn pv_pair(by: &str) -> Result<Plan> {
    let guest = |role: &str| VmConfig {
        cards: vec![card(NetInterface::Pv)],
        ..vm(role, "pv_net", &format!("role={role} by={by}"), 16)
    };
    let args = request::parse(&[])?;
    manifest::resolve(manifest_of(vec![guest("ping"), guest("pong")]), Path::new(""), request::host(&args))
}

fn linux_pair(machine: Machine) -> Result<Plan> {
    linux_guests(machine, OnCrash::Report, &[], &[("listener", LISTEN), ("talker", TALK)])
}

/// Debian guests on one network, each of which executes its command; these files are in their file systems, too.
pub(super) fn linux_guests(
    machine: Machine,
    on_crash: OnCrash,
    files: &[u8],
    guests: &[(&str, &str)],
) -> Result<Plan> {
    let linux = debian::fetch()?;
    let cards = vec![CardConfig { queues: 2, ..card(NetInterface::Virtio) }];
    let drivers = linux.drivers(&manifest::drivers(&[], &cards, Default::default(), false, false))?;
    let mut collector = Collector::default();
    let mut guest = |name: &str, command: &str| -> Result<VmConfig> {
        let content = Content { modules: &drivers, dhcp: &[], exec: Some(command), is_whole: true };
        let archive = [&initramfs::build(&linux.busybox, content)?, files].concat();
        Ok(VmConfig {
            kernel: collector.add_file(&linux.kernel)?,
            initrd: vec![collector.add_bytes(name, archive)?],
            cmdline: format!("{} {}", guest::cmdline(Default::default()), initramfs::RDINIT),
            cards: cards.clone(),
            ..vm(name, guest::LINUX, "", LINUX_MIB)
        })
    };
    let vms = guests.iter().map(|(name, command)| guest(name, command)).collect::<Result<_>>()?;
    let args = request::parse(&["--machine", machine.name()])?;
    manifest::check_all(&manifest_with(on_crash, vms), collector, request::host(&args))
}

pub(super) fn run(
    machine: Machine,
    name: &str,
    plan: Plan,
    judge: fn(&Report) -> Result<(), String>,
) -> Result<Verdict> {
    let args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let options = guests::options(&args, name, TIME_LIMIT)?;
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || judge(&report)))
}

fn judge_pair(report: &Report) -> Result<(), String> {
    report.vms.iter().try_for_each(passed)
}

pub(super) fn judge_linux(report: &Report) -> Result<(), String> {
    let [listener, talker] = &report.vms[..] else { return Err("there were not two VMs".into()) };
    for vm in [listener, talker] {
        judge_end(vm, &Outcome::PoweredOff)?;
    }
    if !console(talker).contains("3 packets transmitted, 3 packets received") {
        return Err("a ping was lost".into());
    }
    // One CPU uses one pair of them until it is told (`queues.rs`), but the driver knows of more.
    if !console(talker).contains("several queues: 1") {
        return Err("the driver does not take several queues".into());
    }
    if stolen_ticks(&console(talker)).is_none_or(|ticks| ticks == 0) {
        return Err("on a CPU that two VMs share nothing was stolen".into());
    }
    let sums = |vm: &VmReport| -> Vec<String> {
        console(vm).lines().filter_map(|line| line.strip_suffix("  -")).map(str::to_owned).collect()
    };
    match (&sums(talker)[..], &sums(listener)[..]) {
        ([sent], [four, six]) if sent == four && sent == six => {}
        sums => return Err(format!("what was sent did not arrive whole: {sums:?}")),
    }
    // The first one came by IPv4, the other by IPv6.
    match frame_bytes(&console(listener))[..] {
        [four, six] if four.min(six) > MAX_FRAME => Ok(()),
        ref bytes => Err(format!("the listener saw no long segments: frames had {bytes:?} bytes")),
    }
}

/// How many bytes the frames had on average that a listener got, up to each time that it says so.
fn frame_bytes(console: &str) -> Vec<usize> {
    let totals = console.lines().filter_map(|line| {
        let (bytes, frames) =
            line.strip_prefix("came: ")?.strip_suffix(" frames")?.split_once(" bytes in ")?;
        Some([bytes.parse().ok()?, frames.parse().ok()?])
    });
    let totals: Vec<[usize; 2]> = std::iter::once([0, 0]).chain(totals).collect();
    let steps = totals.windows(2).map(|pair| {
        let [bytes, frames] = [0, 1].map(|at| pair[1][at].saturating_sub(pair[0][at]));
        bytes.checked_div(frames).unwrap_or(0)
    });
    steps.collect()
}

/// Steal time in ticks of 10 ms: the eighth number of the line `cpu` of /proc/stat.
fn stolen_ticks(console: &str) -> Option<u64> {
    let line = console.lines().find_map(|line| line.strip_prefix("cpu "))?;
    line.split_whitespace().nth(7)?.parse().ok()
}

pub(super) fn console(vm: &VmReport) -> String {
    String::from_utf8_lossy(&vm.console).into_owned()
}
