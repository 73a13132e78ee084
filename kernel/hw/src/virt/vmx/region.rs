//! VMX on each CPU: what it offers, on and off, and which VMCS is current.

use super::insn::{CurrentVmcs, InvEpt, invept, vmclear, vmptrld, vmxon};
use super::registers::{read_cr0, read_cr4, write_cr0, write_cr4};
use crate::cpu::{cpuid, msr, xsavec};
use crate::mem::phys_to_virt;
use crate::percpu;
use crate::virt::{Features, LEAVES_APIC_ALONE, Unsupported};
use core::sync::atomic::Ordering;
use kcore::addr::PhysAddr;
use kcore::virt::vmx::control_registers::{CR4_VMXE, ControlRules};
use kcore::virt::vmx::controls::{Capabilities, Controls, Missing, secondary};
use kcore::virt::vmx::vpid::VpidPool;

const FEATURE_CONTROL: u32 = 0x3a;
const FEATURE_CONTROL_LOCKED: u64 = 1 << 0;
/// VMXON allowed outside of SMX operation.
const FEATURE_CONTROL_VMXON: u64 = 1 << 2;

/// The identifiers of all vCPUs.
pub(super) static VPIDS: VpidPool = VpidPool::new();

/// What vCPUs depend on; the same on every CPU of a machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    /// The controls.
    pub(super) controls: Controls,
    /// How CR0 and CR4 are split.
    pub(super) rules: ControlRules,
    /// VMCS revision identifier.
    pub(super) revision: u32,
}

impl From<Missing> for Unsupported {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Ept => Unsupported::NoNestedPaging,
            Missing::UnrestrictedGuest => Unsupported::NoUnrestrictedGuest,
            Missing::Control(name) => Unsupported::MissingControl(name),
        }
    }
}

fn has_vmx() -> bool {
    cpuid::leaf(1, 0).ecx >> 5 & 1 != 0
}

pub(super) fn capabilities() -> Result<Capabilities, Unsupported> {
    if !has_vmx() {
        return Err(Unsupported::NoExtension);
    }
    // SAFETY: CPUID announces VMX, and `Capabilities` asks only for MSRs that exist then.
    Ok(Capabilities::read(|index| unsafe { msr::read(index) }))
}

/// What this CPU offers to vCPUs.
pub(super) fn machine() -> Result<Machine, Unsupported> {
    let capabilities = capabilities()?;
    let mut controls = capabilities.choose()?;
    controls.virtualizes_apic &= !LEAVES_APIC_ALONE.load(Ordering::Relaxed);
    Ok(Machine {
        controls,
        rules: ControlRules::new(&capabilities.fixed, cpuid::features().phys_bits),
        revision: capabilities.revision(),
    })
}

/// Says whether this CPU can run guests by VMX, and what it offers.
///
/// # Errors
/// Why it cannot.
pub fn detect() -> Result<Features, Unsupported> {
    let machine = machine()?;
    // SAFETY: CPUs with VMX have the MSR (SDM 3C 23.7).
    let feature_control = unsafe { msr::read(FEATURE_CONTROL) };
    if feature_control & FEATURE_CONTROL_LOCKED != 0 && feature_control & FEATURE_CONTROL_VMXON == 0 {
        return Err(Unsupported::LockedByFirmware);
    }
    let controls = &machine.controls;
    Ok(Features {
        is_vmx: true,
        has_instruction_length: true,
        has_nested_1g: controls.has_nested_1g,
        has_dirty_flags: controls.has_dirty_flags,
        has_rdtscp: controls.has_secondary(secondary::RDTSCP),
        has_invpcid: controls.has_secondary(secondary::INVPCID),
        has_xsaves: controls.has_secondary(secondary::XSAVES) && xsavec::works(),
        virtualizes_apic: controls.virtualizes_apic,
    })
}

/// Switches VMX on for this CPU. INIT signals stay pending from then on.
///
/// # Errors
/// As [`detect`]; then nothing is changed.
///
/// # Safety
/// VMX is off. The frame is in the direct map and belongs to this CPU for ever. Interrupts are off, and
/// the per-CPU block is installed.
pub unsafe fn enable_cpu(frame: PhysAddr) -> Result<(), Unsupported> {
    detect()?;
    let capabilities = capabilities()?;
    // SAFETY: the MSR exists (`detect`) and is locked with VMXON on, or not locked yet, so that it takes the write. The
    // fixed bits of CR0 and CR4 are set as VMXON demands: paging and protection are on anyway, NE makes x87 errors
    // exceptions, and VMXE is only needed for VMX. The region is a frame of the caller's with the revision identifier.
    unsafe {
        let feature_control = msr::read(FEATURE_CONTROL);
        if feature_control & FEATURE_CONTROL_LOCKED == 0 {
            msr::write(FEATURE_CONTROL, feature_control | FEATURE_CONTROL_LOCKED | FEATURE_CONTROL_VMXON);
        }
        let cr0 = read_cr0();
        if cr0 & capabilities.fixed.cr0_fixed0 != capabilities.fixed.cr0_fixed0 {
            write_cr0(cr0 | capabilities.fixed.cr0_fixed0);
        }
        write_cr4(read_cr4() | capabilities.fixed.cr4_fixed0 | CR4_VMXE);
        phys_to_virt(frame).cast::<u32>().write_volatile(capabilities.revision());
        if vmxon(frame).is_err() {
            write_cr4(read_cr4() & !CR4_VMXE);
            return Err(Unsupported::MissingControl("VMXON"));
        }
        // Translations that someone before us left behind (SDM 3C 28.3.3.4).
        let _ = invept(InvEpt::All);
    }
    percpu::set_vmcs(0);
    Ok(())
}

/// Makes a VMCS current on this CPU, unless it is: for most runs it is that of the last one.
///
/// # Safety
/// As for [`vmptrld`]; the value is used only until another VMCS becomes current.
#[inline]
pub(super) unsafe fn make_current(vmcs: PhysAddr) -> CurrentVmcs {
    if percpu::vmcs() != vmcs.0 {
        // SAFETY: by the contract of this function.
        let loaded = unsafe { vmptrld(vmcs) };
        debug_assert!(loaded.is_ok(), "VMPTRLD {:#x}", vmcs.0);
        percpu::set_vmcs(vmcs.0);
    }
    // SAFETY: the VMCS is current.
    unsafe { CurrentVmcs::assume() }
}

/// Writes a VMCS back to memory: it is neither active nor current here afterwards.
///
/// # Safety
/// As for [`vmclear`]; the VMCS is not active on another CPU.
pub(super) unsafe fn clear(vmcs: PhysAddr) {
    // SAFETY: by the contract of this function.
    let cleared = unsafe { vmclear(vmcs) };
    debug_assert!(cleared.is_ok(), "VMCLEAR {:#x}", vmcs.0);
    if percpu::vmcs() == vmcs.0 {
        percpu::set_vmcs(0);
    }
}
