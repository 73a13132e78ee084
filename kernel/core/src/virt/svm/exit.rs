//! From the exit code to the vendor-neutral exit (APM 15.6 to 15.15, appendix C).

use super::intercepts::MACHINE_CHECK;
use super::processor::{Processor, SvmFeatures};
use super::segment::cpl;
use super::vmcb::Vmcb;
use hypercall_abi::exit::{ControlAccess, ControlOperation, ExitKind, NestedFault, PortIo};
use hypercall_abi::vcpu::{Event, Groups};

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A physical interrupt is pending.
    HostInterrupt,
    /// A physical NMI is pending.
    HostNmi,
    /// A machine check: the exception was taken by the exit.
    HostMachineCheck,
    /// The guest could take a virtual interrupt.
    Window,
    /// The guest is about to execute IRET.
    Iret,
    /// VMRUN refused the VMCB.
    Refused,
    /// For the VMM, or for the kernel to answer in its place.
    Guest(GuestExit),
}

/// An exit in the terms of the vCPU page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestExit {
    /// Why.
    pub kind: ExitKind,
    /// Details, as [`ExitKind`] says.
    pub info: [u64; 6],
    /// How many words of `info` mean something.
    pub info_words: usize,
    /// Length of the instruction, 0 where the hardware does not say.
    pub length: u32,
    /// State that the VMM needs to act on the exit, beyond what it wants where it decodes an instruction.
    pub needs: Groups,
    /// It has to decode the instruction.
    pub decodes: bool,
}

/// Exit codes (APM appendix C).
mod code {
    pub(super) const CR_READ: u64 = 0x00;
    pub(super) const CR_READ_LAST: u64 = 0x0f;
    pub(super) const CR_WRITE: u64 = 0x10;
    pub(super) const CR_WRITE_LAST: u64 = 0x1f;
    pub(super) const DR_READ: u64 = 0x20;
    pub(super) const DR_READ_LAST: u64 = 0x2f;
    pub(super) const DR_WRITE: u64 = 0x30;
    pub(super) const DR_WRITE_LAST: u64 = 0x3f;
    pub(super) const EXCEPTION: u64 = 0x40;
    pub(super) const EXCEPTION_LAST: u64 = 0x5f;
    pub(super) const INTR: u64 = 0x60;
    pub(super) const NMI: u64 = 0x61;
    pub(super) const INIT: u64 = 0x63;
    pub(super) const VINTR: u64 = 0x64;
    pub(super) const RDTSC: u64 = 0x6e;
    pub(super) const RDPMC: u64 = 0x6f;
    pub(super) const CPUID: u64 = 0x72;
    pub(super) const IRET: u64 = 0x74;
    pub(super) const INVD: u64 = 0x76;
    pub(super) const PAUSE: u64 = 0x77;
    pub(super) const HLT: u64 = 0x78;
    pub(super) const INVLPG: u64 = 0x79;
    pub(super) const INVLPGA: u64 = 0x7a;
    pub(super) const IOIO: u64 = 0x7b;
    pub(super) const MSR: u64 = 0x7c;
    pub(super) const TASK_SWITCH: u64 = 0x7d;
    pub(super) const SHUTDOWN: u64 = 0x7f;
    pub(super) const VMRUN: u64 = 0x80;
    pub(super) const VMMCALL: u64 = 0x81;
    pub(super) const VMLOAD: u64 = 0x82;
    pub(super) const SKINIT: u64 = 0x86;
    pub(super) const RDTSCP: u64 = 0x87;
    pub(super) const WBINVD: u64 = 0x89;
    pub(super) const MONITOR: u64 = 0x8a;
    pub(super) const MWAIT: u64 = 0x8b;
    pub(super) const MWAIT_ARMED: u64 = 0x8c;
    pub(super) const XSETBV: u64 = 0x8d;
    pub(super) const NPF: u64 = 0x400;
    pub(super) const INVALID: u64 = u64::MAX;
    /// QEMU stores the exit code as 32 bits, zero-extended.
    pub(super) const INVALID_32: u64 = 0xffff_ffff;
}

/// What the VMM needs to emulate a memory access: CS and SS for address and mode, control registers for the page walk.
const MEMORY: Groups = Groups::CS_SS.union(Groups::CONTROL).union(Groups::DATA_SEGMENTS);

