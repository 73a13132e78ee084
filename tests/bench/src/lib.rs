//! Measures the kernel from user space, in place of the root task.
//!
//! 1. One program in three roles: the root task measures hypercalls and IPC; a copy of it is the address space that
//!    portals lead to; another copy is a VMM, whose guest measures exits.
//! 2. Ticks are those of the TSC, which count instructions on the deterministic machines. What is between the two RDTSC
//!    is assembly, and an empty measurement is subtracted.
//! 3. After the samples of an operation it runs once more between two markers (`xchg bx, bx`), for whoever traces the
//!    instructions.
#![no_std]

extern crate alloc;

pub mod device;
pub mod error;
pub mod guest;
pub mod hypercalls;
pub mod ipc;
pub mod networks;
pub mod report;
pub mod stopwatch;
pub mod system;
pub mod threads;
pub mod vmm;
pub mod vms;

use usys::abi::boot_info;

/// What every role begins with: the pages that say who this process is start with different words.
///
/// # Safety
///
/// As [`usys::start::root`], or as [`usys::start::process`].
pub unsafe fn begin(info: u64, started: u64) -> ! {
    // SAFETY: both kinds of page begin with eight readable bytes.
    let magic = unsafe { *(info as *const u64) };
    if magic == boot_info::MAGIC {
        // SAFETY: the caller's promise; the page is the kernel's.
        let info = unsafe { usys::start::root(info) };
        usys::logger::to_kernel();
        system::main(info, started)
    }
    // SAFETY: the caller's promise; the page is a parent's.
    let info = unsafe { usys::start::process(info) };
    usys::logger::to_kernel();
    vmm::main(info)
}
