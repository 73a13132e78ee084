//! From the first instruction of a process to its `main`, and from a panic to its end.
//!
//! The parent starts the first thread at `_start` with RDI = [`crate::layout::INFO`] and RSP at the top of its stack.

use crate::cap::{Cap, Memory, Narrow};
use crate::process::{self, ProcessInfo};
use crate::{error, layout, logger, memory, selector};
use hypercall_abi::boot_info::{self, BootInfo, RegionKind, root};
use hypercall_abi::cap::MapFlags;
use hypercall_abi::{ABI_VERSION, PAGE_SIZE, Rights, Selector};

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .text._start, \"ax\"",
    ".global _start",
    "_start:",
    // A frame pointer of 0 ends backtraces.
    "xor ebp, ebp",
    "and rsp, -16",
    "call usys_main",
    "ud2",
    ".popsection",
);

/// Makes a function the `main` of a process that the root task starts.
///
/// ```text
/// usys::program!(service::main); // fn main(info: &'static ProcessInfo) -> !
/// ```
#[macro_export]
macro_rules! program {
    ($main:path) => {
        // SAFETY: the only definition of this symbol in a program, called once, by `_start`.
        #[unsafe(no_mangle)]
        extern "C" fn usys_main(info: u64) -> ! {
            // SAFETY: `_start` passes on what the parent put into RDI.
            let info = unsafe { $crate::start::process(info) };
            $main(info)
        }
    };
}

/// Makes a function the `main` of the root task.
///
/// ```text
/// usys::root_program!(root_task::main); // fn main(info: Result<&'static BootInfo, &'static str>) -> !
/// ```
#[macro_export]
macro_rules! root_program {
    ($main:path) => {
        // SAFETY: the only definition of this symbol in a program, called once, by `_start`.
        #[unsafe(no_mangle)]
        extern "C" fn usys_main(info: u64) -> ! {
            // SAFETY: `_start` passes on what the kernel put into RDI.
            let info = unsafe { $crate::start::root(info) };
            $main(info)
        }
    };
}

/// Makes the runtime ready in a process that the root task started.
///
/// # Safety
///
/// Called once, first of all, with the address of [`ProcessInfo`], which stays mapped and does not change; the heap it
/// names is this process's alone.
pub unsafe fn process(info: u64) -> &'static ProcessInfo {
    // SAFETY: the caller's promise.
    let info = unsafe { &*(info as *const ProcessInfo) };
    if info.header.magic != process::MAGIC {
        fault();
    }
    // SAFETY: the parent mapped the heap for this process.
    unsafe { add_heap(info.header.heap_bytes) };
    selector::init(process::selector::FREE);
    memory::init();
    logger::init(info.name());
    info
}

/// Makes the runtime ready in the root task. The error says what is missing, and what to do; then there is no heap, but
/// [`logger::to_kernel`] works.
///
/// # Safety
///
/// Called once, first of all, with the address of the kernel's [`BootInfo`], which stays mapped and does not change.
pub unsafe fn root(info: u64) -> Result<&'static BootInfo, &'static str> {
    logger::init("root");
    // SAFETY: the caller's promise.
    let info = unsafe { &*(info as *const BootInfo) };
    if info.magic != boot_info::MAGIC || info.version.major != ABI_VERSION.major {
        return Err("this kernel speaks another version of the hypercall ABI: build both from one tree");
    }
    let heap = RootHeap::choose(info).ok_or("too little memory: give the machine at least 64 MiB")?;
    heap.map(info).map_err(|_| "the kernel refused to map the heap")?;
    // SAFETY: `RootHeap` is excluded from the memory that the root task hands out.
    unsafe { add_heap(heap.pages * PAGE_SIZE) };
    selector::init(Selector(root::FREE.0 + 1));
    memory::init();
    Ok(info)
}

/// The memory that the root task's heap is made of: the end of a free region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootHeap {
    /// Index of the region in the boot information.
    pub region: usize,
    /// First page in the region.
    pub offset: u64,
    /// Pages.
    pub pages: u64,
}

impl RootHeap {
    /// 4 MiB: what the root task keeps for each VM is a few KiB.
    const PAGES: u64 = 1024;

    /// The choice for this machine; `None` if no region is large enough.
    pub fn choose(info: &BootInfo) -> Option<Self> {
        let regions = &info.regions[..(info.region_count as usize).min(boot_info::MAX_REGIONS)];
        let fits = |region: &boot_info::MemoryRegion| {
            region.kind == RegionKind::Free as u32 && region.pages >= Self::PAGES
        };
        let region = regions.iter().position(fits)?;
        Some(RootHeap { region, offset: regions[region].pages - Self::PAGES, pages: Self::PAGES })
    }

    fn map(&self, info: &BootInfo) -> error::Result<()> {
        let region: Cap<Memory> = Cap::new(Selector(info.regions[self.region].selector));
        let rights = Rights::READ | Rights::WRITE;
        let heap = region.derive(root::FREE, Narrow::rights(rights).range(self.offset, self.pages))?;
        heap.map(process::pd(), layout::HEAP, 0, self.pages, MapFlags::READ | MapFlags::WRITE)
    }
}

/// # Safety
///
/// As `heap::add`, for the heap's fixed address.
unsafe fn add_heap(bytes: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's promise.
    unsafe {
        crate::heap::add(layout::HEAP, bytes);
    }
    // On the host the system's allocator is there already.
    #[cfg(not(target_os = "none"))]
    let _ = bytes;
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    logger::last_words(format_args!("{info}"));
    fault()
}

/// Ends the process: its parent sees an invalid-opcode fault.
pub fn fault() -> ! {
    // SAFETY: UD2 has no effect but the fault.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypercall_abi::boot_info::MemoryRegion;

    fn machine(regions: &[(u64, RegionKind)]) -> alloc::boxed::Box<BootInfo> {
        // SAFETY: every field is an integer or an array of integers, for which zero is a value.
        let mut info = unsafe { alloc::boxed::Box::<BootInfo>::new_zeroed().assume_init() };
        info.region_count = regions.len() as u32;
        for (index, &(pages, kind)) in regions.iter().enumerate() {
            info.regions[index] = MemoryRegion { base: 0, pages, kind: kind as u32, selector: 16 };
        }
        info
    }

    #[test]
    fn the_root_heap_is_the_end_of_the_first_free_region_that_holds_it() {
        let info = machine(&[(5000, RegionKind::Module), (100, RegionKind::Free), (5000, RegionKind::Free)]);
        let heap = RootHeap::choose(&info).unwrap();
        assert_eq!(heap, RootHeap { region: 2, offset: 3976, pages: 1024 });
    }

    #[test]
    fn a_machine_without_room_for_the_heap_is_noticed() {
        assert_eq!(RootHeap::choose(&machine(&[(100, RegionKind::Free)])), None);
    }
}
