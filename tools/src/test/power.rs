//! Power failures: what a completed flush covered is on the disk, whatever else is lost.
//!
//! Twice, as ending an emulator proves nothing. A driver of our own has a volatile cache in front of the machine's disk, and cuts its
//! power (`tests/power`). And QEMU logs what reaches the disk of the real driver, and when it was told to flush; the log is played back
//! up to each flush, once with everything before it, and once with a part of what was written since the flush before it.

use super::Test;
use super::disks::make_file_system;
use super::drivers::run_with;
use super::guests::{planned, verdict};
use super::linux::{check, ended_with};
use super::record::Outcome;
use crate::replay::{self, Moment, Replay};
use crate::run::machine::Machine;
use crate::run::outcome::{Report, Verdict};
use crate::run::{self, Options};
use crate::{compile, workspace};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use tproto::power;
use vmm_protocol::manifest::DiskDriver;

const TIME_LIMIT: Duration = Duration::from_secs(600);
/// Bytes of a file that the guest writes.
const FILE_BYTES: usize = 12_000;
/// How often the disk loses its power.
const ROUNDS: u32 = 4;
/// Files that the guest writes while QEMU logs.
const FILES: u32 = 12;
/// What all chance in these tests comes from.
const SEED: u64 = 4;
/// Bytes behind the file system: a page of Linux's, of which the last sector is special.
const TAIL_BYTES: u64 = 4096;

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let shows = "a disk that loses power again and again, and what was not flushed, never loses what Debian had synced";
    let name = format!("{}/linux-disk-power", machine.name());
    let mut tests = vec![Test::on(machine, name, shows, move |name| cut(machine, name))];
    if machine == Machine::Svm {
        let shows = "a virtio disk is told to flush what Debian syncs: at each flush the journal recovers and nothing synced is lost";
        tests.push(Test::on(machine, "svm/linux-disk-replay".into(), shows, replay));
    }
    tests
}

/// What the file with this number contains.
fn content(number: u32) -> Vec<u8> {
    format!("file {number}\n").into_bytes().into_iter().cycle().take(FILE_BYTES).collect()
}

/// The shell's function of that name.
fn define_content() -> String {
    format!("content() {{ yes \"file $1\" | head -c {FILE_BYTES}; }}\n")
}

/// A file system of 4 MiB and, behind it, a page with `last` as its last sector. Returns the number of that sector.
fn make_disk(folder: &Path, image: &Path, last: &[u8; 512]) -> Result<u64> {
    make_file_system(folder, image)?;
    let mut bytes = workspace::read(image)?;
    bytes.resize(bytes.len() + TAIL_BYTES as usize - last.len(), 0);
    let sector = bytes.len() as u64 / 512;
    bytes.extend(last);
    workspace::write(image, bytes)?;
    Ok(sector)
}

/// Writes and syncs one file after the other until the disk's power fails; then, with power again, looks whether all are there.
fn write_until_cut(switch: u64) -> String {
    let content = define_content();
    format!(
        r#"{content}exec 2>/dev/null
synced=0
for round in $(seq {ROUNDS}); do
    [ $round = 1 ] || dd if=/dev/vda of=/dev/null bs=512 skip={switch} count=1
    if mount /dev/vda /mnt; then
        for file in $(seq $synced); do
            content $file | cmp -s - /mnt/$file || echo lost $file
        done
        while content $((synced + 1)) | dd of=/mnt/$((synced + 1)) bs=4096 conv=fsync; do
            synced=$((synced + 1))
        done
        umount /mnt
    fi
done
echo synced $synced"#
    )
}

fn cut(machine: Machine, name: &str) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let image = folder.path().join("disk.img");
    let switch = make_disk(folder.path(), &image, &power::last_sector(SEED))?;
    let disk = format!("{},ata", image.display());
    let command = write_until_cut(switch);
    let words = ["--machine", machine.name(), "--disk", &disk, "--exec", &command];
    // With QEMU's clock of instructions, time flies while a drive flushes to a slow disk of this computer's, and its driver gives up.
    let clock: &[&str] = if machine.is_bochs() { &["--deterministic"] } else { &[] };
    let (plan, options) = planned(&[&words, clock].concat(), name)?;
    let (report, options, log) = run_with(&plan, options, DiskDriver::Ata, compile::TEST_POWER)?;
    Ok(verdict(&report, &options.log, || judge_cut(&report, &log, &image)))
}

