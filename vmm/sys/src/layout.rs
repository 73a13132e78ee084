//! Where things are in a process's address space. The image is at 4 MiB (`link.ld`).

use hypercall_abi::{PAGE_SIZE, boot_info};

/// Heap.
pub const HEAP: u64 = 0x10_0000_0000;

/// Regions that the parent mapped ([`crate::process::ProcessInfo::window`]): first address.
pub const WINDOWS: u64 = 0x20_0000_0000;
/// Regions that the parent mapped: one past the last address.
pub const WINDOWS_END: u64 = 0x100_0000_0000;

/// A VMM maps its guest's memory here, at most 1 TiB.
pub const GUEST_MEMORY: u64 = 0x100_0000_0000;
/// One past the last address for guest memory.
pub const GUEST_MEMORY_END: u64 = 0x200_0000_0000;

/// Addresses that [`crate::memory`] hands out for the process's own mappings.
pub const DYNAMIC: u64 = 0x400_0000_0000;
/// One past the last of them.
pub const DYNAMIC_END: u64 = 0x500_0000_0000;

/// [`crate::process::ProcessInfo`]; in the root task, the kernel's boot information.
pub const INFO: u64 = boot_info::BOOT_INFO_ADDR;
/// Pages of [`INFO`] in a process that the root task started.
pub const INFO_PAGES: u64 = 4;

/// The message area of the first thread.
pub const UTCB: u64 = boot_info::ROOT_UTCB_ADDR;

/// One past the stack of the first thread; below the stack nothing is mapped.
pub const STACK_TOP: u64 = boot_info::ROOT_STACK_TOP;
/// Pages of the stack of the first thread.
pub const STACK_PAGES: u64 = boot_info::ROOT_STACK_PAGES;
/// Lowest address of the stack of the first thread.
pub const STACK: u64 = STACK_TOP - STACK_PAGES * PAGE_SIZE;
