//! What each exit comes to: a change of the vCPU page, of a device, or the end of the VM.
//!
//! The kernel says in the page why the guest stopped; a handler here does what the instruction or the access means on
//! the board and moves the guest behind it, or lets it take an exception, all in the page. Nothing here enters the guest.

mod control;
mod io;
mod msr;
mod straight;

pub(crate) use straight::{access_quietly, arm_timer_quietly};

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::guest::{DOORBELL_CALL, DOORBELL_CALL_LENGTH};
use hypercall_abi::vcpu::{ACTIVITY_HALTED, Event, Groups, gpr};
use iced_x86::Mnemonic;
use vdev::guest_mem::GuestMemory;
use vmm_protocol::outcome::Outcome;

use crate::board::{Board, Time};
use crate::cpuid::{CpuidState, GuestCpu, depends_on};
use crate::emulate::{DecodeCache, decode_exiting, verify_length};
use crate::fault::{DEBUG_EXCEPTION, Fault, PAGE_FAULT, Trouble};
use crate::layout::Layout;
use crate::log::Log;
use crate::msr::Msrs;
use crate::vcpu::{
    MODE, Vcpu, code_bits, complete_instruction, privilege_level, read_edx_eax, write_edx_eax,
};

/// KVM_ENOSYS: no such hypercall.
const KVM_ENOSYS: i64 = -1000;
/// KVM_EPERM: only the guest's kernel may call.
const KVM_EPERM: i64 = -1;

/// What became of an exit. Small: nearly every exit is resumed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    /// The guest goes on.
    Resume,
    /// The VM ended.
    End(Box<Outcome>),
}

impl Handled {
    #[cold]
    fn end(outcome: Outcome) -> Handled {
        Handled::End(Box::new(outcome))
    }
}

/// Everything that an exit may concern.
pub(crate) struct Exit<'a, V, M> {
    pub(crate) vcpu: &'a mut V,
    pub(crate) memory: &'a mut M,
    pub(crate) board: &'a mut Board,
    pub(crate) msrs: &'a mut Msrs,
    pub(crate) cpu: &'a GuestCpu,
    pub(crate) decoded: &'a mut DecodeCache,
    pub(crate) layout: Layout,
    pub(crate) log: &'a mut Log,
    pub(crate) now: Time,
}

