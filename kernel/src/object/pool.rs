//! Pools: kernel memory, paid by whoever was given it.
//!
//! A pool owns frames. Its free ones form a list in the frames themselves. Small objects come from slabs: a frame cut into
//! objects of one size, whose first object-sized piece holds the slab list. A child pool's frames stay in its parent's
//! free list, and count as the child's, until the child needs them; they go back there when the child ends. So making a pool takes
//! the same time whatever its size.

use super::{Header, InPool, List, Object};
use core::cell::{Cell, UnsafeCell};
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use hypercall_abi::{ObjectType, PAGE_SIZE};
use kcore::addr::PhysAddr;
use khw::mem::{FrameSource, direct_virt_to_phys, phys_to_virt, zero_frame};

/// Sizes of slab objects.
const CLASSES: [usize; 5] = [64, 128, 256, 512, 1024];

/// Pools between a pool and the root pool, at most.
pub const MAX_DEPTH: u32 = 64;

/// Frames that a pool fetches from its parent at once.
const FILL: u64 = 16;

/// A pool of kernel memory.
#[repr(C)]
#[derive(Debug)]
pub struct Pool {
    header: Header,
    frames: UnsafeCell<Frames>,
    /// Pools between it and the root pool, itself included.
    pub depth: u32,
    /// Highest priority of scheduling contexts that are paid from it.
    pub max_priority: u8,
    /// Every object paid from this pool, but those that are ending. Under the tree lock.
    pub objects: List<Header, InPool>,
    /// How many are ending. Under the tree lock.
    pub ending: Cell<u32>,
}

// SAFETY: everything is used under the tree lock, but for a look at the number of frames.
unsafe impl Sync for Pool {}
// SAFETY: first field is the header.
unsafe impl Object for Pool {
    const KIND: ObjectType = ObjectType::Pool;
}

#[derive(Debug)]
struct Frames {
    /// First free frame; each holds the address of the next in its first word. 0 ends the list.
    head: u64,
    /// Last free frame, so that a whole list can be given away at once.
    tail: u64,
    /// Frames that may be taken.
    free: u64,
    /// Those of them that are still in the parent's list.
    unfilled: u64,
    total: u64,
    /// Those in slabs.
    in_slabs: u64,
    slabs: [Slab; CLASSES.len()],
}

#[derive(Clone, Copy, Debug)]
struct Slab {
    /// First free object (direct-map address); each holds the address of the next.
    free: u64,
    /// First frame of the class; each holds the address of the next, as in the list of free ones.
    frames: u64,
    /// Its last frame.
    last: u64,
}

/// # Safety
/// `addr` is a free frame or object in the direct map that this pool owns.
unsafe fn next_of(addr: u64) -> u64 {
    // SAFETY: by the contract of this function.
    unsafe { *(addr as *const u64) }
}

/// # Safety
/// As [`next_of`].
unsafe fn set_next(addr: u64, next: u64) {
    // SAFETY: by the contract of this function.
    unsafe { *(addr as *mut u64) = next }
}

impl Frames {
    const fn new() -> Self {
        Frames {
            head: 0,
            tail: 0,
            free: 0,
            unfilled: 0,
            total: 0,
            in_slabs: 0,
            slabs: [Slab { free: 0, frames: 0, last: 0 }; CLASSES.len()],
        }
    }

    /// Takes a frame out of the list, which counts as free still.
    fn pop(&mut self) -> Option<u64> {
        if self.head == 0 {
            return None;
        }
        let frame = self.head;
        // SAFETY: it is on the free list.
        self.head = unsafe { next_of(frame) };
        if self.head == 0 {
            self.tail = 0;
        }
        Some(frame)
    }

    /// Puts a frame, which nobody uses, into the list.
    fn push(&mut self, frame: u64) {
        // SAFETY: the giver owned the frame and no longer uses it.
        unsafe { set_next(frame, self.head) };
        if self.head == 0 {
            self.tail = frame;
        }
        self.head = frame;
    }

    fn give(&mut self, frame: PhysAddr) {
        self.push(phys_to_virt(frame) as u64);
        self.free += 1;
    }

