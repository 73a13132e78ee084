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
    let is_access = page.exit_kind == ExitKind::NestedFault as u32
        && board.may_be_quiet(page.exit_info[0])
        && !page.inject.is_valid();
    is_access && move_to(vcpu, memory, &mut Quiet(board), decoded)
}
