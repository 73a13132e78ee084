//! Why something could not be started.

use alloc::string::String;
use core::fmt;
use vmm_protocol::manifest::ManifestError;

/// Why something could not be started, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The kernel refused a hypercall.
    Kernel(usys::Error),
    /// There is no free range of this many pages.
    Memory {
        /// Pages.
        pages: u64,
    },
    /// The boot image lacks a module.
    Module {
        /// Its name.
        name: String,
    },
    /// A module is no program that can be run.
    Program {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The manifest module is not a manifest of this version.
    ManifestDamaged,
    /// The manifest asks for what cannot be.
    Manifest(ManifestError),
    /// The manifest puts a VM on a CPU that the machine does not have.
    Cpu {
        /// The CPU.
        cpu: u16,
        /// CPUs of the machine.
        count: u16,
    },
    /// What a process is to be told is too long.
    TooMuchConfiguration,
    /// There is no device memory at this physical address.
    Device {
        /// The address.
        address: u64,
    },
}

impl From<usys::Error> for StartError {
    fn from(error: usys::Error) -> Self {
        StartError::Kernel(error)
    }
}

impl From<usys::window::OutOfWindow> for StartError {
    fn from(_: usys::window::OutOfWindow) -> Self {
        StartError::TooMuchConfiguration
    }
}

impl From<ManifestError> for StartError {
    fn from(error: ManifestError) -> Self {
        StartError::Manifest(error)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Kernel(error) => write!(f, "the kernel refused {error}"),
            StartError::Memory { pages } => {
                let mib = pages.div_ceil(256);
                write!(f, "no {mib} MiB of free memory in one piece: give the machine more, or the VMs less")
            }
            StartError::Module { name } => {
                write!(f, "the boot image has no module {name:?}: rebuild it")
            }
            StartError::Program { name, what } => {
                write!(f, "module {name:?} is no program of this system ({what}): rebuild the boot image")
            }
            StartError::ManifestDamaged => {
                write!(f, "manifest: not one of this version: rebuild the boot image")
            }
            StartError::Manifest(error) => write!(f, "manifest: {error}"),
            StartError::Cpu { cpu, count } => {
                write!(f, "cpu {cpu} does not exist, the machine has {count}")
            }
            StartError::Device { address } => {
                write!(f, "a device has its registers at {address:#x}, where the machine has other things")
            }
            StartError::TooMuchConfiguration => {
                write!(f, "the configuration is too long: shorten the command line or the list of modules")
            }
        }
    }
}
