//! Images for real machines, booted by both kinds of firmware.

use super::Test;
use super::guests::{planned, verdict};
use super::record::Outcome;
use crate::image::BootImage;
use crate::image::iso::{self, Firmware};
use crate::run::link::Listener;
use crate::run::machine::Machine;
use crate::run::outcome::Verdict;
use crate::run::{self, Options, bochs, qemu};
use crate::setup;
use anyhow::{Context, Result};
use std::time::Duration;
use tproto::exit;

/// What the names of these tests contain.
pub const TOPIC: &str = "/image";

/// How long a boot may take on a loaded machine; UEFI firmware takes long in an emulator.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let test = |firmware: &str, shows: &str, is_uefi: bool| {
        let name = format!("{}{TOPIC}-{firmware}", machine.name());
        Test::on(machine, name, shows, move |name| run(machine, is_uefi, name))
    };
    let bios = test("bios", "an image boots by BIOS", false);
    if machine.is_bochs() { vec![bios] } else { vec![bios, test("uefi", "an image boots by UEFI", true)] }
}

fn run(machine: Machine, is_uefi: bool, name: &str) -> Result<Outcome> {
    let (plan, options) = planned(&["--machine", machine.name(), "--guest", "hello"], name)?;
    let options = Options { timeout: Some(TIME_LIMIT), ..options };
    let image = BootImage::collect(&plan, &options.kernel_cmdline)?;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    iso::make(&image, Firmware::BiosAndUefi, folder.path(), &folder.path().join(iso::FILE))?;
    let (command, listener) = if machine.is_bochs() {
        let listener = Listener::tcp()?;
        (bochs::command(&options, &[], &[], folder.path(), listener.port())?, listener)
    } else {
        let firmware = is_uefi.then_some(setup::OVMF[0].file);
        (qemu::iso_command(&options, firmware), Listener::unix(&folder.path().join(qemu::LINK_SOCKET))?)
    };
    let report = run::run_machine(command, listener, folder.path(), &plan, &options)?;
    Ok(verdict(&report, &options.log, || {
        let passed = Verdict::ExitCode(exit::PASS);
        if report.verdict == passed {
            Ok(())
        } else {
            Err(format!("the run ended with {:?}", report.verdict))
        }
    }))
}
