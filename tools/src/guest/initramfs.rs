//! The initial file system: busybox, and an agent that runs one command.
//!
//! The agent lives under `/nacre` and brings its own shell, so that it can be appended to any initial file system.

use super::modules::Module;
use crate::{compile, workspace};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// The agent: first process of the guest.
const INIT: &str = include_str!("init.sh");

/// What the command line needs for the agent to run.
pub const RDINIT: &str = "rdinit=/nacre/init";

/// What the agent calls with a network card's address.
const DHCP_SCRIPT: &str = include_str!("dhcp.sh");

/// What goes into the archive, beside the agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Content<'a> {
    /// The modules that it loads first, in that order.
    pub modules: &'a [Module],
    /// The network cards for which it then asks for an address.
    pub dhcp: &'a [String],
    /// The command that it runs.
    pub exec: Option<&'a str>,
    /// The usual folders and busybox's commands: a file system of our own.
    pub is_whole: bool,
}

/// Builds the archive.
pub fn build(busybox: &Path, content: Content<'_>) -> Result<Vec<u8>> {
    let Content { modules, dhcp, exec, is_whole } = content;
    let mut archive = Archive::default();
    archive.directory("nacre");
    archive.file("nacre/init", 0o755, INIT.as_bytes());
    archive.file("nacre/busybox", 0o755, &workspace::read(busybox)?);
    if !modules.is_empty() {
        archive.directory("nacre/modules");
    }
    for (index, module) in modules.iter().enumerate() {
        // The agent takes them by name.
        archive.file(&format!("nacre/modules/{index:02}-{}.ko", module.name), 0o644, &module.bytes);
    }
    if !dhcp.is_empty() {
        archive.file("nacre/dhcp.sh", 0o755, DHCP_SCRIPT.as_bytes());
        archive.file("nacre/dhcp", 0o644, dhcp.join(" ").as_bytes());
    }
    if let Some(command) = exec {
        archive.file("nacre/exec", 0o644, command.as_bytes());
    }
    if is_whole {
        add_system(&mut archive, &applets(busybox)?);
    }
    Ok(archive.finish())
}

/// Adds the program that connects to sockets, `vsock`, to a whole file system. It is built first.
pub fn with_vsock(archive: Vec<u8>) -> Result<Vec<u8>> {
    let program = compile::linux_program("guest-vsock", "vsock")?;
    Ok([archive, with_program("bin/vsock", &program)].concat())
}

/// An archive with one file, in a folder.
pub fn with_file(path: &str, content: &[u8]) -> Vec<u8> {
    with_one(path, 0o644, content)
}

/// An archive with one program, in a folder.
pub fn with_program(path: &str, content: &[u8]) -> Vec<u8> {
    with_one(path, 0o755, content)
}

fn with_one(path: &str, permissions: u32, content: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    if let Some((folder, _)) = path.rsplit_once('/') {
        archive.directory(folder);
    }
    archive.file(path, permissions, content);
    archive.finish()
}

fn add_system(archive: &mut Archive, applets: &[String]) {
    for folder in ["bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp"] {
        archive.directory(folder);
    }
    archive.symlink("sbin", "bin");
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    for applet in applets {
        archive.symlink(&format!("bin/{applet}"), "/nacre/busybox");
    }
}

/// The commands that busybox has.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", busybox.display()))?;
    ensure!(output.status.success(), "{} --list failed", busybox.display());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Writer of cpio archives in the `newc` format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
/// Times and owners are zero, so that equal content makes equal archives.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, S_IFDIR | 0o755, b"");
    }

    fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, S_IFREG | permissions, content);
    }

    fn symlink(&mut self, name: &str, target: &str) {
        self.entry(name, S_IFLNK | 0o777, target.as_bytes());
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Inode, mode, uid, gid, links, mtime, file size, device (major, minor), special device (major, minor), name size
        // with its zero, checksum.
        let fields =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn cpio_unpacks_what_was_packed() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/f", 0o640, b"hello");
        archive.symlink("l", "d/f");
        let bytes = archive.finish();
        let folder = tempfile::tempdir().unwrap();
        let Ok(mut cpio) =
            Command::new("cpio").args(["-i", "--quiet"]).current_dir(&folder).stdin(Stdio::piped()).spawn()
        else {
            return; // no cpio on this machine
        };
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(cpio.wait().unwrap().success());
        assert_eq!(std::fs::read(folder.path().join("d/f")).unwrap(), b"hello");
        assert_eq!(std::fs::read_link(folder.path().join("l")).unwrap(), Path::new("d/f"));
    }

    #[test]
    fn entries_are_aligned_and_the_trailer_is_last() {
        let mut archive = Archive::default();
        archive.file("abc", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
