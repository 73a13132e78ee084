//! Memory by linear address: RAM where there is RAM, devices elsewhere.

use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::walk::{Access, Paging};
use crate::fault::Fault;

const PAGE_SIZE: u64 = 4096;

/// The address space that an instruction works on.
pub(super) struct LinearSpace<'a, M, D> {
    pub(super) memory: &'a mut M,
    pub(super) devices: &'a mut D,
    pub(super) paging: Paging,
}

/// Where the bytes of an access are; it may cross one page boundary.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    first_size: usize,
    second: u64,
}

impl<M: GuestMemory, D: Devices> LinearSpace<'_, M, D> {
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
        let second = self
            .paging
            .translate(self.memory, linear.wrapping_add(in_page as u64), access)?;
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