impl<V: Vcpu, M: GuestMemory> Exit<'_, V, M> {
    /// Handles the exit in the page. An exception is already in the page when this returns.
    pub(crate) fn handle(&mut self) -> Handled {
        let Some(kind) = self.vcpu.page().exit() else {
            return unsupported(format!("exit kind {}", self.vcpu.page().exit_kind));
        };
        match self.dispatch(kind) {
            Ok(handled) => handled,
            Err(trouble) => self.fail(trouble),
        }
    }

    #[cold]
    fn fail(&mut self, trouble: Trouble) -> Handled {
        match trouble {
            Trouble::Fault(fault) => {
                fault.raise(self.vcpu);
                Handled::Resume
            }
            Trouble::Unsupported(what) => unsupported(what),
        }
    }

    fn dispatch(&mut self, kind: ExitKind) -> Result<Handled, Trouble> {
        match kind {
            // The guest's timer, mostly: it is about to account for what passed.
            ExitKind::Deadline => {
                self.board.tell_steal_time(self.memory, self.now);
                Ok(Handled::Resume)
            }
            // The run loop's business: what there is to do is found before the next entry.
            ExitKind::Poked
            | ExitKind::Notified
            | ExitKind::InterruptWindow
            | ExitKind::NmiWindow
            // The only CPU of a VM gets no start-up messages.
            | ExitKind::Init => Ok(Handled::Resume),
            ExitKind::Eoi => Ok(self.end_of_interrupt()),
            ExitKind::Hlt => self.halt(),
            ExitKind::Cpuid => self.cpuid(),
            ExitKind::PortIo => self.port_io(),
            ExitKind::NestedFault => self.nested_fault(),
            ExitKind::MsrRead => self.msr_read(),
            ExitKind::MsrWrite => self.msr_write(),
            ExitKind::ControlAccess => self.control_access(),
            ExitKind::DebugAccess => self.debug_access(),
            ExitKind::Hypercall => self.hypercall(),
            ExitKind::Exception => {
                self.put_back_event();
                Err(self.reflected_exception().into())
            }
            ExitKind::Xsetbv => self.xsetbv(),
            ExitKind::Rdtsc => self.rdtsc(),
            // Caches are coherent and the TLB is the kernel's business.
            ExitKind::CacheControl | ExitKind::Pause | ExitKind::Invlpg => self.complete(kind),
            // None of these is in CPUID.
            ExitKind::Monitor | ExitKind::VirtInstruction => Err(Fault::UNDEFINED.into()),
            ExitKind::Rdpmc => Err(Fault::PROTECTION.into()),
            ExitKind::TripleFault => Ok(Handled::end(Outcome::TripleFault { rip: self.vcpu.page().rip })),
            ExitKind::EntryFailure => {
                let [rule, detail, ..] = self.vcpu.page().exit_info;
                Ok(Handled::end(Outcome::EntryFailure { rule, detail }))
            }
            ExitKind::TaskSwitch => Err(self.unsupported("a hardware task switch")),
            ExitKind::Unhandled => {
                let [vendor, reason, qualification, ..] = self.vcpu.page().exit_info;
                let vendor = if vendor == 0 { "VMX" } else { "SVM" };
                Err(self.unsupported(&format!("{vendor} exit {reason:#x}, qualification {qualification:#x}")))
            }
        }
    }

    /// The length of the exiting instruction.
    #[inline]
    fn length(&mut self, kind: ExitKind) -> Result<u8, Trouble> {
        verify_length(self.vcpu, self.memory, self.decoded, kind)
    }

    /// Moves behind the exiting instruction, all of which was done.
    fn complete(&mut self, kind: ExitKind) -> Result<Handled, Trouble> {
        let length = self.length(kind)?;
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    fn unsupported(&mut self, what: &str) -> Trouble {
        Trouble::Unsupported(format!("{what} at {:#x}", self.vcpu.page().rip))
    }

    fn halt(&mut self) -> Result<Handled, Trouble> {
        self.complete(ExitKind::Hlt)?;
        let page = self.vcpu.page();
        // A single-step trap behind HLT ends it at once.
        if !page.inject.is_valid() {
            page.activity = ACTIVITY_HALTED;
            page.dirty |= Groups::RIP.bits();
        }
        Ok(Handled::Resume)
    }

    fn cpuid(&mut self) -> Result<Handled, Trouble> {
        let length = self.length(ExitKind::Cpuid)?;
        let apic_id = self.board.lapic.apic_id();
        let page = self.vcpu.page();
        let (leaf, subleaf) = (page.gpr[gpr::RAX] as u32, page.gpr[gpr::RCX] as u32);
        let page = self.vcpu.state(depends_on(leaf));
        let state = CpuidState { cr4: page.cr4, xcr0: page.xcr0, apic_id };
        let regs = self.cpu.cpuid(leaf, subleaf, &state);
        for (index, value) in
            [(gpr::RAX, regs.eax), (gpr::RBX, regs.ebx), (gpr::RCX, regs.ecx), (gpr::RDX, regs.edx)]
        {
            page.gpr[index] = value.into();
        }
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    /// The kernel ended an interrupt of which the I/O APIC must hear; the guest is behind the instruction.
    fn end_of_interrupt(&mut self) -> Handled {
        let [vector, ..] = self.vcpu.page().exit_info;
        let effect = self.board.lapic.ended(vector as u8);
        self.board.apply(effect);
        Handled::Resume
    }

    /// A doorbell call that the kernel binds to nothing is a paravirtual device's. Other calls are KVM's interface (Linux
    /// Documentation/virt/kvm/x86/hypercalls.rst). CPUID offers nothing that needs a call.
    fn hypercall(&mut self) -> Result<Handled, Trouble> {
        let page = self.vcpu.page();
        let (level, rax) = (page.exit_info[0], page.gpr[gpr::RAX]);
        if level == 0 && rax & !0xffff == DOORBELL_CALL && self.board.pv.has_doorbell(rax as u16) {
            if let Some(line) = self.board.ring_pv(rax as u16, self.memory) {
                self.log.add(self.now.host, || line);
            }
            complete_instruction(self.vcpu, DOORBELL_CALL_LENGTH as u8);
            return Ok(Handled::Resume);
        }
        self.kvm_hypercall()
    }

    fn kvm_hypercall(&mut self) -> Result<Handled, Trouble> {
        let length = self.length(ExitKind::Hypercall)?;
        let page = self.vcpu.state(MODE);
        let result = if privilege_level(page) == 0 { KVM_ENOSYS } else { KVM_EPERM } as u64;
        page.gpr[gpr::RAX] = if code_bits(page) == 64 { result } else { result & 0xffff_ffff };
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    /// The event whose delivery an exception interrupted makes room for it. Interrupts come again behind its handler, as
    /// those that a CPU had not taken yet; exceptions and INT n come again with their instruction.
    fn put_back_event(&mut self) {
        let page = self.vcpu.page();
        let event = core::mem::replace(&mut page.inject, Event::NONE);
        match event.kind() {
            _ if !event.is_valid() => {}
            Event::EXTERNAL => self.board.lapic.retract(event.vector()),
            Event::NMI => self.board.raise_nmi(),
            _ => {}
        }
    }

    /// An exception that the page's bitmap asked for, or that interrupted a delivery: the guest takes it as if nobody
    /// had looked.
    fn reflected_exception(&mut self) -> Fault {
        const WITH_ERROR_CODE: u32 = 0x6022_7d00;
        let [vector, code, detail, ..] = self.vcpu.page().exit_info;
        let vector = vector as u8 & 31;
        if vector == DEBUG_EXCEPTION {
            self.note_debug_exception(detail);
        }
        Fault {
            vector,
            error_code: (WITH_ERROR_CODE >> vector & 1 != 0).then_some(code as u32),
            address: (vector == PAGE_FAULT).then_some(detail),
        }
    }

    /// What a CPU does when it delivers a #DB: the exit came before (SDM 3B 17.2.3, 17.2.4).
    fn note_debug_exception(&mut self, causes: u64) {
        const DR6_BREAKPOINTS: u64 = 0xf;
        const DR6_CAUSES: u64 = 0xe00f;
        const DR7_GENERAL_DETECT: u64 = 1 << 13;
        let page = self.vcpu.state(Groups::DEBUG);
        page.dr6 = page.dr6 & !DR6_BREAKPOINTS | causes & DR6_CAUSES;
        page.dr7 &= !DR7_GENERAL_DETECT;
        page.dirty |= Groups::DEBUG.bits();
    }

    /// XSETBV (SDM 2B): the CPU has checked CR4.OSXSAVE, and on VMX the privilege level.
    fn xsetbv(&mut self) -> Result<Handled, Trouble> {
        const XCR0_SSE_AVX: u64 = 0b110;
        const XCR0_AVX: u64 = 1 << 2;
        const XCR0_AVX512: u64 = 0b111 << 5;
        let length = self.length(ExitKind::Xsetbv)?;
        let supported = self.cpu.xcr0();
        let page = self.vcpu.state(MODE | Groups::XCR0);
        let value = read_edx_eax(page);
        let has_all = |needed: u64| value & needed == needed;
        let is_valid = privilege_level(page) == 0
            && page.gpr[gpr::RCX] as u32 == 0
            && value & 1 != 0
            && value & !supported == 0
            && (value & XCR0_AVX == 0 || has_all(XCR0_SSE_AVX))
            && (value & XCR0_AVX512 == 0 || has_all(XCR0_AVX512 | XCR0_SSE_AVX));
        if !is_valid {
            return Err(Fault::PROTECTION.into());
        }
        page.xcr0 = value;
        page.dirty |= Groups::XCR0.bits();
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    fn rdtsc(&mut self) -> Result<Handled, Trouble> {
        let instruction = decode_exiting(self.vcpu, self.memory, self.decoded, ExitKind::Rdtsc)?;
        let now = self.now.guest;
        write_edx_eax(self.vcpu.page(), now);
        if instruction.mnemonic() == Mnemonic::Rdtscp {
            let page = self.vcpu.state(Groups::SYSCALL);
            page.gpr[gpr::RCX] = page.tsc_aux & 0xffff_ffff;
        }
        complete_instruction(self.vcpu, instruction.len() as u8);
        Ok(Handled::Resume)
    }
}

fn unsupported(what: String) -> Handled {
    Handled::end(Outcome::Unsupported { what })
}
