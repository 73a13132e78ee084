//! The unikernel: what is on its disk is served, to another VM and to the host.

use super::Test;
use super::guests::{self, judge_end, passed, system, verdict, vm};
use super::record::Outcome as Verdict;
use crate::image::manifest;
use crate::run;
use crate::run::machine::Machine;
use crate::run::outcome::Report;
use crate::{compile, request, workspace};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tproto::web;
use vmm_protocol::manifest::{
    CardConfig, DiskConfig, DiskDriver, DiskInterface, NetInterface, NetworkConfig, OnCrash, Uplink, VmConfig,
};
use vmm_protocol::outcome::Outcome;

/// How long a test may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Memory of a VM in MiB.
const MEMORY_MIB: u32 = 16;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    vec![Test::on(
        machine,
        format!("{}/unikernel+fetch", machine.name()),
        "a unikernel serves files from its paravirtual disk to another VM over a paravirtual network",
        move |name| between_vms(machine, name),
    )]
}

fn between_vms(machine: Machine, name: &str) -> Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let card = CardConfig { network: "lan".into(), interface: NetInterface::Pv, mac: None, bridge: false };
    let disk = DiskConfig {
        image: site(folder.path())?.display().to_string(),
        read_only: true,
        driver: DiskDriver::Memory,
        on_crash: OnCrash::Report,
        interface: DiskInterface::Pv,
    };
    let server = VmConfig {
        kernel: workspace::bare_binary(compile::UNIKERNEL).display().to_string(),
        disks: vec![disk],
        cards: vec![card.clone()],
        ..vm("server", "", "ip=10.0.0.1/24 clients=3", MEMORY_MIB)
    };
    let client =
        VmConfig { cards: vec![card], ..vm("client", "fetch", "ip=10.0.0.2/24 server=10.0.0.1", MEMORY_MIB) };
    let lan = NetworkConfig { name: "lan".into(), uplink: Uplink::None, on_crash: OnCrash::Report };
    let manifest = system(vec![lan], vec![server, client]);
    let args = request::parse(&["--machine", machine.name(), "--deterministic"])?;
    let plan = manifest::resolve(manifest, Path::new(""), request::host(&args))?;
    let options = guests::options(&args, name, TIME_LIMIT)?;
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || judge(&report)))
}

fn judge(report: &Report) -> Result<(), String> {
    let [server, client] = &report.vms[..] else {
        return Err("there were not two VMs".into());
    };
    passed(client)?;
    judge_end(server, &Outcome::PoweredOff)
}

/// A disk with what [`web`] says, made by the tar of this host.
fn site(folder: &Path) -> Result<PathBuf> {
    let (files, image) = (folder.join("site"), folder.join("site.tar"));
    let large: Vec<u8> = (0..web::LARGE_BYTES).map(web::large).collect();
    for (name, content) in [("index.html", web::PAGE.as_bytes()), (web::LARGE, &large)] {
        let path = files.join(name);
        path.parent().map_or(Ok(()), std::fs::create_dir_all).context("cannot make a folder")?;
        workspace::write(&path, content)?;
    }
    let status = Command::new("tar").arg("-cf").arg(&image).arg("-C").arg(&files).arg(".").status();
    ensure!(status.context("cannot start tar")?.success(), "tar made no archive");
    Ok(image)
}
