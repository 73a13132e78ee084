//! Exits that the kernel answers itself.
//!
//! Except HLT they end in a window for host interrupts before the guest goes on: it costs nothing next to the exit, and
//! keeps guests that do nothing else from holding the CPU.

use super::insn::CurrentVmcs;
use super::registers::{read_dr6, write_dr6};
use super::state::SHADOW;
use super::vcpu::{Chores, Vcpu};
use crate::cpu::msr;
use crate::virt::Returned;
use crate::virt::page::{Page, get, put};
use hypercall_abi::guest::{DOORBELL_CALL, DOORBELL_CALL_LENGTH};
use hypercall_abi::vcpu::gpr::{RAX, RCX, RDX};
use hypercall_abi::vcpu::{ACTIVITY_HALTED, CS, Event, SS};
use kcore::virt::vmx::checks::{DEBUGCTL_BTF, RFLAGS_TF};
use kcore::virt::vmx::controls::primary;
use kcore::virt::vmx::exit::{DEBUG_EXCEPTION, Interruption};
use kcore::virt::vmx::fields;
use kcore::virt::vmx::syscall_msrs::Write;

/// Pending debug exceptions, BS: a single-step trap.
pub(super) const SINGLE_STEP: u64 = 1 << 14;
const GENERAL_PROTECTION: u8 = 13;
const RFLAGS_RF: u64 = 1 << 16;

impl Vcpu {
    /// An access of a debug register; false if the VMM asked for them. The instruction will be executed again, with the
    /// guest's registers in the CPU.
    pub(super) fn wants_debug_registers(&mut self) -> bool {
        let is_ours = self.wanted_controls & primary::MOV_DR_EXITING == 0;
        if is_ours {
            self.breakpoints.want();
            self.chores |= Chores::BREAKPOINTS;
        }
        is_ours
    }

    /// WRMSR; false unless it is of one of the MSRs that the kernel switches.
    #[inline(never)]
    pub(super) fn write_msr(&mut self, vmcs: CurrentVmcs, page: Page, length: u32) -> bool {
        let index = get!(page, gpr[RCX]) as u32;
        let value = get!(page, gpr[RDX]) << 32 | get!(page, gpr[RAX]) & 0xffff_ffff;
        match self.guest_msrs.write(index, value, self.has_tsc_aux()) {
            Write::Foreign => return false,
            Write::Refused => {
                let error_code = self.is_protected(vmcs).then_some(0);
                put!(page, Event::exception(GENERAL_PROTECTION, error_code) => inject);
            }
            Write::Done => {
                // SAFETY: the MSR exists and takes this value, by the checks of `write`. The kernel's own come back in
                // `leave`, before any SYSCALL, TSC_AUX in `fpu::release`.
                unsafe { msr::write(index, value) };
                self.complete_instruction(vmcs, length);
            }
        }
        true
    }

    /// Moves the guest behind the instruction that exited, as if the CPU had executed it.
    fn complete_instruction(&mut self, vmcs: CurrentVmcs, length: u32) {
        const LONG: u32 = 1 << 13;
        let mut rip = self.held.rip.wrapping_add(length as u64);
        // RIP wraps at 4 GiB outside of 64-bit mode.
        if self.held.rip >> 32 == 0 && rip >> 32 != 0 {
            let access = vmcs.read(fields::GUEST_SEGMENTS[CS].access);
            if !self.is_long(vmcs) || access & LONG == 0 {
                rip &= 0xffff_ffff;
            }
        }
        self.held.rip = rip;
        vmcs.write(fields::GUEST_RIP, rip);
        self.set_interruptibility(vmcs, self.held.interruptibility & !SHADOW);
        if self.single_steps(vmcs) {
            vmcs.write(fields::GUEST_PENDING_DEBUG, SINGLE_STEP);
        }
    }

