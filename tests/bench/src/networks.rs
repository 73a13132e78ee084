//! Two whole VMs on one network: VMMs, switch and channels as the root task makes them.

use crate::error::Result;
use crate::report::Report;
use crate::vms::{config, listen, relay, wait_for};
use alloc::vec;
use alloc::vec::Vec;
use bench_protocol::GUEST_MODULE;
use root_task::console::Console;
use root_task::network;
use root_task::system::System;
use root_task::vm::Vm;
use vmm_protocol::manifest::{
    CardConfig, ConsoleMode, Manifest, NetInterface, NetworkConfig, OnCrash, Uplink, VmConfig, WhenDone,
};

/// Operations of the guest that asks the other.
pub const OPS: [&str; 2] = ["pv.net_ping64", "pv.net_stream1500"];
const NETWORK: &str = "lan";

/// Runs the two guests, and passes on what the one that asks says.
pub fn run(report: &Report, system: &mut System, console: &Console) -> Result<()> {
    let manifest = manifest();
    let new_vm = |(index, config): (usize, &VmConfig)| Vm::new(system, index, config.clone());
    let mut vms = manifest.vms.iter().enumerate().map(new_vm).collect::<core::result::Result<Vec<_>, _>>()?;
    let mut networks = network::all(system, &manifest, &vms)?;
    for network in &mut networks {
        network.start(system)?;
    }
    let mut output = listen(&vms[0])?;
    for vm in &mut vms {
        vm.start(system, console, &[], &networks)?;
    }
    vms.iter().try_for_each(wait_for)?;
    vms.iter_mut().for_each(|vm| vm.stop(&mut system.memory));
    relay(report, &mut output);
    Ok(())
}

fn manifest() -> Manifest {
    let card = || CardConfig {
        network: NETWORK.into(),
        interface: NetInterface::Pv,
        mac: None,
        bridge: false,
        queues: 1,
    };
    let vm = |role: &str| VmConfig {
        name: role.into(),
        cmdline: alloc::format!("role={role}"),
        cards: vec![card()],
        ..config(GUEST_MODULE)
    };
    let network = NetworkConfig { name: NETWORK.into(), uplink: Uplink::None, on_crash: OnCrash::Report };
    Manifest {
        console: ConsoleMode::Framed,
        when_done: WhenDone::Poweroff,
        trace: None,
        networks: vec![network],
        vms: vec![vm("ask"), vm("answer")],
    }
}
