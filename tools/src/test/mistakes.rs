//! What a user can get wrong: each mistake gets one clear line and an exit code, and nothing hangs.

use super::Test;
use super::record::Outcome;
use crate::failure::Kind;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A mistake.
struct Case {
    name: &'static str,
    shows: &'static str,
    /// The options; `DIR/` stands for a folder with [`FILES`].
    options: &'static [&'static str],
    code: u8,
    /// What the message has to contain.
    says: &'static str,
}

/// As long as a disk of one sector.
const SECTORS: &str = match std::str::from_utf8(&[b'.'; 512]) {
    Ok(text) => text,
    Err(_) => "",
};

/// Files that are wrong.
const FILES: &[(&str, &str)] = &[
    ("text", "this is no kernel\n"),
    ("empty", ""),
    ("sectors", SECTORS),
    ("cut.elf", "\x7fELF\x02\x01\x01"),
    ("key.toml", "[[vm]]\nname = 'a'\nkernel = 'text'\nmemory_mib = 16\ncolour = 'blue'\n"),
    ("kernel.toml", "[[vm]]\nname = 'a'\nkernel = 'text'\nmemory_mib = 16\n"),
    ("missing.toml", "[[vm]]\nname = 'a'\nkernel = 'nonexistent'\nmemory_mib = 16\n"),
    (
        "twice.toml",
        "[[vm]]\nname = 'a'\nkernel = 'text'\nmemory_mib = 16\n[[vm]]\nname = 'a'\nkernel = 'text'\nmemory_mib = 16\n",
    ),
    ("big.toml", "[[vm]]\nname = 'a'\nkernel = 'text'\nmemory_mib = 99999999\n"),
];

const USAGE: u8 = Kind::Usage.code();

const fn case(
    name: &'static str,
    shows: &'static str,
    options: &'static [&'static str],
    says: &'static str,
) -> Case {
    Case { name, shows, options, code: USAGE, says }
}

const CASES: &[Case] = &[
    case("option", "an unknown option is named", &["run", "--colour"], "--colour"),
    case("machine", "an unknown machine is named", &["run", "--machine", "pdp11"], "pdp11"),
    case(
        "guest",
        "an unknown guest is named, and the known ones",
        &["run", "--guest", "nonexistent"],
        "hello",
    ),
    case("no-kernel", "a missing kernel is named", &["run", "--kernel", "DIR/nonexistent"], "nonexistent"),
    case(
        "foreign-kernel",
        "a file that is no kernel is refused",
        &["run", "--kernel", "DIR/text"],
        "not a kernel",
    ),
    case("empty-kernel", "an empty kernel is refused", &["run", "--kernel", "DIR/empty"], "empty"),
    case("damaged-kernel", "a damaged kernel is refused", &["run", "--kernel", "DIR/cut.elf"], "damaged"),
    case(
        "no-initrd",
        "a missing initrd is named",
        &["run", "--guest", "hello", "--initrd", "DIR/nonexistent"],
        "nonexistent",
    ),
    case(
        "no-disk",
        "a missing disk is named",
        &["run", "--guest", "hello", "--disk", "DIR/nonexistent,ro"],
        "nonexistent",
    ),
    case(
        "odd-disk",
        "a disk that is no whole number of sectors is refused",
        &["run", "--guest", "hello", "--disk", "DIR/text"],
        "sectors",
    ),
    case(
        "machines-disk",
        "a disk that the machine cannot have is refused",
        &["run", "--machine", "vtx", "--guest", "hello", "--disk", "DIR/sectors,virtio-blk"],
        "ata",
    ),
    case(
        "machines-card",
        "a network card that the machine cannot have is refused",
        &["run", "--machine", "vtx", "--guest", "hello", "--net", "user,virtio-net"],
        "ne2000",
    ),
    case(
        "vsock-host",
        "a context id that no VM can have is refused",
        &["run", "--guest", "hello", "--vsock=2"],
        "not in 3..=4294967294",
    ),
    case(
        "publish-nowhere",
        "a published port without a network is refused",
        &["run", "--guest", "hello", "--net", "none", "--publish", "8080:80"],
        "--net user",
    ),
    case(
        "publish-ports",
        "a published port that is none is refused",
        &["run", "--guest", "hello", "--publish", "0:80"],
        "8080:80",
    ),
    case(
        "shared-disk",
        "a file that would be written as two disks is refused",
        &["run", "--machine", "vtx", "--guest", "hello", "--disk", "DIR/sectors", "--disk", "DIR/sectors"],
        "twice",
    ),
    case(
        "exec",
        "a command without Linux is refused",
        &["run", "--guest", "hello", "--exec", "true"],
        "--exec",
    ),
    case(
        "memory",
        "more memory than there is is refused",
        &["run", "--guest", "hello", "--memory", "9999"],
        "--host-memory",
    ),
    case(
        "manifest-missing",
        "a missing manifest is named",
        &["run", "--manifest", "DIR/nonexistent.toml"],
        "nonexistent.toml",
    ),
    case(
        "manifest-key",
        "an unknown key is named with its line",
        &["run", "--manifest", "DIR/key.toml"],
        "line 5",
    ),
    case(
        "manifest-name",
        "two VMs of one name are refused",
        &["run", "--manifest", "DIR/twice.toml"],
        "two VMs",
    ),
    case(
        "manifest-size",
        "an impossible size is refused",
        &["run", "--manifest", "DIR/big.toml"],
        "out of range",
    ),
    case(
        "manifest-file",
        "a file that a manifest lacks is named",
        &["run", "--manifest", "DIR/missing.toml"],
        "nonexistent",
    ),
    case(
        "manifest-kernel",
        "a manifest's file that is no kernel is refused",
        &["run", "--manifest", "DIR/kernel.toml"],
        "not a kernel",
    ),
];

/// The tests.
pub fn tests() -> Vec<Test> {
    CASES
        .iter()
        .map(|case| Test {
            name: format!("mistake/{}", case.name),
            shows: case.shows.into(),
            machine: None,
            run: Box::new(move || run(case)),
        })
        .collect()
}

fn run(case: &Case) -> Result<Outcome> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    for (name, content) in FILES {
        fs::write(folder.path().join(name), content).with_context(|| format!("cannot write {name}"))?;
    }
    let output = Command::new(std::env::current_exe().context("cannot find this program")?)
        .args(case.options.iter().map(|option| in_folder(option, folder.path())))
        .stdin(Stdio::null())
        .output()
        .context("cannot start this program")?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() != Some(i32::from(case.code)) {
        return Ok(Outcome::Failed(format!("{}, not {}: {message}", output.status, case.code)));
    }
    if !message.contains(case.says) {
        return Ok(Outcome::Failed(format!("the message lacks {:?}: {message}", case.says)));
    }
    Ok(Outcome::Passed)
}

fn in_folder(option: &str, folder: &Path) -> String {
    option.replace("DIR", &folder.to_string_lossy())
}