    /// Whether a trap follows each of the guest's instructions.
    pub(super) fn single_steps(&self, vmcs: CurrentVmcs) -> bool {
        self.held.rflags & RFLAGS_TF != 0 && vmcs.read(fields::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0
    }

    /// Lets `call` answer a VMCALL, as [`crate::virt::GuestCpu::run`] says, and moves the guest behind it. Only where nothing but
    /// RIP is to be changed for the next entry.
    #[inline(always)]
    pub(super) fn answers_call(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        call: &impl Fn(u16) -> Option<bool>,
    ) -> Option<bool> {
        const DPL: u32 = 3 << 5;
        let rax = get!(page, gpr[RAX]);
        let (rip, next) = (self.held.rip, self.held.rip.wrapping_add(DOORBELL_CALL_LENGTH as u64));
        if rax & !0xffff != DOORBELL_CALL
            || self.held.rflags & (RFLAGS_TF | RFLAGS_RF) != 0
            || (rip ^ next) >> 32 != 0
            || self.held.interruptibility | self.chores.bits() != 0
            || Interruption(vmcs.read(fields::IDT_VECTORING_INFO)).is_valid()
            || vmcs.read::<u32>(fields::GUEST_SEGMENTS[SS].access) & DPL != 0
        {
            return None;
        }
        let goes_on = call(rax as u16)?;
        self.held.rip = next;
        vmcs.write(fields::GUEST_RIP, next);
        Some(goes_on)
    }

    /// HLT that blocks: the guest is behind it, and whatever wakes it finds no shadow of an STI before it.
    pub(super) fn halt(&mut self, vmcs: CurrentVmcs, page: Page, length: u32) -> Returned {
        self.complete_instruction(vmcs, length);
        self.go_on(page, Returned::Halted);
        put!(page, ACTIVITY_HALTED => activity);
        Returned::Halted
    }

    /// Gives the guest an exception that only the kernel had to see.
    pub(super) fn reflect(
        &mut self,
        vmcs: CurrentVmcs,
        page: Page,
        event: Event,
        debug_bits: u64,
        length: u32,
    ) -> Returned {
        const DR7_GENERAL_DETECT: u64 = 1 << 13;
        const DR6_BREAKPOINTS: u64 = 15;
        if event.vector() == DEBUG_EXCEPTION {
            // What the CPU does when it delivers a #DB (SDM 3B 17.2.3, 17.2.4); the exit came before.
            self.set_dr6(self.dr6() & !DR6_BREAKPOINTS | debug_bits);
            let dr7 = vmcs.read(fields::GUEST_DR7);
            if dr7 & DR7_GENERAL_DETECT != 0 {
                vmcs.write(fields::GUEST_DR7, dr7 & !DR7_GENERAL_DETECT);
            }
            self.chores |= Chores::PENDING_DEBUG;
        }
        put!(page, event => inject);
        put!(page, length => inject_length);
        Returned::HostInterrupt
    }

    /// The guest's DR6. It is in the CPU only while the guest may access it: every #DB that would change it exits.
    pub(super) fn dr6(&self) -> u64 {
        if self.breakpoints.is_open() { read_dr6() } else { self.dr6 }
    }

    /// Changes the guest's DR6, to a value whose upper half is zero.
    pub(super) fn set_dr6(&mut self, dr6: u64) {
        self.dr6 = dr6;
        if self.breakpoints.is_open() {
            self.switch_in_dr6();
        }
    }

    /// Changes what the kernel knows of the guest's DR7.
    pub(super) fn set_dr7(&mut self, dr7: u64) {
        self.dr7 = dr7;
        self.chores |= Chores::BREAKPOINTS;
    }

    /// Puts the guest's DR6 into the CPU.
    pub(super) fn switch_in_dr6(&self) {
        // SAFETY: the upper half is zero: the value is one that the CPU had, or it was checked. The kernel does not depend
        // on DR6.
        unsafe { write_dr6(self.dr6) };
    }
}
