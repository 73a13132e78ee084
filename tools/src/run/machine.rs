//! The machines that Nacre runs on.

use crate::failure;
use crate::setup::{self, Need};
use anyhow::Result;
use clap::ValueEnum;
use std::fs::{self, OpenOptions};
use vmm_protocol::manifest::{DiskDriver, Uplink};

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// `kvm` where nested virtualization works, else `svm`.
    Auto,
    /// Bochs with VT-x and EPT.
    Vtx,
    /// QEMU's emulator with AMD-V and NPT.
    Svm,
    /// Bochs with AMD-V and NPT.
    SvmBochs,
    /// QEMU with nested KVM.
    Kvm,
}

/// The IOMMU of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Iommu {
    /// There is none: devices reach all memory.
    None,
    /// AMD's, AMD-Vi.
    Amd,
    /// Intel's, VT-d.
    Intel,
}

impl Machine {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Machine::Auto => "auto",
            Machine::Vtx => "vtx",
            Machine::Svm => "svm",
            Machine::SvmBochs => "svm-bochs",
            Machine::Kvm => "kvm",
        }
    }

    /// Whether Bochs runs it.
    pub const fn is_bochs(self) -> bool {
        matches!(self, Machine::Vtx | Machine::SvmBochs)
    }

    /// Nacre's command line for this machine: `line`, behind what keeps clear of the emulator's faults.
    ///
    /// Bochs 2.7 hands a guest a virtual interrupt with IF clear if an interrupt of the host comes while one is pending
    /// (`InterruptAcknowledge` in cpu/event.cc asks whether it is pending, and not whether it is masked).
    pub fn kernel_cmdline(self, line: &str) -> String {
        match self {
            Machine::Vtx => format!("noapicv {line}"),
            _ => line.to_owned(),
        }
    }

    /// `auto` made one of the others.
    pub fn resolve(self) -> Machine {
        match self {
            Machine::Auto if Machine::Kvm.why_not().is_none() => Machine::Kvm,
            Machine::Auto => Machine::Svm,
            machine => machine,
        }
    }

    /// Why this computer cannot be it, whatever is installed.
    pub fn why_not(self) -> Option<&'static str> {
        match self {
            Machine::Kvm if !kvm_is_usable() => Some("/dev/kvm cannot be opened"),
            Machine::Kvm if nesting().is_none() => Some("KVM does not offer nested virtualization here"),
            _ => None,
        }
    }

    /// Refuses a machine that this computer cannot be.
    ///
    /// # Errors
    /// [`Self::why_not`], and what to do.
    pub fn check(self) -> Result<()> {
        match self.why_not() {
            None => Ok(()),
            Some(why) => Err(failure::setup(format!(
                "machine {} is not to be had: {why}; `cargo nacre doctor` says what to do, machines svm and vtx need no KVM",
                self.name()
            ))),
        }
    }

    /// Installs what it needs.
    ///
    /// # Errors
    /// What this computer lacks.
    pub fn prepare(self) -> Result<()> {
        self.check()?;
        setup::packages(self.needs())
    }

    /// The drivers for disks that it can have; the first is the usual one.
    pub const fn disk_drivers(self) -> &'static [DiskDriver] {
        if self.is_bochs() { &[DiskDriver::Ata] } else { &[DiskDriver::VirtioBlk, DiskDriver::Ata] }
    }

    /// The drivers for network cards that it can have; the first is the usual one.
    pub const fn uplinks(self) -> &'static [Uplink] {
        if self.is_bochs() { &[Uplink::Ne2000] } else { &[Uplink::VirtioNet, Uplink::Ne2000] }
    }

    /// The IOMMU that it has unless the user says otherwise. With KVM there is none, since those of QEMU slow down its interrupts.
    pub const fn usual_iommu(self) -> Iommu {
        match self {
            Machine::Svm => Iommu::Amd,
            _ => Iommu::None,
        }
    }

    /// The packages it needs.
    pub const fn needs(self) -> &'static [&'static [Need]] {
        if self.is_bochs() { &[setup::BOCHS, setup::IMAGE] } else { &[setup::QEMU] }
    }
}

/// Whether this user may use KVM.
pub fn kvm_is_usable() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// The KVM module that offers nested virtualization, if one does.
pub fn nesting() -> Option<&'static str> {
    ["kvm_intel", "kvm_amd"].into_iter().find(|module| {
        let value = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
        matches!(value.trim(), "Y" | "1")
    })
}
