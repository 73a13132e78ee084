//! The straight path of accesses to registers by plain moves.

use hypercall_abi::exit::ExitKind;
use vdev::guest_mem::GuestMemory;

use crate::board::Board;
use crate::emulate::{DecodeCache, Registers, move_to};
use crate::vcpu::Vcpu;

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
