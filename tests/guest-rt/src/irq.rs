//! Counting interrupts: what most tests want to know is how often, and in which order.

use crate::lapic::Lapic;
use crate::trap::{self, Frame};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
static ORDER: [AtomicU8; 16] = [const { AtomicU8::new(0) }; 16];
static ORDERED: AtomicU32 = AtomicU32::new(0);
static LAST_RIP: AtomicU64 = AtomicU64::new(0);

/// Counts interrupts of `vector` from now on, starting at 0, and ends each at the APIC.
pub fn count(vector: u8) {
    reset(vector);
    trap::set_handler(vector, Some(count_and_end));
}

/// Counts events of `vector` that want no end of interrupt: NMIs, exceptions, INT n.
pub fn count_only(vector: u8) {
    reset(vector);
    trap::set_handler(vector, Some(note));
}

/// How often `vector` arrived since it is counted.
pub fn seen(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Relaxed)
}

/// Counts `vector` from 0 again.
pub fn reset(vector: u8) {
    COUNTS[usize::from(vector)].store(0, Relaxed);
}

/// Forgets the order in which vectors arrived.
pub fn reset_order() {
    ORDERED.store(0, Relaxed);
}

/// The vector that arrived `nth`, from 0, since `reset_order`; at most 16 are remembered.
pub fn order(nth: usize) -> Option<u8> {
    (nth < ORDERED.load(Relaxed) as usize).then(|| ORDER.get(nth).map(|vector| vector.load(Relaxed)))?
}

/// Where the last counted interrupt interrupted.
pub fn last_rip() -> u64 {
    LAST_RIP.load(Relaxed)
}

fn note(frame: &mut Frame) {
    LAST_RIP.store(frame.rip, Relaxed);
    COUNTS[frame.vector as usize & 0xff].fetch_add(1, Relaxed);
    let nth = ORDERED.fetch_add(1, Relaxed) as usize;
    if let Some(slot) = ORDER.get(nth) {
        slot.store(frame.vector as u8, Relaxed);
    }
}

fn count_and_end(frame: &mut Frame) {
    note(frame);
    Lapic::current().eoi();
}

/// Masks the legacy interrupt controllers, which QEMU's firmware leaves on; Nacre's board has none.
pub(crate) fn mask_pics() {
    crate::port::outb(0x21, 0xff);
    crate::port::outb(0xa1, 0xff);
}
