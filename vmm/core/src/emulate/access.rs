//! Memory by linear address: RAM where there is RAM, devices elsewhere.

use hypercall_abi::vcpu::VcpuPage;
use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::walk::{Access, Paging};
use crate::fault::Fault;
use crate::vcpu::code_bits;

const PAGE_SIZE: u64 = 4096;

/// The access that made the CPU exit. It has translated the address by the guest's page tables, checked that they allow it
/// and set their flags: all this need not be done again.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    /// The linear address, if the hardware says it.
    pub linear: Option<u64>,
    /// The guest-physical address.
    pub physical: u64,
    /// It was a write.
    pub is_write: bool,
}

impl Reached {
    /// The guest-physical address of an access by the instruction that exited, if this is the translation that the CPU made.
    ///
    /// Where the hardware does not say the linear address, the offset in the page must do: an instruction with one operand
    /// in memory reaches memory there only.
    fn translate(&self, linear: u64, size: usize, access: Access) -> Option<u64> {
        let is_same = match self.linear {
            Some(reached) => reached == linear,
            None => (self.physical ^ linear).is_multiple_of(PAGE_SIZE),
        };
        let is_allowed = access == Access::Read || self.is_write;
        let is_in_page = linear % PAGE_SIZE + size as u64 <= PAGE_SIZE;
        (is_same && is_allowed && is_in_page).then_some(self.physical)
    }
}

/// The address space that an instruction works on.
pub(super) struct LinearSpace<'a, M, D> {
    pub(super) memory: &'a mut M,
    pub(super) devices: &'a mut D,
    /// What the CPU did before it exited.
    pub(super) reached: Option<Reached>,
}

/// Where the bytes of an access are; it may cross one page boundary.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    first_size: usize,
    second: u64,
}

impl<'a, M: GuestMemory, D: Devices> LinearSpace<'a, M, D> {
    /// Guest memory and devices; the CPU did not say what it reached.
    pub(super) fn new(memory: &'a mut M, devices: &'a mut D) -> Self {
        LinearSpace {
            memory,
            devices,
            reached: None,
        }
    }

    /// Reads `size` bytes, at most 8, in the address space of a vCPU whose page has [`crate::vcpu::MODE`].
    pub(super) fn read(&mut self, page: &VcpuPage, linear: u64, size: usize) -> Result<u64, Fault> {
        let place = self.locate(page, linear, size, Access::Read)?;
        let mut bytes = [0; 8];
        let (first, second) = bytes[..size].split_at_mut(place.first_size);
        self.read_part(place.first, first);
        self.read_part(place.second, second);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` bytes of `value`, at most 8. Either all of them are written or none.
    pub(super) fn write(
        &mut self,
        page: &VcpuPage,
        linear: u64,
        size: usize,
        value: u64,
    ) -> Result<(), Fault> {
        let place = self.locate(page, linear, size, Access::Write)?;
        let bytes = value.to_le_bytes();
        let (first, second) = bytes[..size].split_at(place.first_size);
        self.write_part(place.first, first);
        self.write_part(place.second, second);
        Ok(())
    }

    /// Faults as [`Self::write`] would.
    pub(super) fn check_write(&mut self, page: &VcpuPage, linear: u64, size: usize) -> Result<(), Fault> {
        self.locate(page, linear, size, Access::Write).map(|_| ())
    }

    /// The device memory at a linear address, if it is where the CPU was when it exited.
    pub(super) fn reached(&self, linear: u64, size: usize, access: Access) -> Option<u64> {
        self.reached?.translate(linear, size, access)
    }

    fn locate(&mut self, page: &VcpuPage, linear: u64, size: usize, access: Access) -> Result<Place, Fault> {
        if let Some(first) = self.reached(linear, size, access) {
            return Ok(Place {
                first,
                first_size: size,
                second: 0,
            });
        }
        let paging = Paging::of(page);
        let first = paging.translate(self.memory, linear, access)?;
        let in_page = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        if size <= in_page {
            return Ok(Place {
                first,
                first_size: size,
                second: 0,
            });
        }
        let next = linear.wrapping_add(in_page as u64);
        // Linear addresses have 32 bits outside 64-bit mode.
        let next = if code_bits(page) == 64 {
            next
        } else {
            next & 0xffff_ffff
        };
        let second = paging.translate(self.memory, next, access)?;
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
