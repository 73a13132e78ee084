//! A new VMCS: what never changes, and the guest state after reset.

use super::entry::{guarded_landing, landing};
use super::insn::CurrentVmcs;
use super::region::{self, Machine, VPIDS};
use super::registers::{DR6_RESET, host_syscall_msrs, read_cr0, read_cr4};
use super::vcpu::{Chores, Held, Host, Vcpu};
use crate::cpu::tables::TableRegister;
use crate::cpu::{control, mitigation, msr};
use crate::mem::phys_to_virt;
use crate::virt::HostState;
use crate::virt::breakpoints::Breakpoints;
use crate::virt::page::Page;
use core::ptr::NonNull;
use hypercall_abi::vcpu::{Groups, VcpuPage};
use kcore::addr::PhysAddr;
use kcore::virt::vmx::controls::{ept_pointer, secondary};
use kcore::virt::vmx::syscall_msrs::SyscallMsrs;
use kcore::virt::vmx::{fields, msr_bitmap};

const DR7_RESET: u64 = 0x400;

/// Builds a vCPU out of two frames: the VMCS and the MSR bitmap.
///
/// # Safety
/// As [`crate::virt::GuestCpu::new`].
pub(super) unsafe fn new_vcpu(
    [vmcs, bitmap]: [PhysAddr; 2],
    host: &HostState,
    nested_root: PhysAddr,
) -> Vcpu {
    let Ok(machine) = region::machine() else {
        unreachable!("`enable_cpu` got the same answer on this CPU before");
    };
    let vpid = if machine.controls.has_secondary(secondary::VPID) { VPIDS.take() } else { None };
    let mut vcpu = Vcpu {
        vmcs,
        msr_bitmap: bitmap,
        machine,
        vpid,
        is_launched: false,
        is_loaded: false,
        chores: Chores::FLUSH_VPID | Chores::CONTROLS,
        held: Held::default(),
        wanted_controls: 0,
        wanted_exceptions: 0,
        shadow_cr0: 0,
        shadow_cr4: 0,
        guest_msrs: SyscallMsrs::default(),
        host: Host { msrs: host_syscall_msrs(), gdtr: TableRegister::gdtr() },
        breakpoints: Breakpoints::default(),
        dr6: DR6_RESET,
        dr7: DR7_RESET,
    };
    // SAFETY: the VMCS's frame is the vCPU's own and not active anywhere. The bitmap's frame is in the direct map and
    // exclusive as well; all-zero bytes are a valid `VcpuPage`, which lends its frame for the state after reset before
    // the bitmap goes there.
    unsafe {
        phys_to_virt(vmcs).cast::<u32>().write_volatile(machine.revision);
        region::clear(vmcs);
        let current = region::make_current(vmcs);
        write_controls(current, &machine, vpid, bitmap);
        current.write(fields::EPT_POINTER, ept_pointer(nested_root, machine.controls.has_dirty_flags));
        write_host_state(current, host);
        write_constant_guest_state(current);

        let page = phys_to_virt(bitmap).cast::<VcpuPage>();
        (*page).reset();
        // `SyscallMsrs::default` is after reset; another guest's may be in the CPU.
        let groups = Groups::all().difference(Groups::SYSCALL);
        let taken = vcpu.take_groups(current, Page::new(NonNull::new_unchecked(page)), groups);
        debug_assert!(taken.is_ok(), "the state after reset is valid");
        let has_tsc_aux = vcpu.has_tsc_aux();
        msr_bitmap::fill(&mut *page.cast::<[u8; msr_bitmap::BITMAP_BYTES]>(), has_tsc_aux);

        // The CPU that loads the vCPU first may be another one.
        region::clear(vmcs);
    }
    vcpu
}

