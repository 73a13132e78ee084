//! Lists of objects, with links in the objects.

use core::cell::Cell;
use core::marker::PhantomData;

/// A link of an intrusive doubly linked list: addresses of neighbours, 0 for none.
#[derive(Debug)]
pub struct ListLink {
    next: Cell<u64>,
    prev: Cell<u64>,
}

impl ListLink {
    /// Not in a list.
    pub const fn new() -> Self {
        ListLink { next: Cell::new(0), prev: Cell::new(0) }
    }
}

impl Default for ListLink {
    fn default() -> Self {
        Self::new()
    }
}

/// Tells a [`List`] where in `T` its links are.
///
/// # Safety
/// `link` returns the same field of the same object every time.
pub unsafe trait Linked<Tag>: Sized + 'static {
    /// The link.
    fn link(&self) -> &ListLink;
}

/// An intrusive doubly linked list of objects, oldest first. Whoever owns the list says which lock guards it.
#[repr(C)]
#[derive(Debug)]
pub struct List<T: 'static, Tag> {
    head: Cell<u64>,
    tail: Cell<u64>,
    marker: PhantomData<(&'static T, Tag)>,
}

impl<T: Linked<Tag>, Tag> List<T, Tag> {
    /// An empty list.
    pub const fn new() -> Self {
        List { head: Cell::new(0), tail: Cell::new(0), marker: PhantomData }
    }

    fn at(addr: u64) -> Option<&'static T> {
        // SAFETY: lists hold only addresses of live objects: an object leaves its lists before it is freed.
        (addr != 0).then(|| unsafe { &*(addr as *const T) })
    }

    /// The oldest entry.
    pub fn first(&self) -> Option<&'static T> {
        Self::at(self.head.get())
    }

    /// Appends an object that is in no list of this kind.
    pub fn push_back(&self, item: &'static T) {
        let (addr, tail) = (item as *const T as u64, self.tail.get());
        item.link().next.set(0);
        item.link().prev.set(tail);
        match Self::at(tail) {
            Some(last) => last.link().next.set(addr),
            None => self.head.set(addr),
        }
        self.tail.set(addr);
    }

    /// Puts an object that is in no list of this kind first.
    pub fn push_front(&self, item: &'static T) {
        let (addr, head) = (item as *const T as u64, self.head.get());
        item.link().next.set(head);
        item.link().prev.set(0);
        match Self::at(head) {
            Some(first) => first.link().prev.set(addr),
            None => self.tail.set(addr),
        }
        self.head.set(addr);
    }

    /// Takes out an object that is in this list.
    pub fn remove(&self, item: &T) {
        let (next, prev) = (item.link().next.get(), item.link().prev.get());
        match Self::at(prev) {
            Some(before) => before.link().next.set(next),
            None => self.head.set(next),
        }
        match Self::at(next) {
            Some(after) => after.link().prev.set(prev),
            None => self.tail.set(prev),
        }
        item.link().next.set(0);
        item.link().prev.set(0);
    }

    /// Takes out the oldest entry.
    pub fn pop_front(&self) -> Option<&'static T> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.head.get() == 0
    }
}

impl<T: Linked<Tag>, Tag> Default for List<T, Tag> {
    fn default() -> Self {
        Self::new()
    }
}
