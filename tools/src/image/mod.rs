//! What is booted: the kernel, its command line and the boot modules, and the ways to pack them.

pub mod disk_format;
pub mod disks;
pub mod elf;
pub mod iso;
pub mod manifest;
pub mod modules;

use crate::{compile, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use vmm_protocol::manifest::{CONSOLE_MODULE, MODULE, MONITOR_MODULE, ROOT_MODULE};

/// A boot module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The name by which the system finds it.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Everything that the boot loader loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootImage {
    /// The kernel without its debug information.
    pub kernel: Vec<u8>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The boot modules, the root task first.
    pub modules: Vec<Module>,
}

/// File name of the kernel where an image is laid out; no module may have it.
pub const KERNEL_FILE: &str = "nacre";

impl BootImage {
    /// Collects the built system and what `plan` adds to it.
    pub fn collect(plan: &manifest::Plan, cmdline: &str) -> Result<Self> {
        compile::check_built()?;
        let program = |binary: &str| elf::loadable(&workspace::bare_binary(binary));
        let module = |name: &str, bytes| Module { name: name.to_owned(), bytes };
        let encoded = postcard::to_allocvec(&plan.manifest).context("cannot encode the manifest")?;
        let mut modules = vec![
            module(ROOT_MODULE, program("root")?),
            module(CONSOLE_MODULE, program("console")?),
            module(MONITOR_MODULE, program("monitor")?),
            module(MODULE, encoded),
        ];
        for driver in plan.manifest.driver_modules() {
            modules.push(module(driver, program(driver)?));
        }
        modules.extend(plan.modules.iter().cloned());
        Ok(BootImage {
            kernel: elf::loadable(&workspace::kernel_binary())?,
            cmdline: cmdline.to_owned(),
            modules,
        })
    }

    /// Writes the kernel and the modules into a folder, each under its name.
    pub fn lay_out(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        workspace::write(&directory.join(KERNEL_FILE), &self.kernel)?;
        self.modules
            .iter()
            .try_for_each(|module| workspace::write(&directory.join(&module.name), &module.bytes))
    }

    /// A table of what the image holds, largest last: name and KiB.
    pub fn size_table(&self) -> String {
        let mut rows: Vec<(&str, usize)> =
            self.modules.iter().map(|module| (&*module.name, module.bytes.len())).collect();
        rows.push(("kernel", self.kernel.len()));
        rows.sort_by_key(|&(_, size)| size);
        rows.iter().map(|(name, size)| format!("{:>9.1} KiB  {name}\n", *size as f64 / 1024.0)).collect()
    }
}
