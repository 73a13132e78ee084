//! The straight path of accesses to devices by plain moves.

use hypercall_abi::exit::ExitKind;
use vdev::guest_mem::GuestMemory;

use crate::board::{Board, Time};
use crate::emulate::{DecodeCache, Devices, emulate_move};
use crate::layout;
use crate::vcpu::Vcpu;

/// The board's memory at one moment, with a note of what is accessed.
struct Registers<'a> {
    board: &'a mut Board,
    now: u64,
    tsc_offset: u64,
    /// Nothing but registers that the guest accesses changed: no interrupt, no deadline, and nothing is to be done.
    is_quiet: bool,
}

impl Registers<'_> {
    fn time(&self) -> Time {
        Time { host: self.now, guest: self.now.wrapping_add(self.tsc_offset) }
    }
}

impl Devices for Registers<'_> {
    #[inline(always)]
    fn read_memory(&mut self, address: u64, size: u8) -> u64 {
        self.board.read_quietly(address, size).unwrap_or_else(|| {
            self.is_quiet = false;
            self.board.read_memory(address, size, self.time())
        })
    }

    #[inline(always)]
    fn write_memory(&mut self, address: u64, size: u8, value: u64) {
        if !self.board.write_quietly(address, size, value) {
            self.is_quiet = false;
            self.board.write_memory(address, size, value, self.time());
        }
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        self.board.read_port(port, size, self.time())
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        self.board.write_port(port, size, value, self.time());
    }
}

/// Does what the exit in the page asks for if that is an access to a device by a plain move. Returns whether nothing else follows
/// from it; `None` if it is another exit, and nothing was done. `now` is the host's TSC.
#[inline(always)]
pub(crate) fn access_by_move(
    vcpu: &mut impl Vcpu,
    memory: &impl GuestMemory,
    board: &mut Board,
    decoded: &mut DecodeCache,
    now: u64,
) -> Option<bool> {
    let page = vcpu.page();
    let is_access = page.exit_kind == ExitKind::NestedFault as u32
        && layout::is_device(page.exit_info[0])
        && !page.inject.is_valid();
    if !is_access {
        return None;
    }
    let mut registers = Registers { board, now, tsc_offset: page.tsc_offset, is_quiet: true };
    emulate_move(vcpu, memory, &mut registers, decoded).then_some(registers.is_quiet)
}
