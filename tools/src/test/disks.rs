//! Disks of a guest in memory: Debian's own drivers on an ext4 file system made on the host.

use super::Test;
use super::guests::verdict;
use super::linux::{boot, check, ended_with};
use super::record::Outcome;
use crate::run::machine::Machine;
use crate::run::outcome::{Report, Verdict};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// What the names of these tests contain.
pub const TOPIC: &str = "/linux-disk";

/// Bytes of a file that the command writes, and reads again when no cache can have it.
const WRITTEN: u32 = 600_000;

/// /dev/vda is writable, /dev/vdb is not.
fn command() -> String {
    format!(
        r#"set -e
mount /dev/vda /mnt
cat /mnt/hello
head -c {WRITTEN} /dev/hwrng > /mnt/new
sum=$(md5sum < /mnt/new)
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount /dev/vda /mnt
[ "$sum" = "$(md5sum < /mnt/new)" ] && echo same
fstrim /mnt && echo trimmed
umount /mnt
cat /sys/block/vda/serial; echo
mount -o ro /dev/vdb /mnt
cat /mnt/hello
umount /mnt
dd if=/dev/zero of=/dev/vdb bs=512 count=1 2>/dev/null || echo read-only"#
    )
}

/// What the command says if all is well.
const EXPECTED: &str = "a file of the host\nsame\ntrimmed\nnacre-disk0\na file of the host\nread-only\n";

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let shows =
        "Debian's drivers mount, write and re-read an ext4 disk, trim it, and cannot write a read-only one";
    vec![Test::on(machine, format!("{}{TOPIC}", machine.name()), shows, move |name| run(machine, name))]
}

fn run(machine: Machine, name: &str) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let image = folder.path().join("ext4.img");
    make_file_system(folder.path(), &image)?;
    let (image, command) = (image.to_string_lossy(), command());
    let (writable, read_only) = (format!("{image},memory"), format!("{image},ro,memory"));
    let words = [
        "--machine",
        machine.name(),
        "--deterministic",
        "--disk",
        &*writable,
        "--disk",
        &*read_only,
        "--exec",
        &*command,
    ];
    let (report, options) = boot(&words, None, name)?;
    Ok(verdict(&report, &options.log, || judge(&report)))
}

/// An ext4 file system of 4 MiB with a file.
pub(super) fn make_file_system(folder: &Path, image: &Path) -> Result<()> {
    let content = folder.join("content");
    std::fs::create_dir(&content).context("cannot make a folder")?;
    workspace::write(&content.join("hello"), b"a file of the host\n")?;
    let output = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&content, image])
        .arg("4M")
        .output()
        .context("cannot start mke2fs")?;
    ensure!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn judge(report: &Report) -> Result<(), String> {
    let stdout = String::from_utf8_lossy(&report.stdout);
    check(stdout == EXPECTED, &format!("the command said {stdout:?}"))?;
    ended_with(report, &Verdict::Command(0))
}
