//! Boot modules from files: each file once, each under a name that the boot loaders can carry.

use super::{KERNEL_FILE, Module};
use crate::failure;
use anyhow::Result;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use vmm_protocol::manifest::{
    CONSOLE_MODULE, DiskDriver, MODULE, MONITOR_MODULE, ROOT_MODULE, SWITCH_MODULE, Uplink,
};

/// Longest name the kernel hands on (`hypercall_abi::boot_info::Module::name`, zero-terminated).
const MAX_NAME: usize = 31;
/// How many modules the kernel takes (`hypercall_abi::boot_info::MAX_MODULES`), less the system's own.
const MAX_GUEST_MODULES: usize = 32 - OWN.len() - DRIVERS.len();
/// The modules of every system.
const OWN: [&str; 4] = [ROOT_MODULE, CONSOLE_MODULE, MONITOR_MODULE, MODULE];
/// The modules of systems with disks or networks.
const DRIVERS: [Option<&str>; 5] = [
    DiskDriver::Ata.module(),
    DiskDriver::VirtioBlk.module(),
    Some(SWITCH_MODULE),
    Uplink::VirtioNet.module(),
    Uplink::Ne2000.module(),
];

/// Collects modules.
#[derive(Debug, Default)]
pub struct Collector {
    modules: Vec<Module>,
    by_path: HashMap<PathBuf, String>,
}

impl Collector {
    /// Takes a file in and returns its module's name; a file already taken keeps its name.
    pub fn add_file(&mut self, path: &Path) -> Result<String> {
        let key = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if let Some(name) = self.by_path.get(&key) {
            return Ok(name.clone());
        }
        let name = self.add_copy(path)?;
        self.by_path.insert(key, name.clone());
        Ok(name)
    }

    /// Takes a file in as a module of its own, whether or not it was taken before.
    pub fn add_copy(&mut self, path: &Path) -> Result<String> {
        let bytes = std::fs::read(path)
            .map_err(|error| failure::usage(format!("cannot read {}: {error}", path.display())))?;
        let stem = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.add_bytes(&stem, bytes)
    }

    /// Takes bytes in under a name like `wish` and returns the name.
    pub fn add_bytes(&mut self, wish: &str, bytes: Vec<u8>) -> Result<String> {
        if self.modules.len() == MAX_GUEST_MODULES {
            return Err(failure::usage(format!(
                "too many kernels, initrds and disks: at most {MAX_GUEST_MODULES} different files"
            )));
        }
        let name = self.free_name(wish);
        self.modules.push(Module { name: name.clone(), bytes });
        Ok(name)
    }

    /// The bytes of a module taken in.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.modules.iter().find(|module| module.name == name).map(|module| &*module.bytes)
    }

    /// The modules, in the order they came.
    pub fn into_modules(self) -> Vec<Module> {
        self.modules
    }

    /// A name of letters, digits, `-`, `_` and `.` that nothing else has.
    fn free_name(&self, wish: &str) -> String {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }
        };
        let base: String = wish.chars().map(plain).take(MAX_NAME - 3).collect();
        let is_taken = |name: &str| {
            OWN.contains(&name)
                || [KERNEL_FILE, "grub", ""].contains(&name)
                || DRIVERS.contains(&Some(name))
                || self.modules.iter().any(|module| module.name == name)
        };
        let numbered = (2..=MAX_GUEST_MODULES + 8).map(|number| format!("{base}-{number}"));
        std::iter::once(base.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_plain() {
        let mut collector = Collector::default();
        assert_eq!(collector.add_bytes("my, kernel", vec![]).unwrap(), "my__kernel");
        assert_eq!(collector.add_bytes("my, kernel", vec![]).unwrap(), "my__kernel-2");
        assert_eq!(collector.add_bytes("root", vec![]).unwrap(), "root-2");
        assert!(collector.add_bytes(&"x".repeat(300), vec![]).unwrap().len() <= MAX_NAME);
    }

    #[test]
    fn a_file_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        std::fs::write(&path, b"kernel").unwrap();
        let mut collector = Collector::default();
        assert_eq!(collector.add_file(&path).unwrap(), collector.add_file(&path).unwrap());
        assert_eq!(collector.into_modules().len(), 1);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Collector::default().add_file(Path::new("/nonexistent/kernel")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/kernel"));
    }
}
