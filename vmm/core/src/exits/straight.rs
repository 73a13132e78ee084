//! The straight path of exits of which next to nothing follows: accesses to registers by plain moves, and arming the timer.

use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::gpr;
use vdev::guest_mem::GuestMemory;
use vdev::lapic::IA32_TSC_DEADLINE;

use crate::board::{Board, Time};
use crate::cpuid::GuestCpu;
use crate::emulate::{DecodeCache, Registers, move_to, verify_length};
use crate::vcpu::{Vcpu, complete_instruction, read_edx_eax};

/// The registers of which an access has no other effect: no interrupt, no deadline, and nothing is to be done.
struct Quiet<'a>(&'a mut Board);

impl Registers for Quiet<'_> {
    #[inline(always)]
    fn load(&mut self, address: u64, size: u8) -> Option<u64> {
        self.0.read_quietly(address, size)
    }

    #[inline(always)]
    fn store(&mut self, address: u64, size: u8, value: u64) -> bool {
        self.0.write_quietly(address, size, value)
    }
}

/// The register by which the driver of a virtio device ends an interrupt.
struct Acknowledge<'a> {
    board: &'a mut Board,
    device: usize,
}

impl Registers for Acknowledge<'_> {
    #[inline(always)]
    fn load(&mut self, _: u64, _: u8) -> Option<u64> {
        None
    }

    #[inline(always)]
    fn store(&mut self, _: u64, size: u8, value: u64) -> bool {
        size == 4 && self.board.acknowledge_quietly(self.device, value as u32)
    }
}

/// Does what the exit in the page asks for if that is an access by a plain move to a register of which nothing else follows. Says
/// whether it was so; else nothing was done.
#[inline(always)]
pub(crate) fn access_quietly(
    vcpu: &mut impl Vcpu,
    memory: &impl GuestMemory,
    board: &mut Board,
    decoded: &mut DecodeCache,
) -> bool {
    let page = vcpu.page();
    if page.exit_kind != ExitKind::NestedFault as u32 || page.inject.is_valid() {
        return false;
    }
    if board.may_be_quiet(page.exit_info[0]) {
        return move_to(vcpu, memory, &mut Quiet(board), decoded);
    }
    acknowledge(vcpu, memory, board, decoded)
}

/// As [`access_quietly`], for the end of a virtio device's interrupt.
#[inline(never)]
fn acknowledge(
    vcpu: &mut impl Vcpu,
    memory: &impl GuestMemory,
    board: &mut Board,
    decoded: &mut DecodeCache,
) -> bool {
    let device = board.acknowledged_at(vcpu.page().exit_info[0]);
    device.is_some_and(|device| move_to(vcpu, memory, &mut Acknowledge { board, device }, decoded))
}

/// Does what the exit in the page, a write of an MSR, asks for if that arms the timer for a time to come. Says whether it was so; else
/// nothing was done.
#[inline(never)]
pub(crate) fn arm_timer_quietly(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    board: &mut Board,
    cpu: &GuestCpu,
    decoded: &mut DecodeCache,
    now: u64,
) -> bool {
    let page = vcpu.page();
    let is_it = page.gpr[gpr::RCX] as u32 == IA32_TSC_DEADLINE && cpu.has_tsc_deadline();
    if !is_it || page.inject.is_valid() {
        return false;
    }
    let (deadline, now) = (read_edx_eax(page), Time::at(now, page));
    let Ok(length) = verify_length(vcpu, memory, decoded, ExitKind::MsrWrite) else {
        return false;
    };
    let is_armed = board.lapic.arm_quietly(deadline, now.guest);
    if is_armed {
        complete_instruction(vcpu, length);
    }
    is_armed
}
