//! Disks behind driver processes: what a guest writes is in the file, and what becomes of a guest whose disk fails.

use super::Test;
use super::disks::make_file_system;
use super::guests::{planned, verdict};
use super::linux::{boot, check, ended_with};
use super::record::Outcome;
use crate::image::BootImage;
use crate::image::manifest::Plan;
use crate::run::machine::Machine;
use crate::run::outcome::{Report, Verdict};
use crate::run::{self, Options};
use crate::{compile, image, workspace};
use anyhow::{Context, Error, Result};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tproto::disk;
use vmm_protocol::manifest::DiskDriver;

/// How long a test may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// How long a driver may complete nothing, in ms.
const PATIENCE_MS: u32 = 100;
/// What the names of the tests contain that need `qemu-img`.
pub const QCOW2: &str = "/linux-disk-qcow2";
/// Bytes of a file that the guest writes.
const WRITTEN: u32 = 300_000;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let mut tests = Vec::new();
    for driver in machine.disk_drivers() {
        let name = format!("{}/linux-disk-{}", machine.name(), driver.name());
        let shows = "what Debian writes to an ext4 disk of the machine is in the host's file, which is clean";
        tests.push(Test::on(machine, name, shows, move |name| real(machine, *driver, &[], name)));
    }
    if machine == Machine::Svm {
        for (iommu, name) in [("amd", "svm/linux-disk-outside"), ("intel", "svm/linux-disk-outside-intel")] {
            let shows = "a driver that has its device write over the kernel does no harm but to its own guest, which gets no data";
            tests.push(Test::on(machine, name.into(), shows, move |name| outside(machine, iommu, name)));
        }
        let name = "svm/linux-disk-virtio-blk-intel".to_owned();
        let shows = "what Debian writes through Intel's IOMMU to a disk of the machine is in the host's file";
        tests.push(Test::on(machine, name, shows, move |name| {
            real(machine, DiskDriver::VirtioBlk, &["--iommu", "intel"], name)
        }));
        let shows = "what Debian writes to a qcow2 image is in it afterwards, and both it and its file system are clean";
        tests.push(Test::on(machine, format!("{}{QCOW2}", machine.name()), shows, qcow2));
    }
    let name = format!("{}/linux-disk-failures", machine.name());
    let shows = "a disk that fails, or whose driver crashes or hangs, is an I/O error in the guest, and the next driver serves on";
    tests.push(Test::on(machine, name, shows, move |name| failing(machine, name)));
    tests
}

/// Writes, makes durable and reads again, with nothing left in a cache.
fn write_and_read() -> String {
    format!(
        r#"set -e
mount /dev/vda /mnt
cat /mnt/hello
head -c {WRITTEN} /dev/urandom > /mnt/new
md5sum < /mnt/new
sync
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -o ro /dev/vda /mnt
md5sum < /mnt/new
umount /mnt"#
    )
}

fn real(machine: Machine, driver: DiskDriver, more: &[&str], name: &str) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let image = folder.path().join("a, b.img");
    make_file_system(folder.path(), &image)?;
    let disk = format!("{},{}", image.display(), driver.name());
    let command = write_and_read();
    let words = ["--machine", machine.name(), "--deterministic", "--disk", &disk, "--exec", &command];
    let (report, options) = boot(&[&words, more].concat(), None, name)?;
    Ok(verdict(&report, &options.log, || judge_real(&report, &image)))
}

fn qcow2(name: &str) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let [raw, image, after] = ["raw.img", "disk.qcow2", "after.img"].map(|name| folder.path().join(name));
    make_file_system(folder.path(), &raw)?;
    convert((&raw, "raw"), (&image, "qcow2")).map_err(Error::msg)?;
    let (disk, command) = (image.to_string_lossy(), write_and_read());
    let words = ["--machine", "svm", "--deterministic", "--disk", &*disk, "--exec", &command];
    let (report, options) = boot(&words, None, name)?;
    Ok(verdict(&report, &options.log, || {
        qemu_img(&["check", "-q", "-f", "qcow2"], &[&image])?;
        convert((&image, "qcow2"), (&after, "raw"))?;
        judge_real(&report, &after)
    }))
}

/// Makes a disk's image in one format of one in another.
fn convert(from: (&Path, &str), to: (&Path, &str)) -> Result<(), String> {
    qemu_img(&["convert", "-f", from.1, "-O", to.1], &[from.0, to.0])
}

fn qemu_img(options: &[&str], files: &[&Path]) -> Result<(), String> {
    let output = output(Command::new("qemu-img").args(options).args(files))?;
    check(output.status.success(), &format!("qemu-img: {}", String::from_utf8_lossy(&output.stderr)))
}

