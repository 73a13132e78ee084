//! Ports and device memory.

use alloc::format;
use hypercall_abi::exit::{ExitKind, NestedFault, PortIo};
use hypercall_abi::vcpu::gpr;
use vdev::guest_mem::GuestMemory;
use vmm_protocol::outcome::Outcome;

use super::{Exit, Handled};
use crate::board::{Board, Time};
use crate::emulate::{Cause, Devices, emulate, emulate_move};
use crate::fault::{Fault, Trouble};
use crate::vcpu::{MODE, Vcpu, complete_instruction, privilege_level};

/// The board at one moment.
pub(super) struct BoardNow<'a> {
    board: &'a mut Board,
    now: Time,
}

impl Devices for BoardNow<'_> {
    fn read_memory(&mut self, address: u64, size: u8) -> u64 {
        self.board.read_memory(address, size, self.now)
    }

    fn write_memory(&mut self, address: u64, size: u8, value: u64) {
        self.board.write_memory(address, size, value, self.now);
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        self.board.read_port(port, size, self.now)
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        self.board.write_port(port, size, value, self.now);
    }
}

impl<V: Vcpu, M: GuestMemory> Exit<'_, V, M> {
    pub(super) fn port_io(&mut self) -> Result<Handled, Trouble> {
        let PortIo { port, size, is_in, is_string, .. } = PortIo::decode(self.vcpu.page().exit_info[0]);
        if is_string {
            // Segment and address size are in the instruction, and in no vendor's exit information.
            return self.emulate(Cause::Port);
        }
        let length = self.length(ExitKind::PortIo)?;
        let rax = self.vcpu.page().gpr[gpr::RAX];
        if is_in {
            let value = u64::from(self.board.read_port(port, size, self.now));
            self.vcpu.page().gpr[gpr::RAX] = match size {
                1 => rax & !0xff | value & 0xff,
                2 => rax & !0xffff | value & 0xffff,
                _ => value,
            };
        } else {
            self.board.write_port(port, size, rax as u32, self.now);
        }
        complete_instruction(self.vcpu, length);
        Ok(Handled::Resume)
    }

    pub(super) fn nested_fault(&mut self) -> Result<Handled, Trouble> {
        let [address, cause, ..] = self.vcpu.page().exit_info;
        let cause = NestedFault::from_bits_retain(cause);
        if self.layout.is_ram(address) {
            return self.missing_ram(address);
        }
        let inject = self.vcpu.page().inject;
        if inject.is_valid() {
            let vector = inject.vector();
            return Err(self.unsupported(&format!(
                "delivery of vector {vector} reached {address:#x}, where there is no RAM,"
            )));
        }
        if cause.contains(NestedFault::EXECUTE) && !cause.contains(NestedFault::PAGE_WALK) {
            // What the CPU would fetch there are ones, which are no instruction.
            let rip = self.vcpu.page().rip;
            self.log.add(self.now.host, || {
                format!("the guest executes {address:#x}, where there is no RAM, at {rip:#x}")
            });
            return Err(Fault::UNDEFINED.into());
        }
        let mut devices = BoardNow { board: self.board, now: self.now };
        if emulate_move(self.vcpu, self.memory, &mut devices, self.decoded) {
            return Ok(Handled::Resume);
        }
        self.emulate(Cause::Memory)
    }

    /// The guest touched memory that it had given away. It does so again; an event whose delivery that interrupted is in the
    /// page, to be delivered afresh.
    #[cold]
    fn missing_ram(&mut self, address: u64) -> Result<Handled, Trouble> {
        if self.memory.restore(address) {
            return Ok(Handled::Resume);
        }
        Ok(Handled::end(Outcome::OutOfMemory))
    }

    fn emulate(&mut self, cause: Cause) -> Result<Handled, Trouble> {
        let mut devices = BoardNow { board: self.board, now: self.now };
        let done = emulate(self.vcpu, self.memory, &mut devices, self.decoded, cause);
        match done {
            Ok(()) => Ok(Handled::Resume),
            // What a process of the guest does with a device that it was given must not end the guest.
            Err(Trouble::Unsupported(what)) if privilege_level(self.vcpu.state(MODE)) == 3 => {
                self.log.add(self.now.host, || what);
                Err(Fault::UNDEFINED.into())
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// What the emulator works on.
    pub(super) fn with_devices<T>(&mut self, work: impl FnOnce(&mut V, &mut M, &mut BoardNow<'_>) -> T) -> T {
        let mut devices = BoardNow { board: self.board, now: self.now };
        work(self.vcpu, self.memory, &mut devices)
    }
}
