//! From the PVH entry point to Rust: page tables, long mode, a stack.
//!
//! PVH enters in 32-bit protected mode with flat segments, paging off and EBX pointing to `hvm_start_info`
//! (Xen's pvh.pandoc). Nothing else may be assumed, so `.bss` is cleared here as well.

use crate::{desc, irq, pvh, serial};

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("boot.S"), options(att_syntax));

/// General registers as the machine was entered with, before any instruction of ours changed them.
///
/// RAX to RDI have 32 bits here: the entry is in 32-bit mode. R8 to R15 are read on the way into long mode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct InitialGprs {
    /// EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.
    pub low: [u32; 8],
    /// R8 to R15.
    pub high: [u64; 8],
}

unsafe extern "C" {
    static trt_initial_gprs: InitialGprs;
    static trt_image_end: u8;
}

/// The registers the machine was entered with.
pub fn initial_gprs() -> InitialGprs {
    // SAFETY: boot.S wrote the block before any Rust code ran, and nothing writes it afterwards.
    unsafe { trt_initial_gprs }
}

/// First physical address behind the guest's own image, tables and stack.
pub fn image_end() -> u64 {
    &raw const trt_image_end as u64
}

/// Called once by boot.S, in long mode, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn trt_start(start_info: u64) -> ! {
    unsafe extern "C" {
        fn trt_guest() -> !;
    }
    serial::init();
    desc::init();
    irq::mask_pics();
    // SAFETY: this is the pointer the loader passed in EBX, read before anything else uses memory.
    unsafe { pvh::init(start_info) };
    // SAFETY: `guest!` defines the symbol with this signature, and the machine is set up.
    unsafe { trt_guest() }
}
