//! What this machine must have, and getting it.

use crate::{compile, failure, progress};
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Something from a Debian package, known by a file it installs.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The package.
    pub package: &'static str,
    /// A file of it.
    pub file: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

const fn need(package: &'static str, file: &'static str, purpose: &'static str) -> Need {
    Need { package, file, purpose }
}

/// For machines `svm` and `kvm`.
pub const QEMU: &[Need] =
    &[need("qemu-system-x86", "/usr/bin/qemu-system-x86_64", "the AMD-V machine and KVM")];
/// For bootable images.
pub const IMAGE: &[Need] = &[
    need("grub-common", "/usr/bin/grub-mkrescue", "making bootable images"),
    need("grub-pc-bin", "/usr/lib/grub/i386-pc/multiboot2.mod", "booting by BIOS"),
    need("xorriso", "/usr/bin/xorriso", "making bootable images"),
];
/// For testing disks.
pub const DISK: &[Need] = &[need("e2fsprogs", "/usr/sbin/mke2fs", "testing guests' disks")];
/// For testing qcow2 disks.
pub const QCOW2: &[Need] = &[need("qemu-utils", "/usr/bin/qemu-img", "testing qcow2 disks")];
/// For debugging guests, and testing that.
pub const GDB: &[Need] = &[need("gdb", "/usr/bin/gdb", "debugging guests")];
/// For images that boot by UEFI.
pub const UEFI_IMAGE: &[Need] = &[
    need("grub-efi-amd64-bin", "/usr/lib/grub/x86_64-efi/multiboot2.mod", "booting by UEFI"),
    need("mtools", "/usr/bin/mformat", "making images that boot by UEFI"),
];
/// For machines `vtx` and `svm-bochs`.
pub const BOCHS: &[Need] = &[
    need("bochs", "/usr/bin/bochs", "the VT-x machine"),
    need(
        "bochs-term",
        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
        "running Bochs without a window",
    ),
    need("bochsbios", "/usr/share/bochs/BIOS-bochs-latest", "booting Bochs"),
    need("vgabios", "/usr/share/bochs/VGABIOS-lgpl-latest", "booting Bochs"),
];
/// For testing UEFI boot.
pub const OVMF: &[Need] = &[need("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", "testing boot by UEFI")];

impl Need {
    /// Whether the package's file is there.
    pub fn is_met(&self) -> bool {
        Path::new(self.file).exists()
    }
}

/// Installs the packages that are missing of `needs`: with apt-get when root, else by telling the user the line to run.
pub fn packages(needs: &[&[Need]]) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .flat_map(|group| group.iter())
        .filter(|need| !need.is_met())
        .map(|need| need.package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --no-install-recommends -y {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        return Err(failure::setup(format!("missing: {}. Run: sudo {line}", missing.join(", "))));
    }
    progress::step(format_args!("installing {}…", missing.join(", ")));
    // Package lists that were never fetched, or are older than the mirror, need an update first.
    if !apt_install(&missing)? {
        apt(["update", "-q"])?;
        if !apt_install(&missing)? {
            return Err(failure::setup(format!(
                "apt-get cannot install {}. Check the network and the package sources, then run: {line}",
                missing.join(", ")
            )));
        }
    }
    match needs.iter().flat_map(|group| group.iter()).find(|need| !need.is_met()) {
        None => Ok(()),
        Some(need) => Err(failure::setup(format!(
            "package {} is installed but {} is not there; Nacre supports Debian 12's packages",
            need.package, need.file
        ))),
    }
}

fn apt_install(packages: &[&str]) -> Result<bool> {
    apt(["install", "--no-install-recommends", "-y", "-q"].iter().chain(packages))
}

/// Runs apt-get without questions; its output goes to stderr, which is where progress belongs.
pub fn apt(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<bool> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .map_err(|error| {
            failure::setup(format!("cannot start apt-get ({error}); set-up needs a Debian system"))
        })?;
    Ok(status.success())
}

/// Makes sure that the compiler can build for the bare target.
pub fn rust_target() -> Result<()> {
    if has_rust_target()? {
        return Ok(());
    }
    progress::step(format_args!("adding the Rust target {}…", compile::BARE_TARGET));
    let added = Command::new("rustup")
        .args(["target", "add", compile::BARE_TARGET])
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status();
    if added.is_ok_and(|status| status.success()) && has_rust_target()? {
        return Ok(());
    }
    Err(failure::setup(format!(
        "the Rust target {0} is missing. Run, with a network: rustup target add {0}",
        compile::BARE_TARGET
    )))
}

/// Whether the compiler's libraries for the bare target are there.
pub fn has_rust_target() -> Result<bool> {
    let output = compile::rustc()
        .args(["--print", "target-libdir", "--target", compile::BARE_TARGET])
        .output()
        .context("cannot start rustc")?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Ok(false);
    };
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
}

/// Makes sure that rustfmt and clippy are there.
pub fn rust_components() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let is_there = || {
            compile::cargo()
                .args([subcommand, "--version"])
                .output()
                .is_ok_and(|output| output.status.success())
        };
        if is_there() {
            continue;
        }
        progress::step(format_args!("adding the Rust component {component}…"));
        let added =
            Command::new("rustup").args(["component", "add", component]).stdout(std::io::stderr()).status();
        if !(added.is_ok_and(|status| status.success()) && is_there()) {
            return Err(failure::setup(format!(
                "{component} is missing. Run, with a network: rustup component add {component}"
            )));
        }
    }
    Ok(())
}
