//! Mapping more than the first 4 GiB.

use core::arch::asm;
use core::cell::UnsafeCell;

const GIB: u64 = 1 << 30;
const PRESENT_WRITE_USER: u64 = 0b111;
const LARGE: u64 = 1 << 7;

#[repr(C, align(4096))]
struct Directory(UnsafeCell<[u64; 512]>);

// SAFETY: one CPU; written only by `map_gib`, read by the processor.
unsafe impl Sync for Directory {}

static WINDOW: Directory = Directory(UnsafeCell::new([0; 512]));

unsafe extern "C" {
    static mut trt_pdpt: [u64; 512];
}

/// Maps the GiB that begins at `address`, a multiple of 1 GiB of at least 4 GiB and below 512, one to one.
///
/// One such window exists: the next call takes this one away.
pub fn map_gib(address: u64) {
    let gib = (address / GIB) as usize & 511;
    if gib < 4 {
        return;
    }
    // SAFETY: the window's entries of the tables are used by nothing else; the identity below 4 GiB is untouched.
    unsafe {
        for (index, entry) in (*WINDOW.0.get()).iter_mut().enumerate() {
            *entry = gib as u64 * GIB + index as u64 * (2 << 20) + (PRESENT_WRITE_USER | LARGE);
        }
        let pdpt = (&raw mut trt_pdpt).cast::<u64>();
        for entry in 4..512 {
            pdpt.add(entry).write_volatile(0);
        }
        *pdpt.add(gib) = WINDOW.0.get() as u64 | PRESENT_WRITE_USER;
        asm!("mov {t}, cr3", "mov cr3, {t}", t = out(reg) _, options(nostack, preserves_flags));
    }
}
