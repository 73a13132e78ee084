//! What the drivers need from the kernel that embeds them.

use crate::call::{Instruction, hypercall};
use core::hint::spin_loop;
use core::ptr::NonNull;

/// Memory and notification, as the embedding kernel has them.
///
/// A driver owns one; a zero-sized type, or a reference, is what most kernels pass.
///
/// # Safety
/// The device reads and writes memory where [`Self::translate`] says: an implementation must answer truly, and for as long
/// as the memory that it was asked about exists. What [`Self::map_shared`] answers is used by the driver that asked alone.
pub unsafe trait Hal {
    /// The guest-physical address of `pointer`, and how many of the `len` bytes from there are physically contiguous: at
    /// least one, if `len` is not 0.
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize);

    /// Where `len` bytes of memory that a device has at a guest-physical address can be accessed, write-back cached and for good;
    /// `None` if this kernel does not map them. Only [`crate::DirectNet`] asks.
    fn map_shared(&self, _address: u64, _len: usize) -> Option<NonNull<u8>> {
        None
    }

    /// Reads the 32-bit device register at a guest-physical address, which nothing may answer but the device.
    fn read_register(&self, address: u64) -> u32;

    /// Writes the 32-bit device register at a guest-physical address.
    fn write_register(&self, address: u64, value: u32);

    /// Executes the hypercall with `call` in RAX ([`crate::call`]), and with the memory order of a function call: what was
    /// stored before is visible to the device.
    fn ring(&self, call: u64);

    /// Called again and again while a driver waits for its device; `false` makes it give up, and reset the device.
    fn keep_waiting(&self) -> bool {
        spin_loop();
        true
    }
}

// SAFETY: the answers are those of the one behind the reference.
unsafe impl<H: Hal + ?Sized> Hal for &H {
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize) {
        (**self).translate(pointer, len)
    }

    fn map_shared(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        (**self).map_shared(address, len)
    }

    fn read_register(&self, address: u64) -> u32 {
        (**self).read_register(address)
    }

    fn write_register(&self, address: u64, value: u32) {
        (**self).write_register(address, value);
    }

    fn ring(&self, call: u64) {
        (**self).ring(call);
    }

    fn keep_waiting(&self) -> bool {
        (**self).keep_waiting()
    }
}

/// A kernel in ring 0 that maps memory and devices one to one, and waits by spinning.
#[derive(Clone, Copy, Debug)]
pub struct OneToOne {
    instruction: Instruction,
}

impl OneToOne {
    /// The kernel calls its hypervisor by this instruction.
    ///
    /// # Safety
    /// Every address that a driver is given (memory, buffers, device pages, what devices share) is mapped at the same virtual and
    /// guest-physical address, device pages writable; the CPU executes `instruction` in ring 0 under a hypervisor.
    pub const unsafe fn new(instruction: Instruction) -> Self {
        OneToOne { instruction }
    }
}

// SAFETY: `OneToOne::new` made the caller promise that the identity is true.
unsafe impl Hal for OneToOne {
    #[inline]
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize) {
        (pointer.addr() as u64, len)
    }

    fn map_shared(&self, address: u64, _len: usize) -> Option<NonNull<u8>> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize))
    }

    fn read_register(&self, address: u64) -> u32 {
        // SAFETY: device pages are mapped one to one.
        unsafe { core::ptr::with_exposed_provenance::<u32>(address as usize).read_volatile() }
    }

    fn write_register(&self, address: u64, value: u32) {
        // SAFETY: as above; writing a device's register is what drivers do.
        unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address as usize).write_volatile(value) }
    }

    #[inline]
    fn ring(&self, call: u64) {
        // SAFETY: there is a hypervisor. A doorbell call changes no register; the device behind it touches only the memory
        // of its queues and of requests in flight.
        unsafe { hypercall(self.instruction, call, [0; 4]) };
    }
}