/// [`ExitKind::PortIo`]: the effective segment is not known.
const NO_SEGMENT: u64 = 0xff;
/// [`ControlAccess::gpr`]: the register is not known.
const NO_GPR: u8 = 0xff;

/// Decodes the exit that is in the control area.
pub fn decode(vmcb: &Vmcb, processor: &Processor) -> Reason {
    let exit_code = vmcb.control.exit_code;
    let guest = match exit_code {
        code::INTR => return Reason::HostInterrupt,
        code::NMI => return Reason::HostNmi,
        code::VINTR => return Reason::Window,
        code::IRET => return Reason::Iret,
        code::INVALID | code::INVALID_32 => return Reason::Refused,
        code::EXCEPTION..=code::EXCEPTION_LAST => {
            let vector = (exit_code - code::EXCEPTION) as u8;
            if vector == MACHINE_CHECK {
                return Reason::HostMachineCheck;
            }
            exception(vmcb, vector)
        }
        code::CR_READ..=code::CR_READ_LAST
        | code::CR_WRITE..=code::CR_WRITE_LAST
        | code::DR_READ..=code::DR_READ_LAST
        | code::DR_WRITE..=code::DR_WRITE_LAST => register_access(vmcb, processor),
        code::IOIO => port_io(vmcb, processor),
        code::NPF => nested_fault(vmcb, processor),
        code::TASK_SWITCH => task_switch(vmcb),
        code::MSR if vmcb.control.exit_info_1 & 1 == 0 => instruction(ExitKind::MsrRead, vmcb, processor),
        code::MSR => instruction(ExitKind::MsrWrite, vmcb, processor),
        code::INVLPG => {
            let has_address = processor.svm.contains(SvmFeatures::DECODE_ASSISTS);
            let mut exit = instruction(ExitKind::Invlpg, vmcb, processor);
            if !has_address {
                exit.decodes = true;
            }
            with_info(exit, &[if has_address { vmcb.control.exit_info_1 } else { 0 }])
        }
        code::VMMCALL => {
            with_info(instruction(ExitKind::Hypercall, vmcb, processor), &[cpl(&vmcb.save) as u64])
        }
        code::INIT => GuestExit::plain(ExitKind::Init),
        code::SHUTDOWN => GuestExit::plain(ExitKind::TripleFault),
        _ => match instruction_kind(exit_code) {
            Some(kind) => instruction(kind, vmcb, processor),
            None => {
                with_info(GuestExit::plain(ExitKind::Unhandled), &[1, exit_code, vmcb.control.exit_info_1])
            }
        },
    };
    Reason::Guest(guest)
}

impl GuestExit {
    /// Whether it is an exception that the kernel gives back to the guest: one that it intercepts for its own sake, and that the
    /// VMM did not ask for (`wanted`). Not if an event waits: two are more than one injection holds, and the VMM decides.
    pub fn is_reflected(&self, wanted: u32, pending: Event) -> bool {
        self.kind == ExitKind::Exception && wanted >> (self.info[0] & 31) & 1 == 0 && !pending.is_valid()
    }
}

/// The kind of an exit that is the VMM's, for the most frequent ones: instructions whose exit code says it all, but for HLT,
/// which may be the kernel's, accesses of MSRs and of one port, VMMCALL, and nested page faults. With the length of the instruction, 0 where the hardware does not say.
#[inline]
pub fn quick(vmcb: &Vmcb, processor: &Processor) -> Option<(ExitKind, u32)> {
    const FIRST: u64 = code::INTR;
    const QUICK: [Option<ExitKind>; 48] = {
        let mut kinds = [None; 48];
        let mut index = 0;
        while index < kinds.len() {
            kinds[index] = match FIRST + index as u64 {
                code::HLT => None,
                code::IOIO => Some(ExitKind::PortIo),
                code::VMMCALL => Some(ExitKind::Hypercall),
                // RDMSR, unless EXITINFO1 says that it is WRMSR.
                code::MSR => Some(ExitKind::MsrRead),
                exit_code => instruction_kind(exit_code),
            };
            index += 1;
        }
        kinds
    };
    let index = vmcb.control.exit_code.wrapping_sub(FIRST) as usize;
    let Some(kind) = QUICK.get(index).copied().flatten() else {
        return (vmcb.control.exit_code == code::NPF).then_some((ExitKind::NestedFault, 0));
    };
    if kind == ExitKind::PortIo {
        let is_string = vmcb.control.exit_info_1 >> 2 & 1 != 0;
        return (!is_string).then(|| (kind, length_to(vmcb, vmcb.control.exit_info_2)));
    }
    let length = if processor.has_next_rip() { length_to(vmcb, vmcb.control.next_rip) } else { 0 };
    if kind == ExitKind::MsrRead && vmcb.control.exit_info_1 & 1 != 0 {
        return Some((ExitKind::MsrWrite, length));
    }
    Some((kind, length))
}

