//! Queues of objects by when they are due: [`kcore::sched::deadlines`] with links in the objects.

use core::cell::Cell;
use core::marker::PhantomData;
use kcore::sched::deadlines::{Deadlines, Nodes};

/// Links of an object in a [`DueQueue`], and when it is due (TSC).
#[derive(Debug)]
pub struct DueLink {
    when: Cell<u64>,
    parent: Cell<u64>,
    children: [Cell<u64>; 2],
}

impl DueLink {
    /// Not in a queue.
    pub const fn new() -> Self {
        DueLink { when: Cell::new(u64::MAX), parent: Cell::new(0), children: [const { Cell::new(0) }; 2] }
    }

    /// When it is due, TSC; means something in a queue.
    pub fn when(&self) -> u64 {
        self.when.get()
    }
}

impl Default for DueLink {
    fn default() -> Self {
        Self::new()
    }
}

/// An object that can be in a [`DueQueue`]: in one only.
///
/// # Safety
/// `due` returns the same field of the same object every time.
pub unsafe trait Due: Sized + 'static {
    /// The link.
    fn due(&self) -> &DueLink;
}

/// Objects by when they are due. Whoever owns the queue says which lock guards it and the links.
#[derive(Debug)]
pub struct DueQueue<T: 'static> {
    tree: Deadlines,
    marker: PhantomData<&'static T>,
}

impl<T: Due> DueQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        DueQueue { tree: Deadlines::new(), marker: PhantomData }
    }

    /// What is due first.
    pub fn first(&self) -> Option<&'static T> {
        match self.tree.first() {
            0 => None,
            id => Some(at(id)),
        }
    }

    /// When that is due, `u64::MAX` if there is none.
    pub fn next(&self) -> u64 {
        self.first().map_or(u64::MAX, |item| item.due().when())
    }

    /// Adds an object that is in no queue.
    pub fn insert(&mut self, item: &'static T, when: u64) {
        item.due().when.set(when);
        self.tree.insert(&mut Links::<T>(PhantomData), item as *const T as u64);
    }

    /// Takes out an object that is in this queue.
    pub fn remove(&mut self, item: &T) {
        self.tree.remove(&mut Links::<T>(PhantomData), item as *const T as u64);
    }
}

impl<T: Due> Default for DueQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn at<T: Due>(id: u64) -> &'static T {
    // SAFETY: ids are addresses of objects in the queue, and an object leaves it before it is freed.
    unsafe { &*(id as *const T) }
}

struct Links<T>(PhantomData<T>);

impl<T: Due> Nodes for Links<T> {
    fn key(&self, id: u64) -> u64 {
        at::<T>(id).due().when.get()
    }

    fn child(&self, id: u64, side: usize) -> u64 {
        at::<T>(id).due().children[side & 1].get()
    }

    fn set_child(&mut self, id: u64, side: usize, child: u64) {
        at::<T>(id).due().children[side & 1].set(child);
    }

    fn parent(&self, id: u64) -> u64 {
        at::<T>(id).due().parent.get()
    }

    fn set_parent(&mut self, id: u64, parent: u64) {
        at::<T>(id).due().parent.set(parent);
    }
}
