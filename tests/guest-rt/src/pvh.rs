//! What the loader tells the guest: command line and memory map (Xen's `hvm_start_info`, version 1).

use core::cell::UnsafeCell;

const MAGIC: u32 = 0x336e_c578;
const MAX_REGIONS: usize = 32;
const MAX_CMDLINE: usize = 512;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist: u64,
    cmdline: u64,
    rsdp: u64,
    memmap: u64,
    memmap_entries: u32,
    reserved: u32,
}

/// One entry of the memory map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// 1 is RAM; the others are ACPI's address range types.
    pub kind: u32,
    reserved: u32,
}

impl Region {
    /// Whether the guest may use the region as memory.
    pub fn is_ram(&self) -> bool {
        self.kind == 1
    }

    /// First address behind the region.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

struct Info {
    cmdline: [u8; MAX_CMDLINE],
    cmdline_len: usize,
    regions: [Region; MAX_REGIONS],
    region_count: usize,
    rsdp: u64,
}

struct Shared(UnsafeCell<Info>);

// SAFETY: written once by `init` on the only CPU before anything reads it.
unsafe impl Sync for Shared {}

static INFO: Shared = Shared(UnsafeCell::new(Info {
    cmdline: [0; MAX_CMDLINE],
    cmdline_len: 0,
    regions: [Region { start: 0, size: 0, kind: 0, reserved: 0 }; MAX_REGIONS],
    region_count: 0,
    rsdp: 0,
}));

/// Copies what the loader passed, so that tests may write over the originals.
///
/// # Safety
/// To be called once, before any other function of this module. `start_info` is what the loader passed in EBX.
pub(crate) unsafe fn init(start_info: u64) {
    // SAFETY: nothing else holds a reference yet (contract of this function).
    let info = unsafe { &mut *INFO.0.get() };
    // SAFETY: the loader's structure lies in identity-mapped memory below 4 GiB.
    let start = unsafe { &*(start_info as *const StartInfo) };
    if start.magic != MAGIC {
        return;
    }
    info.rsdp = start.rsdp;
    if start.cmdline != 0 {
        let text = start.cmdline as *const u8;
        while info.cmdline_len < MAX_CMDLINE {
            // SAFETY: the string ends with a zero byte, where the loop ends as well.
            let byte = unsafe { text.add(info.cmdline_len).read() };
            if byte == 0 {
                break;
            }
            info.cmdline[info.cmdline_len] = byte;
            info.cmdline_len += 1;
        }
    }
    if start.version >= 1 && start.memmap != 0 {
        info.region_count = MAX_REGIONS.min(start.memmap_entries as usize);
        for (index, region) in info.regions.iter_mut().take(info.region_count).enumerate() {
            // SAFETY: the table has `memmap_entries` entries.
            *region = unsafe { (start.memmap as *const Region).add(index).read_unaligned() };
        }
    }
}

fn info() -> &'static Info {
    // SAFETY: `init` is over, and nothing writes afterwards.
    unsafe { &*INFO.0.get() }
}

/// The command line, without a file name that QEMU may have put in front; empty if it is not UTF-8.
pub fn cmdline() -> &'static str {
    let info = info();
    core::str::from_utf8(&info.cmdline[..info.cmdline_len]).unwrap_or("").trim()
}

/// The value of `key=value` on the command line.
pub fn option(key: &str) -> Option<&'static str> {
    cmdline().split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The memory map, in the loader's order.
pub fn memory_map() -> &'static [Region] {
    let info = info();
    &info.regions[..info.region_count]
}

/// Physical address of the ACPI root pointer; 0 if the loader passed none.
pub fn rsdp() -> u64 {
    info().rsdp
}