    /// Cuts a frame into objects of a class.
    #[inline(never)]
    fn cut(&mut self, class: usize, frame: PhysAddr) {
        let base = phys_to_virt(frame) as u64;
        self.in_slabs += 1;
        let slab = &mut self.slabs[class];
        if slab.frames == 0 {
            slab.last = base;
        }
        // SAFETY: the frame is ours; its pieces do not overlap.
        unsafe {
            set_next(base, slab.frames);
            slab.frames = base;
            for piece in (base..base + PAGE_SIZE).step_by(CLASSES[class]).skip(1) {
                set_next(piece, slab.free);
                slab.free = piece;
            }
        }
    }
}

const fn class_of<T>() -> usize {
    assert!(align_of::<T>() <= 64);
    let mut class = 0;
    while CLASSES[class] < size_of::<T>() {
        class += 1;
    }
    class
}

impl Pool {
    /// The root pool, without frames.
    pub const fn root() -> Self {
        Pool {
            header: Header::new(ObjectType::Pool, None),
            frames: UnsafeCell::new(Frames::new()),
            depth: 0,
            max_priority: 31,
            objects: List::new(),
            ending: Cell::new(0),
        }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its frames. Under the tree lock; the reference ends before another one to the same pool's begins.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the rule above")]
    fn frames(&self) -> &mut Frames {
        // SAFETY: by the rule above no other reference is live; `usage` makes none.
        unsafe { &mut *self.frames.get() }
    }

    /// A pool with `count` frames out of `parent`. Under the tree lock, without which nothing is taken from a pool.
    pub fn create(parent: &'static Pool, count: u64, max_priority: u8) -> Option<&'static Pool> {
        if !parent.has_room::<Pool>(count) {
            return None;
        }
        let pool = parent.create_object(Pool {
            header: Header::new(ObjectType::Pool, Some(parent)),
            frames: UnsafeCell::new(Frames::new()),
            depth: parent.depth.saturating_add(1),
            max_priority,
            objects: List::new(),
            ending: Cell::new(0),
        })?;
        let (source, own) = (parent.frames(), pool.frames());
        source.free -= count;
        (own.free, own.unfilled) = (count, count);
        own.total = count;
        source.total -= count;
        Some(pool)
    }

    /// Adds a frame that no pool has: at boot.
    ///
    /// # Safety
    /// The frame is RAM in the direct map and unused.
    pub unsafe fn donate(&self, frame: PhysAddr) {
        let frames = self.frames();
        frames.give(frame);
        frames.total += 1;
    }

    /// Frames that were free a moment ago, and all frames. Needs no lock.
    pub fn usage(&self) -> (u64, u64) {
        let frames = self.frames.get();
        // SAFETY: the pool is alive; whole words are read, which another CPU may be writing.
        unsafe { ((&raw const (*frames).free).read_volatile(), (&raw const (*frames).total).read_volatile()) }
    }

    fn take(&self, own: &mut Frames) -> Option<PhysAddr> {
        if own.free == 0 {
            return None;
        }
        if own.head == 0 {
            self.fill(own);
        }
        let frame = own.pop()?;
        own.free -= 1;
        Some(direct_virt_to_phys(frame))
    }

    /// Fetches some of the pool's frames out of the list of the nearest pool above that has any, at most [`MAX_DEPTH`] pools away: pools
    /// between the two have none of theirs in their lists either.
    #[inline(never)]
    fn fill(&self, own: &mut Frames) {
        let Some(mut source) = self.header.pool else { return };
        while source.frames().head == 0
            && let Some(above) = source.header.pool
        {
            source = above;
        }
        let mut filled = 0;
        while filled < own.unfilled.min(FILL)
            && let Some(frame) = source.frames().pop()
        {
            own.push(frame);
            filled += 1;
        }
        own.unfilled -= filled;
        let mut between = self.header.pool;
        while let Some(pool) = between.filter(|&pool| !core::ptr::eq(pool, source)) {
            pool.frames().unfilled -= filled;
            between = pool.header.pool;
        }
    }

    /// A zeroed frame.
    pub fn take_frame(&self) -> Option<PhysAddr> {
        let frame = self.take(self.frames())?;
        // SAFETY: it was free a moment ago and is ours now.
        unsafe { zero_frame(frame) };
        Some(frame)
    }

    /// Takes back a frame of [`Self::take_frame`].
    ///
    /// # Safety
    /// Nothing uses the frame, and no CPU can reach it through a cached translation or a stale look-up.
    pub unsafe fn give_frame(&self, frame: PhysAddr) {
        self.frames().give(frame);
    }

    /// Puts an object into memory of this pool. It is not in [`Self::objects`] yet.
    pub fn create_object<T: Object>(&'static self, value: T) -> Option<&'static T> {
        self.allocate().map(|place| place.put(value))
    }

    /// Memory for an object, to be filled for certain.
    pub fn allocate<T: Object>(&'static self) -> Option<Place<T>> {
        let class = const { class_of::<T>() };
        let own = self.frames();
        if own.slabs[class].free == 0 {
            let frame = self.take(own)?;
            own.cut(class, frame);
        }
        let slab = &mut own.slabs[class];
        let addr = slab.free;
        // SAFETY: it is on the free list of the class.
        slab.free = unsafe { next_of(addr) };
        Some(Place { addr, marker: PhantomData })
    }

    /// Whether there is memory for an object and `frames` more frames: a refusal must not leave a slab behind.
    fn has_room<T: Object>(&self, frames: u64) -> bool {
        let own = self.frames();
        let slab = u64::from(own.slabs[const { class_of::<T>() }].free == 0);
        frames.checked_add(slab).is_some_and(|needed| needed <= own.free)
    }

    /// Frees an object.
    ///
    /// # Safety
    /// It came from this pool, nothing refers to it any more, and a grace period has passed since something could.
    pub unsafe fn free_object<T: Object>(&self, object: &'static T) {
        let addr = object as *const T as u64;
        let frames = self.frames();
        let slab = &mut frames.slabs[const { class_of::<T>() }];
        // SAFETY: the piece is free from here on.
        unsafe { set_next(addr, slab.free) };
        slab.free = addr;
    }

    /// Gives every frame back to the parent. All objects are gone.
    ///
    /// # Safety
    /// Every object was freed and every frame given back.
    pub unsafe fn dissolve(&self) {
        let Some(parent) = self.header.pool else { return };
        let own = self.frames();
        for Slab { frames, last, .. } in own.slabs.into_iter().filter(|slab| slab.frames != 0) {
            // SAFETY: slab frames are chained through their first word, and no object is left in them.
            unsafe { set_next(last, own.head) };
            if own.head == 0 {
                own.tail = last;
            }
            own.head = frames;
        }
        own.free += own.in_slabs;
        debug_assert_eq!(own.free, own.total, "a pool lost frames");
        let target = parent.frames();
        if own.head != 0 {
            // SAFETY: the tail of our list is a free frame.
            unsafe { set_next(own.tail, target.head) };
            if target.head == 0 {
                target.tail = own.tail;
            }
            target.head = own.head;
        }
        target.free += own.free;
        target.total += own.total;
        *own = Frames::new();
    }
}

/// Memory for one object.
#[derive(Debug)]
pub struct Place<T> {
    addr: u64,
    marker: PhantomData<T>,
}

impl<T: Object> Place<T> {
    /// Puts the object there.
    pub fn put(self, value: T) -> &'static T {
        // SAFETY: the piece is as large as its class, aligned to 64 bytes at least, and nobody else's.
        unsafe {
            (self.addr as *mut T).write(value);
            &*(self.addr as *const T)
        }
    }
}

/// Page tables are paid from the pool.
impl FrameSource for &Pool {
    fn take(&mut self) -> Option<PhysAddr> {
        self.take_frame()
    }

    fn give(&mut self, frame: PhysAddr) {
        // SAFETY: page tables are given back by the paging engine after they were unlinked; the callers of the engine
        // run a grace period, which flushes, before they let anybody allocate again (tree lock held throughout).
        unsafe { self.give_frame(frame) }
    }
}
