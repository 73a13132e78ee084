//! The flush checker's hooks: what the kernel does to page tables and TLBs, told to the model of [`kcore::flush_checker`].
//!
//! All of it is empty where [`CHECKERS`] is false. A flush that is missing ends the kernel.

use crate::{CHECKERS, percpu};
use core::cell::UnsafeCell;
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;
use kcore::flush_checker::{Shootdown, Tags, User};

static MODEL: Shootdown = Shootdown::new();

struct AllTags([UnsafeCell<Tags>; MAX_CPUS]);
// SAFETY: each CPU uses only the entry of its own number, with interrupts off.
unsafe impl Sync for AllTags {}
static TAGS: AllTags = AllTags([const { UnsafeCell::new(Tags::new()) }; MAX_CPUS]);

fn tags() -> &'static mut Tags {
    // SAFETY: only this CPU uses its entry, the kernel is not preempted, and no hook holds the reference over another.
    unsafe { &mut *TAGS.0[percpu::id()].get() }
}

/// An entry of a page table became `new`.
#[inline]
pub fn table_write(old: u64, new: u64) {
    if CHECKERS {
        MODEL.write(old, new);
    }
}

/// The lock of page tables was taken.
#[inline]
pub fn begin() {
    if CHECKERS && let Err(missing) = MODEL.begin() {
        panic!("flush checker: {missing:?} of the operation before this one");
    }
}

/// This CPU loaded CR3: the kernel's own page table, which drops what it cached of any other.
#[inline]
pub fn cr3_loaded() {
    if CHECKERS {
        MODEL.flushed(percpu::id());
    }
}

/// A shootdown that waited for `cpus` CPUs is over.
#[inline]
pub fn shootdown_done(cpus: usize) {
    if CHECKERS && let Err(missing) = MODEL.complete(cpus) {
        panic!("flush checker: {missing:?} kept its translations over a shootdown");
    }
}

/// Page tables that nobody can use any more are about to be freed, or were.
#[inline]
pub fn freeing(is_freeing: bool) {
    if CHECKERS {
        MODEL.free(is_freeing);
    }
}

/// A page table goes back to its pool.
#[inline]
pub fn free_table() {
    if CHECKERS && let Err(missing) = MODEL.free_table() {
        panic!("flush checker: a page table was freed: {missing:?}");
    }
}

/// Runs an operation on the nested tables below `root`, and notes whether they lost something.
#[inline]
pub fn nested<R>(root: PhysAddr, operation: impl FnOnce() -> R) -> R {
    let before = if CHECKERS { MODEL.now() } else { 0 };
    let result = operation();
    if CHECKERS && MODEL.now() != before {
        MODEL.change(root.0);
    }
    result
}

/// The nested tables below `root` end: another space may get the frame.
#[inline]
pub fn nested_end(root: PhysAddr) {
    if CHECKERS {
        MODEL.tick();
        MODEL.change(root.0);
    }
}

/// Whatever this CPU cached under a tag (VPID, ASID or EPT pointer) is gone.
#[inline]
pub fn flush_tag(tag: u64) {
    if CHECKERS {
        tags().flush(tag);
    }
}

/// Whatever this CPU cached for guests is gone.
#[inline]
pub fn flush_all_tags() {
    if CHECKERS {
        tags().flush_all();
    }
}

/// A guest is about to run with a tag.
pub fn enter(tag: u64, user: User) {
    // While a change waits for its shootdown, this CPU is about to be told.
    let changed = if MODEL.is_pending() { 0 } else { MODEL.changed_at(user.root) };
    if let Err(stale) = tags().enter(tag, user, changed, MODEL.now()) {
        panic!(
            "flush checker: the TLB may hold stale translations ({stale:?}) under tag {tag:#x}: {user:x?}"
        );
    }
}

/// The guest ran.
pub fn leave(tag: u64, user: User) {
    tags().leave(tag, user);
}

/// The vCPU that had the tag ends.
#[inline]
pub fn end(tag: u64, vcpu: u64) {
    if CHECKERS {
        tags().end(tag, vcpu);
    }
}