/// Whether it is VMMCALL.
#[inline]
pub fn is_call(vmcb: &Vmcb) -> bool {
    vmcb.control.exit_code == code::VMMCALL
}

/// Whether it is HLT, of which the hardware does not say the length.
#[inline]
pub fn is_bare_halt(vmcb: &Vmcb, processor: &Processor) -> bool {
    vmcb.control.exit_code == code::HLT && !processor.has_next_rip()
}

/// Instructions whose exit code says it all.
const fn instruction_kind(exit_code: u64) -> Option<ExitKind> {
    Some(match exit_code {
        code::RDTSC | code::RDTSCP => ExitKind::Rdtsc,
        code::RDPMC => ExitKind::Rdpmc,
        code::CPUID => ExitKind::Cpuid,
        code::INVD | code::WBINVD => ExitKind::CacheControl,
        code::PAUSE => ExitKind::Pause,
        code::HLT => ExitKind::Hlt,
        code::VMRUN | code::INVLPGA | code::VMLOAD..=code::SKINIT => ExitKind::VirtInstruction,
        code::MONITOR | code::MWAIT | code::MWAIT_ARMED => ExitKind::Monitor,
        code::XSETBV => ExitKind::Xsetbv,
        _ => return None,
    })
}

impl GuestExit {
    /// An exit without details.
    pub const fn plain(kind: ExitKind) -> Self {
        GuestExit { kind, info: [0; 6], info_words: 0, length: 0, needs: Groups::empty(), decodes: false }
    }
}

fn with_info(mut exit: GuestExit, info: &[u64]) -> GuestExit {
    exit.info[..info.len()].copy_from_slice(info);
    exit.info_words = info.len();
    exit
}

/// An exit on an instruction: with nRIP its length is known, without it the VMM fetches it.
fn instruction(kind: ExitKind, vmcb: &Vmcb, processor: &Processor) -> GuestExit {
    let length = if processor.has_next_rip() { length_to(vmcb, vmcb.control.next_rip) } else { 0 };
    GuestExit { length, decodes: length == 0, ..GuestExit::plain(kind) }
}

/// The length of an instruction of which the next one is known; 0 if that is no length (as where RIP wraps at the end
/// of a 16-bit or 32-bit segment).
fn length_to(vmcb: &Vmcb, next_rip: u64) -> u32 {
    match next_rip.wrapping_sub(vmcb.save.rip) {
        length @ 1..=15 => length as u32,
        _ => 0,
    }
}

/// MOV to and from control and debug registers, CLTS, LMSW, SMSW (APM 15.8.1).
fn register_access(vmcb: &Vmcb, processor: &Processor) -> GuestExit {
    const IS_MOV: u64 = 1 << 63;
    let exit_code = vmcb.control.exit_code;
    let is_debug = exit_code >= code::DR_READ;
    let operation = if exit_code & 0x10 != 0 { ControlOperation::Write } else { ControlOperation::Read };
    // Without the MOV bit it is CLTS, LMSW or SMSW; which one, only the instruction bytes say.
    let has_gpr = processor.svm.contains(SvmFeatures::DECODE_ASSISTS)
        && (is_debug || vmcb.control.exit_info_1 & IS_MOV != 0);
    let gpr = if has_gpr { vmcb.control.exit_info_1 as u8 & 0xf } else { NO_GPR };
    let access = ControlAccess { register: exit_code as u8 & 0xf, operation, gpr, source: 0 };
    let kind = if is_debug { ExitKind::DebugAccess } else { ExitKind::ControlAccess };
    let mut exit = with_info(instruction(kind, vmcb, processor), &[access.encode()]);
    exit.decodes |= !has_gpr;
    exit.needs |= if is_debug { Groups::DEBUG } else { Groups::CONTROL };
    exit
}

