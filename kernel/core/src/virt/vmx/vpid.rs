//! Which virtual-processor identifiers are in use (SDM 3C 28.1).

use core::sync::atomic::{AtomicU64, Ordering};

/// Identifiers a pool hands out: 1 to `COUNT - 1`. 0 is the host's.
const COUNT: usize = 4096;

/// A set of identifiers, for the whole machine: two vCPUs never share one, on whichever CPU they run.
#[derive(Debug)]
pub struct VpidPool {
    used: [AtomicU64; COUNT / 64],
}

impl VpidPool {
    /// A pool with every identifier free.
    pub const fn new() -> Self {
        let mut used = [const { AtomicU64::new(0) }; COUNT / 64];
        used[0] = AtomicU64::new(1);
        VpidPool { used }
    }

    /// Takes an identifier. `None` if all are in use: then the vCPU does without, and its entries flush.
    ///
    /// The new owner must invalidate what the CPU still caches under the identifier before it uses it.
    pub fn take(&self) -> Option<u16> {
        for (index, word) in self.used.iter().enumerate() {
            let mut seen = word.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = seen.trailing_ones();
                match word.compare_exchange_weak(seen, seen | 1 << bit, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return Some((index * 64) as u16 + bit as u16),
                    Err(now) => seen = now,
                }
            }
        }
        None
    }

    /// Gives an identifier back.
    pub fn give(&self, vpid: u16) {
        if let Some(word) = self.used.get(vpid as usize / 64) {
            word.fetch_and(!(1 << (vpid % 64)), Ordering::AcqRel);
        }
    }
}

impl Default for VpidPool {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn nobody_gets_the_hosts_identifier_or_one_in_use() {
        let pool = VpidPool::new();
        let mut seen = HashSet::new();
        while let Some(vpid) = pool.take() {
            assert_ne!(vpid, 0);
            assert!(seen.insert(vpid), "{vpid} was handed out twice");
        }
        assert_eq!(seen.len(), COUNT - 1);
    }

    #[test]
    fn a_returned_identifier_is_handed_out_again() {
        let pool = VpidPool::new();
        while pool.take().is_some() {}
        pool.give(77);
        assert_eq!(pool.take(), Some(77));
        assert_eq!(pool.take(), None);
    }
}
