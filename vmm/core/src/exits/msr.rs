//! RDMSR and WRMSR: who answers for which MSR.

use alloc::format;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{Groups, gpr};
use vdev::guest_mem::GuestMemory;
use vdev::lapic::{IA32_APIC_BASE, IA32_TSC_DEADLINE, Lapic, MSR_PV_EOI, X2APIC_FIRST};
use vdev::pvclock::VcpuClock;

use super::{Exit, Handled};
use crate::fault::{Fault, Trouble};
use crate::msr;
use crate::vcpu::{Vcpu, complete_instruction, read_edx_eax, write_edx_eax};

/// IA32_APIC_BASE: x2APIC mode.
const APIC_BASE_X2APIC: u64 = 1 << 10;
/// x2APIC MSRs: the spurious-interrupt vector, whose register switches the local APIC off; TPR, and the last word of IRR.
const X2APIC_SVR: u32 = X2APIC_FIRST + 0x0f;
const X2APIC_TPR: u32 = X2APIC_FIRST + 0x08;
const X2APIC_LAST_IRR: u32 = X2APIC_FIRST + 0x27;

impl<V: Vcpu, M: GuestMemory> Exit<'_, V, M> {
    pub(super) fn msr_read(&mut self) -> Result<Handled, Trouble> {
        let length = self.length(ExitKind::MsrRead)?;
        let index = self.vcpu.page().gpr[gpr::RCX] as u32;
        let Some(value) = self.read_msr(index) else {
            let rip = self.vcpu.page().rip;
            self.log.add(self.now.host, || {
                format!("the guest reads MSR {index:#x}, which it does not have, at {rip:#x}")
            });
            return Err(Fault::PROTECTION.into());
        };
        write_edx_eax(self.vcpu.page(), value);
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    pub(super) fn msr_write(&mut self) -> Result<Handled, Trouble> {
        let length = self.length(ExitKind::MsrWrite)?;
        let page = self.vcpu.page();
        let (index, value) = (page.gpr[gpr::RCX] as u32, read_edx_eax(page));
        if self.write_msr(index, value).is_none() {
            let rip = self.vcpu.page().rip;
            self.log.add(self.now.host, || {
                format!("the guest's write of {value:#x} to MSR {index:#x} faults at {rip:#x}")
            });
            return Err(Fault::PROTECTION.into());
        }
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        match index {
            msr::TSC => Some(self.now.guest),
            msr::TSC_ADJUST => Some(self.msrs.tsc_adjust),
            IA32_TSC_DEADLINE if !self.cpu.has_tsc_deadline() => None,
            MSR_PV_EOI if !self.cpu.has_pv_eoi() => None,
            _ if Lapic::owns_msr(index) => {
                if (X2APIC_TPR..=X2APIC_LAST_IRR).contains(&index) {
                    self.fetch_apic();
                }
                self.board.lapic.msr_read(index, self.now.guest)
            }
            _ if VcpuClock::owns_msr(index) => self.board.vcpu_clock.msr_read(index),
            _ => self.msrs.read(index, self.vcpu, self.cpu),
        }
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        match index {
            msr::TSC => self.shift_tsc(value.wrapping_sub(self.now.guest)),
            msr::TSC_ADJUST => self.shift_tsc(value.wrapping_sub(self.msrs.tsc_adjust)),
            IA32_TSC_DEADLINE if !self.cpu.has_tsc_deadline() => return None,
            MSR_PV_EOI if !self.cpu.has_pv_eoi() => return None,
            _ if Lapic::owns_msr(index) => {
                if matches!(index, IA32_APIC_BASE | X2APIC_SVR | MSR_PV_EOI) {
                    self.fetch_apic();
                }
                if index == IA32_APIC_BASE && value & APIC_BASE_X2APIC != 0 && !self.cpu.has_x2apic() {
                    return None;
                }
                let effect = self.board.lapic.msr_write(index, value, self.now.guest)?;
                self.board.apply(effect);
            }
            _ if VcpuClock::owns_msr(index) => {
                return self.board.vcpu_clock.msr_write(index, value, &self.board.clock, self.memory);
            }
            _ => return self.msrs.write(index, value, self.vcpu, self.cpu),
        }
        Some(())
    }

    /// Has in the local APIC's page what the kernel, which may have it, knows: what it holds back to be read or taken from it.
    fn fetch_apic(&mut self) {
        if self.board.lapic.is_virtual() {
            self.vcpu.require(Groups::APIC);
        }
    }

    /// The guest's TSC jumps by `delta`, IA32_TSC_ADJUST with it (SDM 3B 18.17.3), and the clocks that count it are told.
    fn shift_tsc(&mut self, delta: u64) {
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(delta);
        let page = self.vcpu.state(Groups::TSC_OFFSET);
        page.tsc_offset = page.tsc_offset.wrapping_add(delta);
        page.dirty |= Groups::TSC_OFFSET.bits();
        let old = self.now.guest;
        self.now.guest = old.wrapping_add(delta);
        self.board.shift_tsc(old, self.now.guest);
        self.board.vcpu_clock.refresh(&self.board.clock, self.memory);
    }
}
