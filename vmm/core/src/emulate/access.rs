//! Memory by linear address: RAM where there is RAM, devices elsewhere.

use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::walk::{Access, Paging};
use crate::fault::Fault;
use crate::vcpu::{MODE, Vcpu, code_bits};

const PAGE_SIZE: u64 = 4096;

/// The address space that an instruction works on.
pub(super) struct LinearSpace<'a, M, D> {
    pub(super) memory: &'a mut M,
    pub(super) devices: &'a mut D,
    paging: Paging,
    /// Linear addresses have 32 bits outside 64-bit mode.
    linear_mask: u64,
}

/// Where the bytes of an access are; it may cross one page boundary.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    first_size: usize,
    second: u64,
}

impl<'a, M: GuestMemory, D: Devices> LinearSpace<'a, M, D> {
    /// The address space of a vCPU as it is now.
    pub(super) fn of(vcpu: &mut impl Vcpu, memory: &'a mut M, devices: &'a mut D) -> Self {
        let page = vcpu.state(MODE);
        LinearSpace {
            memory,
            devices,
            paging: Paging::of(page),
            linear_mask: if code_bits(page) == 64 {
                u64::MAX
            } else {
                0xffff_ffff
            },
        }
    }

    /// Reads `size` bytes, at most 8.
    pub(super) fn read(&mut self, linear: u64, size: usize) -> Result<u64, Fault> {
        let place = self.locate(linear, size, Access::Read)?;
        let mut bytes = [0; 8];
        let (first, second) = bytes[..size].split_at_mut(place.first_size);
        self.read_part(place.first, first);
        self.read_part(place.second, second);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` bytes of `value`, at most 8. Either all of them are written or none.
    pub(super) fn write(&mut self, linear: u64, size: usize, value: u64) -> Result<(), Fault> {
        let place = self.locate(linear, size, Access::Write)?;
        let bytes = value.to_le_bytes();
        let (first, second) = bytes[..size].split_at(place.first_size);
        self.write_part(place.first, first);
        self.write_part(place.second, second);
        Ok(())
    }

    /// Faults as [`Self::write`] would.
    pub(super) fn check_write(&mut self, linear: u64, size: usize) -> Result<(), Fault> {
        self.locate(linear, size, Access::Write).map(|_| ())
    }

    fn locate(&mut self, linear: u64, size: usize, access: Access) -> Result<Place, Fault> {
        let first = self.paging.translate(self.memory, linear, access)?;
        let in_page = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        if size <= in_page {
            return Ok(Place {
                first,
                first_size: size,
                second: 0,
            });
        }
        let next = linear.wrapping_add(in_page as u64) & self.linear_mask;
        let second = self.paging.translate(self.memory, next, access)?;
        Ok(Place {
            first,
            first_size: in_page,
            second,
        })
    }

    fn read_part(&mut self, address: u64, into: &mut [u8]) {
        if into.is_empty() || self.memory.read(address, into).is_ok() {
            return;
        }
        let value = self.devices.read_memory(address, into.len() as u8).to_le_bytes();
        into.copy_from_slice(&value[..into.len()]);
    }

    fn write_part(&mut self, address: u64, from: &[u8]) {
        if from.is_empty() || self.memory.write(address, from).is_ok() {
            return;
        }
        let mut value = [0; 8];
        value[..from.len()].copy_from_slice(from);
        self.devices
            .write_memory(address, from.len() as u8, u64::from_le_bytes(value));
    }
}
