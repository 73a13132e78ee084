//! All of the RAM that the memory map promises, and what is beside it.

use trt::pvh::{self, Region};
use trt::{boot, check, cpu, is_nacre, mmio, paging, skip};

const PAGE: u64 = 4096;
const GIB: u64 = 1 << 30;
/// Regions up to this size are tested page by page, larger ones at as many places, evenly spread.
const PAGES_TESTED: u64 = 16 * 1024;
/// End of RAM below the devices.
const DEVICES: u64 = 0xc000_0000;

/// The guest.
pub fn run() {
    let ram = || pvh::memory_map().iter().filter(|region| region.is_ram());
    check!(ram().count() >= 2, "the memory map has RAM below and above 1 MiB");
    check!(disjoint(pvh::memory_map()), "regions of the memory map are apart");
    let rsdp = pvh::rsdp();
    // SAFETY: the loader's pointer to eight bytes below 4 GiB, or 0, which is mapped too.
    let signature = unsafe { (rsdp as *const [u8; 8]).read_volatile() };
    check!(eq signature, *b"RSD PTR ", "the loader's ACPI root pointer {rsdp:#x} points to one");
    for region in ram() {
        test_region(region);
    }
    let top = ram().map(Region::end).filter(|end| *end <= DEVICES).max().unwrap_or(0);
    run_code(top - 64 * 1024);
    if is_nacre() { beyond_ram(top) } else { skip!("what is behind the RAM is the board's own") }
}

fn disjoint(regions: &[Region]) -> bool {
    regions
        .iter()
        .enumerate()
        .all(|(index, a)| regions[..index].iter().all(|b| a.end() <= b.start || b.end() <= a.start))
}

/// Writes the first and last eight bytes of the pages of a region, each a function of its address, then reads them all.
fn test_region(region: &Region) {
    let first = region.start.next_multiple_of(PAGE);
    let last = region.end() & !(PAGE - 1);
    let step = ((last - first) / PAGES_TESTED).next_multiple_of(PAGE).max(PAGE);
    let addresses = || (first..last).step_by(step as usize).filter(|page| !in_use(*page));
    let mut wrong = 0;
    // One GiB at a time: above 4 GiB that is what is mapped at once.
    let mut gib = first & !(GIB - 1);
    while gib < last {
        paging::map_gib(gib);
        let within = || addresses().skip_while(|page| *page < gib).take_while(|page| *page < gib + GIB);
        for page in within() {
            for address in [page, page + PAGE - 8] {
                // SAFETY: RAM by the memory map that the guest does not use itself.
                unsafe { (address as *mut u64).write_volatile(stamp(address)) };
            }
        }
        for page in within() {
            for address in [page, page + PAGE - 8] {
                // SAFETY: as above.
                let seen = unsafe { (address as *const u64).read_volatile() };
                wrong += u32::from(seen != stamp(address));
            }
        }
        gib += GIB;
    }
    check!(eq wrong, 0, "RAM {:#x}..{:#x} holds what was written", region.start, region.end());
}

fn stamp(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ !address
}

fn in_use(page: u64) -> bool {
    (0x20_0000..boot::image_end()).contains(&page)
}

/// Writes a function into RAM and runs it, changes it, and runs it again.
fn run_code(address: u64) {
    let mut results = [0; 2];
    for (index, result) in results.iter_mut().enumerate() {
        // MOV EAX, imm32; RET
        let code = [0xb8, 0x11 * (index as u8 + 1), 0, 0, 0, 0xc3];
        // SAFETY: free RAM below 4 GiB, which is mapped executable; the bytes are a function of this type. CPUID
        // serialises, as self-modifying code has to.
        *result = unsafe {
            (address as *mut [u8; 6]).write_volatile(code);
            cpu::cpuid(0, 0);
            let function: extern "C" fn() -> u32 = core::mem::transmute(address as *const ());
            function()
        };
    }
    check!(eq results, [0x11, 0x22], "code written to RAM runs, and runs as changed");
}

fn beyond_ram(top: u64) {
    for address in [top, top + 0x12_3454, DEVICES - 8, DEVICES + 0x100] {
        if top == DEVICES && address < DEVICES {
            continue;
        }
        check!(eq mmio::read32(address), u32::MAX, "a read at {address:#x}, behind the RAM, gives all ones");
        mmio::write32(address, 0);
        mmio::or_memory(address, 0);
        check!(eq mmio::read32(address), u32::MAX, "a write at {address:#x} is lost");
    }
}
