//! What UDP between two Debian guests costs, with Debian's own drivers and everything in both guests: a packet there and back, and one
//! of a stream.
//!
//! Both VMs are on one CPU, whose TSC counts the instructions of both, so that the program in the one that asks can measure by itself.

use crate::compile;
use crate::guest::{
    self, debian,
    initramfs::{self, Content},
};
use crate::image::manifest::{self, Plan};
use crate::image::modules::Collector;
use crate::request::{self, RunArgs};
use crate::run::machine::Machine;
use crate::run::{self, Options, Output};
use crate::test::guests::{system, vm};
use crate::workspace;
use anyhow::{Context, Result};
use std::time::Duration;
use vmm_protocol::manifest::{
    CardConfig, ConsoleInterface, NetInterface, NetworkConfig, OnCrash, Uplink, VmConfig,
};

/// The operations: a packet of 64 bytes there and back, and one of 1500 bytes of a stream.
pub const OPERATIONS: [&str; 2] = ["virtio.net_ping64", "virtio.net_stream1500"];

const TIME_LIMIT: Duration = Duration::from_secs(600);
const LAN: &str = "lan";
/// The program, in the crate of that name, and where it is in the guest.
const PACKAGE: &str = "bench-linux";
const PROGRAM: &str = "bench-udp";
/// What the CPU on which the peers were measured has not: with it Linux copies and clears by REP MOVSB and STOSB, whose every byte the
/// emulators count as an instruction. Without it the bytes are eight times fewer instructions.
const HIDDEN: &str = "erms";
/// Memory of a guest in MiB.
const MEMORY_MIB: u32 = 96;

/// Measures both operations: ticks.
pub fn measure(machine: Machine, mitigations: &str) -> Result<[u64; 2]> {
    compile::system_and_guests(&[])?;
    let args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let options = Options {
        timeout: Some(TIME_LIMIT),
        log: workspace::own_dir("log")?.join(format!("bench-udp-{}.log", machine.name())),
        kernel_cmdline: machine.kernel_cmdline(&format!("loglevel=error mitigations={mitigations}")),
        ..request::options(&args, Output::Collect)?
    };
    let report = run::run(&plan(&args)?, &options)?;
    let asks = report.vms.last().context("there are no VMs")?;
    let text = String::from_utf8_lossy(&asks.console);
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        line.with_context(|| format!("the guest said no {name}; the log is {}", options.log.display()))
    };
    Ok([figure("ping ")?, figure("stream ")?])
}

fn plan(args: &RunArgs) -> Result<Plan> {
    let linux = debian::fetch()?;
    let program = compile::linux_program(PACKAGE, PROGRAM)?;
    let cards = vec![CardConfig {
        network: LAN.into(),
        interface: NetInterface::Virtio,
        mac: None,
        bridge: false,
        queues: 1,
    }];
    let drivers = linux.drivers(&manifest::drivers(&[], &cards, ConsoleInterface::Serial, false, false))?;
    let mut collector = Collector::default();
    let mut guest = |role: &str, address: &str| -> Result<VmConfig> {
        let command = format!(
            "ip link set eth0 up; ip addr add {address}/24 dev eth0; /bench/{PROGRAM} {role} >/dev/console"
        );
        let content = Content { modules: &drivers, dhcp: &[], exec: Some(&command), is_whole: true };
        let archive = initramfs::build(&linux.busybox, content)?;
        let archive = [archive, initramfs::with_program(&format!("bench/{PROGRAM}"), &program)].concat();
        Ok(VmConfig {
            kernel: collector.add_file(&linux.kernel)?,
            initrd: vec![collector.add_bytes(role, archive)?],
            cmdline: format!("{} quiet {}", guest::cmdline(ConsoleInterface::Serial), initramfs::RDINIT),
            cards: cards.clone(),
            hide_features: vec![HIDDEN.into()],
            ..vm(role, guest::LINUX, "", MEMORY_MIB)
        })
    };
    let vms = vec![guest("answer", "10.9.0.1")?, guest("ask", "10.9.0.2")?];
    let lan = NetworkConfig { name: LAN.into(), uplink: Uplink::None, on_crash: OnCrash::Report };
    manifest::check_all(&system(vec![lan], vms), collector, request::host(args))
}