/// Exceptions (APM 15.12).
fn exception(vmcb: &Vmcb, vector: u8) -> GuestExit {
    /// B0-B3, BD, BS, BT.
    const DR6_CAUSES: u64 = 0xe00f;
    let detail = match vector {
        1 => vmcb.save.dr6 & DR6_CAUSES,
        14 => vmcb.control.exit_info_2,
        _ => 0,
    };
    with_info(GuestExit::plain(ExitKind::Exception), &[vector as u64, vmcb.control.exit_info_1, detail])
}

/// The port access of an IOIO exit (APM 15.10.2).
#[inline]
pub fn port_access(exit_info_1: u64) -> PortIo {
    let bit = |number: u32| exit_info_1 >> number & 1 != 0;
    PortIo {
        port: (exit_info_1 >> 16) as u16,
        size: match exit_info_1 >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4,
        },
        is_in: bit(0),
        is_string: bit(2),
        is_rep: bit(3),
    }
}

/// IN, OUT, INS and OUTS.
fn port_io(vmcb: &Vmcb, processor: &Processor) -> GuestExit {
    let info = vmcb.control.exit_info_1;
    let io = port_access(info);
    let (is_in, is_string) = (io.is_in, io.is_string);
    let segment = match (is_string, is_in) {
        // INS writes through ES, whatever the prefixes say.
        (true, true) => hypercall_abi::vcpu::ES as u64,
        (true, false) if processor.svm.contains(SvmFeatures::DECODE_ASSISTS) => info >> 10 & 7,
        _ => NO_SEGMENT,
    };
    let mut exit = with_info(GuestExit::plain(ExitKind::PortIo), &[io.encode(), segment]);
    // EXITINFO2 is the next RIP on every processor, with nRIP or without.
    exit.length = length_to(vmcb, vmcb.control.exit_info_2);
    exit.decodes = exit.length == 0;
    if is_string {
        exit.needs = MEMORY;
    }
    exit
}

fn nested_fault(vmcb: &Vmcb, processor: &Processor) -> GuestExit {
    let mut exit = with_info(GuestExit::plain(ExitKind::NestedFault), &nested_fault_info(vmcb, processor));
    exit.decodes = true;
    exit
}

/// The words of `exit_info` at a nested page fault (APM 15.25.6).
#[inline]
pub fn nested_fault_info(vmcb: &Vmcb, processor: &Processor) -> [u64; 6] {
    const PRESENT: u64 = 1 << 0;
    const WRITE: u64 = 1 << 1;
    const EXECUTE: u64 = 1 << 4;
    const PAGE_WALK: u64 = 1 << 33;
    let control = &vmcb.control;
    let error = control.exit_info_1;
    let mut fault = NestedFault::empty();
    fault.set(NestedFault::WRITE, error & WRITE != 0);
    fault.set(NestedFault::EXECUTE, error & EXECUTE != 0);
    fault.set(NestedFault::READ, error & (WRITE | EXECUTE) == 0);
    fault.set(NestedFault::PRESENT, error & PRESENT != 0);
    fault.set(NestedFault::PAGE_WALK, error & PAGE_WALK != 0);
    let (mut count, mut bytes) = (0, [0; 16]);
    if processor.svm.contains(SvmFeatures::DECODE_ASSISTS) && control.byte_count <= 15 {
        count = control.byte_count;
        bytes[..15].copy_from_slice(&control.bytes);
    }
    let bytes = u128::from_le_bytes(bytes);
    [control.exit_info_2, fault.bits(), 0, count as u64, bytes as u64, (bytes >> 64) as u64]
}

/// Task switches (APM 15.14.1).
fn task_switch(vmcb: &Vmcb) -> GuestExit {
    const BY_IRET: u64 = 1 << 36;
    const BY_JMP: u64 = 1 << 38;
    const INT_INFO_VALID: u64 = 1 << 31;
    let control = &vmcb.control;
    let source = if control.exit_info_2 & BY_IRET != 0 {
        1
    } else if control.exit_info_2 & BY_JMP != 0 {
        2
    } else if control.exit_int_info & INT_INFO_VALID != 0 {
        3
    } else {
        0
    };
    let mut exit =
        with_info(GuestExit::plain(ExitKind::TaskSwitch), &[control.exit_info_1 & 0xffff | source << 16]);
    exit.needs = MEMORY;
    exit
}

#[cfg(test)]
#[path = "exit_tests.rs"]
mod tests;