fn judge_real(report: &Report, image: &Path) -> Result<(), String> {
    let stdout = String::from_utf8_lossy(&report.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    let ["a file of the host", written, read] = lines[..] else {
        return Err(format!("the command said {stdout:?}"));
    };
    check(written == read, &format!("{written} was written, and {read} read"))?;
    ended_with(report, &Verdict::Command(0))?;
    let fsck = output(Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image))?;
    check(fsck.status.success(), &format!("e2fsck: {}", String::from_utf8_lossy(&fsck.stdout)))?;
    let file = output(Command::new("/usr/sbin/debugfs").args(["-R", "cat /new"]).arg(image))?;
    check(file.stdout.len() == WRITTEN as usize, "the file in the image has another length")
}

fn output(command: &mut Command) -> Result<std::process::Output, String> {
    command.output().map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))
}

/// Reads good sectors, one that fails, one at which the driver crashes, and one at which the next driver hangs, and good ones again
/// after each: those wait for the driver that comes.
fn read_around() -> String {
    let fails = disk::FAILS * 512 / 4096;
    let crashes = disk::CRASHES * 512 / 4096;
    let loops = disk::LOOPS * 512 / 4096;
    format!(
        r#"read_block() {{ dd if=/dev/vda of=/dev/null bs=4096 skip=$1 count=1 2>/dev/null && echo good || echo EIO; }}
read_block 0
read_block {fails}
read_block 64
read_block {crashes}
read_block 128
read_block {loops}
read_block 192"#
    )
}

fn failing(machine: Machine, name: &str) -> Result<Outcome> {
    let (report, options, log) = bad(machine, DiskDriver::Ata, &[], &read_around(), name)?;
    Ok(verdict(&report, &options.log, || judge_failing(&report, &log)))
}

/// Runs a command with a disk whose driver is a bad one: how it ended, how it was run, and the log.
fn bad(
    machine: Machine,
    driver: DiskDriver,
    more: &[&str],
    command: &str,
    name: &str,
) -> Result<(Report, Options, String)> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let file = folder.path().join("disk.img");
    workspace::write(&file, vec![0xff; 1 << 20])?;
    let disk = format!("{},{}", file.display(), driver.name());
    let words = ["--machine", machine.name(), "--deterministic", "--disk", &disk, "--exec", command];
    let (mut plan, options) = planned(&[&words, more].concat(), name)?;
    plan.manifest.vms[0].disks[0].timeout_ms = PATIENCE_MS;
    run_with(&plan, options, driver, compile::TEST_DRIVER)
}

/// Runs a plan with another program in place of a driver: how it ended, how it was run, and the log.
pub(super) fn run_with(
    plan: &Plan,
    options: Options,
    driver: DiskDriver,
    program: &str,
) -> Result<(Report, Options, String)> {
    let module = driver.module().context("the disk has no driver process")?;
    run_with_module(plan, Options { timeout: Some(TIME_LIMIT), ..options }, module, program)
}

/// Runs a plan with another program in place of a module: how it ended, how it was run, and the log.
pub(super) fn run_with_module(
    plan: &Plan,
    options: Options,
    name: &str,
    program: &str,
) -> Result<(Report, Options, String)> {
    let mut boot = BootImage::collect(plan, &options.kernel_cmdline)?;
    let program = image::elf::loadable(&workspace::bare_binary(program))?;
    let module = boot.modules.iter_mut().find(|module| module.name == name);
    module.context("the image has no such module")?.bytes = program;
    options.machine.prepare()?;
    let report = run::boot(&boot, plan, &options)?;
    let log = String::from_utf8_lossy(&workspace::read(&options.log)?).into_owned();
    Ok((report, options, log))
}

fn outside(machine: Machine, iommu: &str, name: &str) -> Result<Outcome> {
    // Bytes that are not 0, of a disk without any that are. QEMU's device takes a write that was refused for done.
    let command = r"dd if=/dev/vda bs=4096 count=1 2>/dev/null | tr -d '\0' | wc -c; echo alive";
    let (report, options, log) = bad(machine, DiskDriver::VirtioBlk, &["--iommu", iommu], command, name)?;
    Ok(verdict(&report, &options.log, || {
        let stdout = String::from_utf8_lossy(&report.stdout);
        check(stdout == "0\nalive\n", &format!("the command said {stdout:?}"))?;
        ended_with(&report, &Verdict::Command(0))?;
        // AMD's in QEMU before 10.1 logs no events.
        let is_reported = iommu == "amd" || log.contains("iommu: device 00:08.0 was refused a write to 0x2");
        check(is_reported, "the log does not say what the device tried")
    }))
}

fn judge_failing(report: &Report, log: &str) -> Result<(), String> {
    let stdout = String::from_utf8_lossy(&report.stdout);
    check(stdout == "good\nEIO\ngood\nEIO\ngood\nEIO\ngood\n", &format!("the command said {stdout:?}"))?;
    ended_with(report, &Verdict::Command(0))?;
    let lines = [
        "linux.disk0: its driver crashed",
        "linux.disk0: driver number 2",
        "linux.disk0: its driver is stuck: it completed nothing for 100 ms",
        "linux.disk0: driver number 3",
    ];
    for line in lines {
        check(log.contains(line), &format!("the log does not say {line:?}"))?;
    }
    Ok(())
}
