//! The unikernel: what is on its disk is served, to another VM and to the host.

use super::Test;
use super::guests::{self, judge_end, passed, system, verdict, vm};
use super::linux::check;
use super::record::Outcome as Verdict;
use super::uplinks::fetch;
use crate::image::manifest;
use crate::run::machine::Machine;
use crate::run::outcome::Report;
use crate::run::{self, Options};
use crate::{compile, request, workspace};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tproto::web;
use vmm_protocol::manifest::{
    CardConfig, DEFAULT_TIMEOUT_MS, DiskConfig, DiskDriver, DiskInterface, NetInterface, NetworkConfig,
    OnCrash, Uplink, VmConfig,
};
use vmm_protocol::outcome::Outcome;

/// How long a test may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Memory of a VM in MiB.
const MEMORY_MIB: u32 = 16;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let test = |topic, shows, run: fn(Machine, &str) -> Result<Verdict>| {
        Test::on(machine, format!("{}/{topic}", machine.name()), shows, move |name| run(machine, name))
    };
    vec![
        test(
            "unikernel+fetch",
            "a unikernel serves files from its paravirtual disk to another VM over a paravirtual network",
            between_vms,
        ),
        test(
            "unikernel-publish",
            "a unikernel gets an address by DHCP, and serves its page to this computer by --publish",
            to_host,
        ),
    ]
}

fn to_host(machine: Machine, name: &str) -> Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let kernel = workspace::bare_binary(compile::UNIKERNEL).display().to_string();
    let disk = format!("{},ro,pv", site(folder.path())?.display());
    let port = guests::free_port()?;
    let publish = format!("{port}:80");
    let words = [
        &["--machine", machine.name(), "--kernel", &kernel, "--cmdline", "clients=1", "--disk", &disk][..],
        &["--net", "user,pv", "--publish", &publish],
    ]
    .concat();
    let (plan, options) = guests::planned(&words, name)?;
    let options = Options { timeout: Some(TIME_LIMIT), ..options };
    let client = thread::spawn(move || fetch_in_time(port));
    let report = run::run(&plan, &options)?;
    let page = client.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?;
    Ok(verdict(&report, &options.log, || {
        check(page == web::PAGE.as_bytes(), "this computer did not get the page")?;
        judge_end(report.vms.first().ok_or("there was no VM")?, &Outcome::PoweredOff)
    }))
}

/// What is served at a port, as soon as it is; nothing if that takes too long.
fn fetch_in_time(port: u16) -> Vec<u8> {
    let end = Instant::now() + TIME_LIMIT;
    while Instant::now() < end {
        match fetch(port) {
            Ok(page) if !page.is_empty() => return page,
            // The emulator has not opened the port, or the guest has no network yet.
            _ => thread::sleep(Duration::from_millis(200)),
        }
    }
    Vec::new()
}

fn between_vms(machine: Machine, name: &str) -> Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let card = CardConfig {
        network: "lan".into(),
        interface: NetInterface::Pv,
        mac: None,
        bridge: false,
        queues: 1,
    };
    let disk = DiskConfig {
        image: site(folder.path())?.display().to_string(),
        read_only: true,
        driver: DiskDriver::Memory,
        on_crash: OnCrash::Report,
        timeout_ms: DEFAULT_TIMEOUT_MS,
        interface: DiskInterface::Pv,
        queues: 1,
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