fn write_controls(vmcs: CurrentVmcs, machine: &Machine, vpid: Option<u16>, bitmap: PhysAddr) {
    let controls = &machine.controls;
    let without = if vpid.is_none() { secondary::VPID } else { 0 };
    vmcs.write(fields::PIN_CONTROLS, controls.pin);
    vmcs.write(fields::PRIMARY_CONTROLS, controls.primary);
    vmcs.write(fields::SECONDARY_CONTROLS, controls.secondary & !without);
    vmcs.write(fields::EXIT_CONTROLS, controls.exit);
    vmcs.write(fields::ENTRY_CONTROLS, controls.entry);
    if let Some(vpid) = vpid {
        vmcs.write(fields::VPID, vpid);
    }
    if controls.has_secondary(secondary::ENCLS_EXITING) {
        vmcs.write(fields::ENCLS_EXITING_BITMAP, u64::MAX);
    }
    if controls.has_secondary(secondary::XSAVES) {
        vmcs.write(fields::XSS_EXITING_BITMAP, u64::MAX);
    }
    vmcs.write(fields::MSR_BITMAP, bitmap.0);
    vmcs.write(fields::CR0_MASK, machine.rules.cr0_mask());
    vmcs.write(fields::CR4_MASK, machine.rules.cr4_mask());
    // Whether a page fault exits depends on the exception bitmap alone (SDM 3C 24.6.3).
    vmcs.write(fields::PAGE_FAULT_ERROR_MASK, 0);
    vmcs.write(fields::PAGE_FAULT_ERROR_MATCH, 0);
    vmcs.write(fields::CR3_TARGET_COUNT, 0);
    vmcs.write(fields::EXIT_MSR_STORE_COUNT, 0);
    vmcs.write(fields::EXIT_MSR_LOAD_COUNT, 0);
    vmcs.write(fields::ENTRY_MSR_LOAD_COUNT, 0);
    vmcs.write(fields::ENTRY_INTERRUPTION_INFO, 0);
}

/// HOST_CR3 and HOST_RSP follow when the vCPU runs. User code has no FS base. TS keeps it from the guest's FPU registers. After an
/// exit the limit of GDTR is 0xffff until `leave`, that of IDTR is 0xffff, that of TR 0x67, and LDTR is unusable (SDM 3C 27.5.2).
fn write_host_state(vmcs: CurrentVmcs, host: &HostState) {
    const CR0_TS: u64 = 1 << 3;
    vmcs.write(fields::HOST_CR0, read_cr0() | CR0_TS);
    vmcs.write(fields::HOST_CR3, control::read_cr3());
    vmcs.write(fields::HOST_CR4, read_cr4());
    // SAFETY: long mode has EFER and PAT.
    let (efer, pat) = unsafe { (msr::read(msr::EFER), msr::read(msr::PAT)) };
    vmcs.write(fields::HOST_EFER, efer);
    vmcs.write(fields::HOST_PAT, pat);
    vmcs.write(fields::HOST_CS_SELECTOR, host.code_selector);
    vmcs.write(fields::HOST_SS_SELECTOR, host.code_selector + 8);
    vmcs.write(fields::HOST_TR_SELECTOR, host.tss_selector);
    for field in [
        fields::HOST_DS_SELECTOR,
        fields::HOST_ES_SELECTOR,
        fields::HOST_FS_SELECTOR,
        fields::HOST_GS_SELECTOR,
    ] {
        vmcs.write(field, 0);
    }
    vmcs.write(fields::HOST_FS_BASE, 0);
    vmcs.write(fields::HOST_GS_BASE, host.gs_base);
    vmcs.write(fields::HOST_TR_BASE, host.tss_base);
    vmcs.write(fields::HOST_GDTR_BASE, host.gdt_base);
    vmcs.write(fields::HOST_IDTR_BASE, host.idt_base);
    vmcs.write(fields::HOST_SYSENTER_CS, 0);
    vmcs.write(fields::HOST_SYSENTER_ESP, 0);
    vmcs.write(fields::HOST_SYSENTER_EIP, 0);
    vmcs.write(fields::HOST_RSP, 0);
    let landing = if mitigation::guards_exits() { guarded_landing } else { landing };
    vmcs.write(fields::HOST_RIP, landing as *const () as u64);
}

/// Guest state that no group has. The guest is always entered as active: halted vCPUs are not entered.
fn write_constant_guest_state(vmcs: CurrentVmcs) {
    const ACTIVE: u32 = 0;
    const NO_SHADOW_VMCS: u64 = u64::MAX;
    vmcs.write(fields::VMCS_LINK_POINTER, NO_SHADOW_VMCS);
    vmcs.write(fields::GUEST_ACTIVITY, ACTIVE);
    vmcs.write(fields::GUEST_SMBASE, 0);
    vmcs.write(fields::GUEST_PENDING_DEBUG, 0);
    // `Held::default` has zeros for these, and fields that do not differ from it are not written.
    vmcs.write(fields::GUEST_RIP, 0);
    vmcs.write(fields::GUEST_RFLAGS, 0);
    vmcs.write(fields::GUEST_INTERRUPTIBILITY, 0);
    for field in fields::GUEST_PDPTES {
        vmcs.write(field, 0);
    }
}
