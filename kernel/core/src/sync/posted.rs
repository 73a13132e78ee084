//! Interrupt vectors on their way to a vCPU.

use super::atomic::{AtomicBool, AtomicU64, Ordering};

/// A bit for each vector, and whether there are any.
#[derive(Debug, Default)]
pub struct Posted {
    pub(super) vectors: [AtomicU64; 4],
    pub(super) is_posted: AtomicBool,
}

impl Posted {
    /// Adds a vector. Whether the vCPU is to be kicked: it is not, if it has not yet taken others.
    #[inline]
    pub fn add(&self, vector: u8) -> bool {
        self.vectors[usize::from(vector >> 6)].fetch_or(1 << (vector & 63), Ordering::SeqCst);
        !self.is_posted.swap(true, Ordering::SeqCst)
    }

    /// Whether there are any to take.
    #[inline]
    pub fn is_some(&self) -> bool {
        self.is_posted.load(Ordering::SeqCst)
    }

    /// Takes them: calls `request` with a number and the vectors from 64 times that on.
    #[inline]
    pub fn take(&self, mut request: impl FnMut(usize, u64)) {
        // The flag first: a vector that comes after its word was taken sets it again.
        if self.is_posted.swap(false, Ordering::SeqCst) {
            for (index, vectors) in self.vectors.iter().enumerate() {
                request(index, vectors.swap(0, Ordering::SeqCst));
            }
        }
    }
}
