//! Memory by linear address: RAM where there is RAM, devices elsewhere.

use hypercall_abi::exit::NestedFault;
use hypercall_abi::vcpu::VcpuPage;
use vdev::guest_mem::GuestMemory;

use super::Devices;
use super::walk::{Access, Paging};
use crate::fault::Fault;
use crate::vcpu::code_bits;

const PAGE_SIZE: u64 = 4096;

/// The guest-physical address of an access, if it is the one that made the CPU exit ([`NestedFault`]). The CPU has
/// translated the address by the guest's page tables, checked that they allow the access and set their flags: all
/// this need not be done again. Where an instruction has more than one access, another may have made it exit.
///
/// Where the hardware does not say the linear address, the offset in the page must do.
#[inline]
pub(super) fn reached(page: &VcpuPage, linear: u64, size: usize, access: Access) -> Option<u64> {
    let [physical, flags, reported, ..] = page.exit_info;
    let flags = NestedFault::from_bits_retain(flags);
    let is_same = if flags.contains(NestedFault::LINEAR_VALID) {
        reported == linear
    } else {
        (physical ^ linear).is_multiple_of(PAGE_SIZE)
    };
    // An access of the page walk is none of the instruction, nor is its fetch.
    let foreign = NestedFault::PAGE_WALK | NestedFault::EXECUTE;
    let is_own = match access {
        Access::Write => flags & (foreign | NestedFault::WRITE) == NestedFault::WRITE,
        _ => !flags.intersects(foreign),
    };
    let is_in_page = linear % PAGE_SIZE + size as u64 <= PAGE_SIZE;
    (is_own && is_same && is_in_page).then_some(physical)
}

/// The address space that an instruction works on.
pub(super) struct LinearSpace<'a, M, D> {
    pub(super) memory: &'a mut M,
    pub(super) devices: &'a mut D,
    /// The instruction reaches memory at one address only: its access is the one that the exit in the page reports.
    pub(super) has_one_access: bool,
}

/// Where the bytes of an access are; it may cross one page boundary.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    first_size: usize,
    second: u64,
}

impl<'a, M: GuestMemory, D: Devices> LinearSpace<'a, M, D> {
    /// Guest memory and devices, for any number of accesses.
    pub(super) fn new(memory: &'a mut M, devices: &'a mut D) -> Self {
        LinearSpace { memory, devices, has_one_access: false }
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

    /// [`reached`], if the instruction has one access only.
    #[inline]
    pub(super) fn reached(&self, page: &VcpuPage, linear: u64, size: usize, access: Access) -> Option<u64> {
        if self.has_one_access { reached(page, linear, size, access) } else { None }
    }

    fn locate(&mut self, page: &VcpuPage, linear: u64, size: usize, access: Access) -> Result<Place, Fault> {
        if let Some(first) = self.reached(page, linear, size, access) {
            return Ok(Place { first, first_size: size, second: 0 });
        }
        let paging = Paging::of(page);
        let first = paging.translate(self.memory, linear, access)?;
        let in_page = (PAGE_SIZE - linear % PAGE_SIZE) as usize;
        if size <= in_page {
            return Ok(Place { first, first_size: size, second: 0 });
        }
        let next = linear.wrapping_add(in_page as u64);
        // Linear addresses have 32 bits outside 64-bit mode.
        let next = if code_bits(page) == 64 { next } else { next & 0xffff_ffff };
        let second = paging.translate(self.memory, next, access)?;
        Ok(Place { first, first_size: in_page, second })
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
        self.devices.write_memory(address, from.len() as u8, u64::from_le_bytes(value));
    }
}
