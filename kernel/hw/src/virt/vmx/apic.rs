//! The virtual-APIC page in silicon: virtualization of x2APIC mode and virtual-interrupt delivery (SDM 3C 29).

use super::insn::CurrentVmcs;
use super::vcpu::Vcpu;
use crate::mem::phys_to_virt;
use kcore::addr::PhysAddr;
use kcore::virt::vapic::Status;
use kcore::virt::vmx::controls::APIC_VIRTUALIZATION;
use kcore::virt::vmx::{fields, msr_bitmap};

/// RVI is the low byte, SVI the high one (SDM 3C 24.4.2).
pub(super) fn status(vmcs: CurrentVmcs) -> Status {
    let [requested, in_service] = vmcs.read(fields::GUEST_INTERRUPT_STATUS).to_le_bytes();
    Status { requested, in_service }
}

pub(super) fn set_status(vmcs: CurrentVmcs, status: Status) {
    let word = u16::from_le_bytes([status.requested, status.in_service]);
    vmcs.write(fields::GUEST_INTERRUPT_STATUS, word);
}

pub(super) fn set_page(vmcs: CurrentVmcs, page: PhysAddr, eoi_exits: [u64; 4]) {
    vmcs.write(fields::VIRTUAL_APIC, page.0);
    for (field, vectors) in fields::EOI_EXIT_BITMAPS.into_iter().zip(eoi_exits) {
        vmcs.write(field, vectors);
    }
}

impl Vcpu {
    /// Switches the virtual APIC on or off; the primary controls follow in the same entry. The MSR bitmap changes with the controls: by
    /// the one without the other the guest would write the APIC of the CPU.
    #[cold]
    pub(super) fn switch_apic(&mut self, vmcs: CurrentVmcs, is_on: bool) {
        let others = vmcs.read(fields::SECONDARY_CONTROLS) & !APIC_VIRTUALIZATION;
        vmcs.write(fields::SECONDARY_CONTROLS, if is_on { others | APIC_VIRTUALIZATION } else { others });
        // SAFETY: the frame is the vCPU's own, and its guest is not running.
        let bitmap = unsafe { &mut *phys_to_virt(self.msr_bitmap).cast() };
        msr_bitmap::open_apic(bitmap, is_on);
        self.held.has_apic = is_on;
    }
}
