//! A vector of fixed capacity.

use core::ops::{Deref, DerefMut};

/// Up to `N` values in place.
#[derive(Clone, Copy, Debug)]
pub struct FixedVec<T, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy + Default, const N: usize> FixedVec<T, N> {
    /// An empty one.
    pub fn new() -> Self {
        FixedVec { items: [T::default(); N], len: 0 }
    }

    /// Appends `item`; false if there is no room.
    #[must_use]
    pub fn push(&mut self, item: T) -> bool {
        self.insert(self.len, item)
    }

    /// Inserts `item` before `index`; false if there is no room.
    #[must_use]
    pub fn insert(&mut self, index: usize, item: T) -> bool {
        if self.len == N || index > self.len {
            return false;
        }
        self.items.copy_within(index..self.len, index + 1);
        self.items[index] = item;
        self.len += 1;
        true
    }

    /// Removes the item at `index`, if there is one.
    pub fn remove(&mut self, index: usize) {
        if index < self.len {
            self.items.copy_within(index + 1..self.len, index);
            self.len -= 1;
        }
    }
}

impl<T: Copy + Default, const N: usize> Default for FixedVec<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> Deref for FixedVec<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..self.len]
    }
}

impl<T, const N: usize> DerefMut for FixedVec<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[..self.len]
    }
}

impl<T: PartialEq, const N: usize> PartialEq for FixedVec<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
