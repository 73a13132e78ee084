//! Protection domains: an object space, an address space, and the I/O ports of user code.

use super::ec::{Ec, OfPd};
use super::pool::Pool;
use super::{Header, List, Object};
use crate::cap::BoundList;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::{ObjectType, PAGE_SIZE};
use kcore::addr::PhysAddr;
use khw::mem::phys_to_virt;

/// Bits of a frame of the I/O permission bitmap.
const PORTS_PER_FRAME: u64 = 8 * PAGE_SIZE;

/// A protection domain.
#[repr(C)]
#[derive(Debug)]
pub struct Pd {
    header: Header,
    /// A number that no other domain ever has.
    pub id: u64,
    /// The pool that pays for its tables.
    pub pool: &'static Pool,
    /// Directory of the object space: 512 addresses of slot tables.
    pub directory: PhysAddr,
    /// Top-level page table.
    pub root: PhysAddr,
    /// The two frames of its I/O permission bitmap; zeros if it may use no ports. Set once, under the tree lock.
    pub io_bitmap: Cell<[PhysAddr; 2]>,
    /// Counts changes of the bitmap, so that CPUs know when their copy is old: read it before copying.
    pub io_version: AtomicU64,
    /// Its execution contexts. Under the tree lock.
    pub ecs: List<Ec, OfPd>,
    /// Memory and port capabilities that are mapped into it. Under the tree lock.
    pub bound: BoundList,
    /// At its end: slot tables, from the first, that are empty. Under the tree lock.
    pub cleared: Cell<usize>,
}

// SAFETY: each field says who touches it.
unsafe impl Sync for Pd {}
// SAFETY: first field is the header.
unsafe impl Object for Pd {
    const KIND: ObjectType = ObjectType::Pd;
}

impl Pd {
    /// An empty protection domain that maps only the kernel.
    pub fn create(header: Header, pool: &'static Pool) -> Option<Pd> {
        let directory = pool.take_frame()?;
        let Some(root) = pool.take_frame() else {
            // SAFETY: just taken, never used.
            unsafe { pool.give_frame(directory) };
            return None;
        };
        crate::boot::memory::map_kernel(root);
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Some(Pd {
            header,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            pool,
            directory,
            root,
            io_bitmap: Cell::new([PhysAddr(0); 2]),
            io_version: AtomicU64::new(0),
            ecs: List::new(),
            bound: BoundList::new(),
            cleared: Cell::new(0),
        })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The frames of its I/O permission bitmap, if it has one.
    #[inline]
    pub fn io_frames(&self) -> Option<[PhysAddr; 2]> {
        let frames = self.io_bitmap.get();
        (frames[0].0 != 0).then_some(frames)
    }

    /// Opens or closes ports. False if there is no memory for the bitmap.
    pub fn set_ports(&self, first: u64, count: u64, is_open: bool) -> bool {
        if self.io_frames().is_none() {
            let Some(low) = self.pool.take_frame() else {
                return false;
            };
            let Some(high) = self.pool.take_frame() else {
                // SAFETY: just taken, never used.
                unsafe { self.pool.give_frame(low) };
                return false;
            };
            for frame in [low, high] {
                // SAFETY: the frame is ours and whole.
                unsafe { phys_to_virt(frame).write_bytes(0xff, 4096) };
            }
            self.io_bitmap.set([low, high]);
        }
        let Some(frames) = self.io_frames() else {
            return false;
        };
        for (half, frame) in frames.into_iter().enumerate() {
            let base = half as u64 * PORTS_PER_FRAME;
            let (from, to) = (first.max(base), (first + count).min(base + PORTS_PER_FRAME));
            if from < to {
                // SAFETY: the frame is this domain's; the tree lock is held.
                unsafe { set_bits(phys_to_virt(frame).cast(), from - base, to - base, !is_open) };
            }
        }
        self.io_version.fetch_add(1, Ordering::Release);
        true
    }
}

/// Sets or clears the bits `from` up to, without, `to`, which is more.
///
/// # Safety
/// There are as many words behind `words`, and nobody else changes them. CPUs may copy them meanwhile: the version tells them to do
/// that again.
unsafe fn set_bits(words: *mut u64, from: u64, to: u64, value: bool) {
    let (first, last) = ((from / 64) as usize, ((to - 1) / 64) as usize);
    let (head, tail) = (u64::MAX << (from % 64), u64::MAX >> (63 - (to - 1) % 64));
    let change = |index: usize, bits: u64| {
        // SAFETY: by the contract of the function.
        unsafe {
            let word = words.add(index);
            *word = if value { *word | bits } else { *word & !bits };
        }
    };
    if first == last {
        return change(first, head & tail);
    }
    change(first, head);
    change(last, tail);
    // SAFETY: these words are between the two.
    unsafe { words.add(first + 1).write_bytes(if value { 0xff } else { 0 }, last - first - 1) };
}
