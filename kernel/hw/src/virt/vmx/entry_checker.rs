//! The entry checker's hooks: the VMCS before each entry, against the rules of [`kcore::virt::vmx::entry_checker`], what the kernel
//! believes it holds, and the flush checker.

use super::insn::CurrentVmcs;
use super::vcpu::{Chores, Vcpu};
use super::{entry, region};
use crate::console::Writer;
use crate::cpu::cpuid;
use crate::flush_checker;
use core::fmt::Write;
use kcore::flush_checker::User;
use kcore::virt::vmx::entry_checker::{Broken, Cause, Fields, Machine, check_entry};
use kcore::virt::vmx::exit::ENTRY_FAILURE;
use kcore::virt::vmx::fields::{self, Field, Width};

/// What hardware says of guest state that breaks a rule: exit reason 33 with bit 31.
const INVALID_GUEST_STATE: u64 = 0x8000_0021;

impl Fields for CurrentVmcs {
    fn read<W: Width>(&self, field: Field<W>) -> W {
        CurrentVmcs::read(*self, field)
    }
}

impl Vcpu {
    /// Checks the entry that is about to happen.
    ///
    /// # Errors
    /// What the hardware would report, for guest state that a VMM can bring about.
    #[inline(never)]
    pub(super) fn check_entry(&self, vmcs: CurrentVmcs) -> Result<(), [u64; 2]> {
        let Ok(capabilities) = region::capabilities() else {
            return Ok(());
        };
        let machine = Machine { capabilities: &capabilities, physical_bits: cpuid::features().phys_bits };
        match check_entry(&vmcs, &machine) {
            Ok(()) => {}
            Err(Broken { section, rule, cause: Cause::Kernel }) => {
                panic!("entry checker: SDM 3C {section}: {rule}")
            }
            Err(Broken { section, rule, .. }) => {
                let _ = writeln!(Writer, "entry checker: the VMM's guest breaks SDM 3C {section}: {rule}");
                return Err([INVALID_GUEST_STATE, 0]);
            }
        }
        self.check_held(vmcs);
        flush_checker::enter(vmcs.read(fields::EPT_POINTER), space_of(vmcs));
        if let Some(vpid) = self.vpid {
            flush_checker::enter(vpid as u64, self.user(vmcs));
        }
        Ok(())
    }

    /// The VMCS holds what the kernel remembers instead of reading it.
    fn check_held(&self, vmcs: CurrentVmcs) {
        assert_eq!(self.held.rip, vmcs.read(fields::GUEST_RIP), "RIP in the VMCS");
        assert_eq!(self.held.rflags, vmcs.read(fields::GUEST_RFLAGS), "RFLAGS in the VMCS");
        assert_eq!(
            self.held.interruptibility,
            vmcs.read(fields::GUEST_INTERRUPTIBILITY),
            "interruptibility in the VMCS"
        );
        let has_event = vmcs.read(fields::ENTRY_INTERRUPTION_INFO) >> 31 != 0;
        assert_eq!(self.chores.contains(Chores::EVENT), has_event, "event in the VMCS");
    }

    /// The entry was tried: the hardware found nothing wrong with what is the kernel's, and what it cached belongs to the guest as
    /// it is now.
    #[inline(never)]
    pub(super) fn check_exit(&self, vmcs: CurrentVmcs, status: u32) {
        assert!(
            status == entry::EXITED,
            "entry checker: the hardware refuses what no rule does: status {status}, error {}",
            vmcs.read(fields::INSTRUCTION_ERROR)
        );
        if vmcs.read(fields::EXIT_REASON) & ENTRY_FAILURE != 0 {
            // Bochs 2.7 compares the RPL of CS with its DPL, which the manual does not.
            let _ = writeln!(Writer, "entry checker: the machine refuses guest state that no rule does");
        }
        if let Some(vpid) = self.vpid {
            flush_checker::leave(vpid as u64, self.user(vmcs));
        }
    }

    fn user(&self, vmcs: CurrentVmcs) -> User {
        User {
            vcpu: self.vmcs.0,
            registers: [
                vmcs.read(fields::GUEST_CR0),
                vmcs.read(fields::GUEST_CR3),
                vmcs.read(fields::GUEST_CR4),
                vmcs.read(fields::GUEST_EFER),
                0,
            ],
            // INVEPT, which the EPT pointer's own tag stands for, covers what changes in the tables.
            root: 0,
        }
    }
}

/// Every vCPU of a space shares what is cached under its EPT pointer.
fn space_of(vmcs: CurrentVmcs) -> User {
    User { root: vmcs.read(fields::EPT_POINTER) & !0xfff, ..User::default() }
}
