//! The heap: talc over a region that is mapped before `main`.

use crate::lock::RawYieldLock;
use talc::{TalcLock, source::Manual};

#[global_allocator]
static HEAP: TalcLock<RawYieldLock, Manual> = TalcLock::new(Manual);

/// Adds memory to the heap.
///
/// # Safety
///
/// `base` to `base + bytes` is mapped readable and writable, stays so, and belongs to the heap alone: no other mapping
/// of its frames is used.
pub unsafe fn add(base: u64, bytes: u64) {
    // SAFETY: the caller gives the region to the heap. A region too small to use is left alone.
    let _ = unsafe { HEAP.lock().claim(base as *mut u8, bytes as usize) };
}
