//! Debian's cloud kernel and static busybox: fetched with apt-get, which verifies them, and kept in the target folder.

use super::modules::{self, Module};
use crate::{failure, progress, setup, workspace};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package that depends on the newest cloud kernel.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// A guest Linux.
#[derive(Clone, Debug)]
pub struct Linux {
    /// Debian's bzImage.
    pub kernel: PathBuf,
    /// The static busybox executable.
    pub busybox: PathBuf,
    /// Folder with the kernel's modules that are kept: [`modules::DRIVERS`] and what they need.
    pub modules: PathBuf,
    /// Packages and versions.
    pub versions: Vec<Fetched>,
}

/// A package that was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Its name.
    pub package: String,
    /// Its version.
    pub version: String,
}

impl Linux {
    /// The modules of its kernel that drive `devices` (some of [`modules::DRIVERS`]), in the order in which they load.
    pub fn drivers(&self, devices: &[&str]) -> Result<Vec<Module>> {
        modules::in_load_order(devices, &|name| modules::find(&self.modules, name))
    }
}

/// Where the guest is kept.
fn cache() -> Result<PathBuf> {
    workspace::own_dir("cache/debian")
}

/// The cached guest, if there is one.
pub fn cached() -> Result<Option<Linux>> {
    let cache = cache()?;
    let Ok(record) = fs::read(cache.join("versions.json")) else {
        return Ok(None);
    };
    let linux = Linux {
        kernel: cache.join("vmlinuz"),
        busybox: cache.join("busybox"),
        modules: cache.join("modules"),
        versions: serde_json::from_slice(&record).unwrap_or_default(),
    };
    let has_module = |name: &&str| linux.modules.join(format!("{name}.ko")).exists();
    let is_complete = !linux.versions.is_empty()
        && linux.kernel.exists()
        && linux.busybox.exists()
        && modules::DRIVERS.iter().all(has_module);
    Ok(is_complete.then_some(linux))
}

/// The guest from the cache, fetched first if it is not there. To get newer packages, delete the cache.
pub fn fetch() -> Result<Linux> {
    if let Some(linux) = cached()? {
        return Ok(linux);
    }
    let cache = cache()?;
    progress::timed("fetching Debian's kernel and busybox", || fetch_into(&cache)).map_err(|error| {
        failure::setup(format!(
            "cannot fetch the guest's packages: {error:#}. Needed once, with a network: {KERNEL_META_PACKAGE} and \
             {BUSYBOX_PACKAGE}; or give --kernel and --initrd"
        ))
    })?;
    cached()?.context("the cache is incomplete after fetching")
}

fn fetch_into(cache: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(cache).context("cannot make a temporary folder")?;
    let (kernel_package, kernel_tree) = fetch_kernel(scratch.path())?;
    let (busybox_package, busybox_tree) = download(BUSYBOX_PACKAGE, scratch.path())?;
    let vmlinuz = fs::read_dir(kernel_tree.join("boot"))?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"))
        .with_context(|| format!("{} holds no kernel", kernel_package.package))?;
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| busybox_tree.join(path));
    let busybox = busybox.iter().find(|path| path.is_file()).context("busybox-static holds no busybox")?;
    let kept = cache.join("modules");
    fs::create_dir_all(&kept)?;
    let tree = kernel_tree.join("lib/modules");
    for module in modules::in_load_order(modules::DRIVERS, &|name| modules::find(&tree, name))? {
        workspace::write(&kept.join(format!("{}.ko", module.name)), module.bytes)?;
    }
    fs::rename(vmlinuz.path(), cache.join("vmlinuz"))?;
    fs::rename(busybox, cache.join("busybox"))?;
    // Written last: its presence says that the cache is complete.
    let record = serde_json::to_vec_pretty(&[kernel_package, busybox_package])?;
    workspace::write(&cache.join("versions.json"), record)
}

fn fetch_kernel(scratch: &Path) -> Result<(Fetched, PathBuf)> {
    if let Some(Ok(fetched)) = resolve_kernel().map(|package| download(&package, scratch)) {
        return Ok(fetched);
    }
    // Without package lists, or with lists older than the archive, an update is needed, which only root can do.
    if !rustix::process::geteuid().is_root() {
        bail!("apt's package lists are missing or old; run: sudo apt-get update");
    }
    setup::apt(["update", "-q"])?;
    let package = resolve_kernel().with_context(|| format!("apt knows no {KERNEL_META_PACKAGE}"))?;
    download(&package, scratch)
}

/// The package with the kernel that the meta-package depends on.
fn resolve_kernel() -> Option<String> {
    let output = Command::new("apt-cache")
        .args(["depends", KERNEL_META_PACKAGE])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    first_image_dependency(&String::from_utf8_lossy(&output.stdout))
}

fn first_image_dependency(depends: &str) -> Option<String> {
    let dependencies = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    dependencies.map(str::to_owned).find(|name| name.starts_with("linux-image-"))
}

/// Downloads a package and unpacks it; returns what it was and where its files are.
fn download(package: &str, scratch: &Path) -> Result<(Fetched, PathBuf)> {
    let folder = scratch.join(package);
    fs::create_dir_all(&folder)?;
    // As root, apt warns that it cannot drop to its own user here; that is as it should be.
    let output = Command::new("apt-get")
        .args(["download", "-q", package])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "apt-get download {package}: {}",
            errors.lines().find(|line| line.starts_with("E:")).unwrap_or("failed")
        );
    }
    let archive = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"));
    let archive = archive.with_context(|| format!("apt-get download left no file for {package}"))?;
    let version = run("dpkg-deb", &["--field".as_ref(), archive.as_os_str(), "Version".as_ref()])?;
    let tree = folder.join("tree");
    run("dpkg-deb", &["--extract".as_ref(), archive.as_os_str(), tree.as_os_str()])?;
    Ok((Fetched { package: package.to_owned(), version: version.trim().to_owned() }, tree))
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_leads_to_the_kernel() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-41-cloud-amd64\n";
        assert_eq!(first_image_dependency(depends).as_deref(), Some("linux-image-6.1.0-41-cloud-amd64"));
        assert_eq!(first_image_dependency(""), None);
    }
}