fn judge_cut(report: &Report, log: &str, image: &Path) -> Result<(), String> {
    ended_with(report, &Verdict::Command(0))?;
    let stdout = String::from_utf8_lossy(&report.stdout);
    let synced = stdout.strip_prefix("synced ").and_then(|number| number.trim_end().parse().ok());
    let synced: u32 = synced.ok_or_else(|| format!("the command said {stdout:?}"))?;
    check(synced >= ROUNDS, &format!("{synced} files were synced in {ROUNDS} rounds"))?;
    let cuts = log.lines().filter(|line| line.contains("the power fails")).count();
    check(cuts == ROUNDS as usize, &format!("the power failed {cuts} times"))?;
    look_into(image, synced, "at the end")
}

/// Writes and syncs files, and notes behind the file system how many.
fn write_and_note(note: u64) -> String {
    let content = define_content();
    format!(
        r#"{content}set -e
mount /dev/vda /mnt
for file in $(seq {FILES}); do
    content $file | dd of=/mnt/$file bs=4096 conv=fsync 2>/dev/null
    content $((file + 100)) > /mnt/tmp
    rm -f /mnt/old; mv /mnt/tmp /mnt/old
    echo $file | dd of=/dev/vda bs=512 seek={note} conv=notrunc,fsync 2>/dev/null
done
umount /mnt
echo done"#
    )
}

fn replay(name: &str) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let (image, log) = (folder.path().join("disk.img"), folder.path().join("log"));
    let note = make_disk(folder.path(), &image, &[0; 512])?;
    let before = workspace::read(&image)?;
    let disk = format!("{},virtio-blk", image.display());
    let command = write_and_note(note);
    let words = ["--machine", "svm", "--disk", &disk, "--exec", &command];
    let (plan, options) = planned(&words, name)?;
    let options = Options { timeout: Some(TIME_LIMIT), write_log: Some(log.clone()), ..options };
    let report = run::run(&plan, &options)?;
    Ok(verdict(&report, &options.log, || {
        ended_with(&report, &Verdict::Command(0))?;
        judge_log(before, &log, folder.path()).map_err(|error| format!("{error:#}"))
    }))
}

/// Looks at the disk as it was at each flush.
fn judge_log(before: Vec<u8>, log: &Path, folder: &Path) -> Result<()> {
    let log = workspace::read(log)?;
    let entries = replay::parse(&log)?;
    let image = folder.join("moment.img");
    let mut chance = SEED;
    let mut toss = || {
        // The high bits of Knuth's generator.
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chance >> 63 == 0
    };
    let mut replay = Replay::new(before, &entries);
    let (mut flushes, mut noted) = (0, 0);
    while let Some(Moment { flushed, torn }) = replay.next_flush(&mut toss) {
        flushes += 1;
        for (disk, what) in [(&torn, "before"), (&flushed, "at")] {
            noted = note_on(disk);
            workspace::write(&image, disk)?;
            look_into(&image, noted, &format!("{what} flush {flushes}")).map_err(anyhow::Error::msg)?;
        }
    }
    ensure!(noted == FILES, "at the last flush, {noted} files of {FILES} were noted");
    // Each sync is at least one of the journal's commits, with a flush before and one behind its last sector.
    ensure!(flushes >= 2 * FILES, "the disk was told to flush {flushes} times only");
    Ok(())
}

/// How many files were synced, as the guest noted in the last sector.
fn note_on(disk: &[u8]) -> u32 {
    let sector = &disk[disk.len() - 512..];
    let digits = sector.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| 10 * number + u32::from(digit - b'0'))
}

/// Recovers the file system, and looks whether it is whole, and the first `synced` files too.
fn look_into(image: &Path, synced: u32, when: &str) -> Result<(), String> {
    // The journal, and files that were deleted while they were open, as at boot.
    let recovery = e2fsck("-p", image)?;
    let is_recovered = matches!(recovery.status.code(), Some(0 | 1));
    check(is_recovered, &format!("{when}: recovery: {}", String::from_utf8_lossy(&recovery.stdout)))?;
    let fsck = e2fsck("-fn", image)?;
    check(fsck.status.success(), &format!("{when}: e2fsck: {}", String::from_utf8_lossy(&fsck.stdout)))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = |number: u32| folder.path().join(number.to_string());
    let script: String =
        (1..=synced).map(|number| format!("dump {number} {}\n", path(number).display())).collect();
    let commands = folder.path().join("commands");
    workspace::write(&commands, script).map_err(|error| error.to_string())?;
    output(Command::new("/usr/sbin/debugfs").arg("-f").arg(&commands).arg(image))?;
    for number in 1..=synced {
        let is_there = std::fs::read(path(number)).is_ok_and(|bytes| bytes == content(number));
        check(is_there, &format!("{when}: file {number} of {synced} that were synced is not whole"))?;
    }
    Ok(())
}

fn e2fsck(option: &str, image: &Path) -> Result<Output, String> {
    output(Command::new("/usr/sbin/e2fsck").arg(option).arg(image))
}

fn output(command: &mut Command) -> Result<Output, String> {
    command.output().map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))
}
