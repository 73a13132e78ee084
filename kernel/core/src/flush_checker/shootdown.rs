//! Changes of page tables, and which CPUs have flushed since.

use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;

/// Roots whose last change is remembered. Two that share a slot only forget each other's.
const ROOTS: usize = 512;

/// A flush that did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// This CPU kept its TLB over a shootdown.
    OnCpu(usize),
    /// A page table lost something, and nobody was told to flush before the next operation began.
    Shootdown,
    /// A page table was freed before its shootdown.
    BeforeFree,
}

/// The last change of one root.
#[derive(Debug)]
struct Change {
    root: AtomicU64,
    time: AtomicU64,
}

/// The clock of the model, and the shootdown in progress: one at a time, as changes are made under one lock.
#[derive(Debug)]
pub struct Shootdown {
    now: AtomicU64,
    /// Time of the last change that no shootdown covers yet, 0 for none.
    pending: AtomicU64,
    /// Tables are being freed after their shootdown: changes mean nothing.
    is_freeing: AtomicU64,
    flushed: [AtomicU64; MAX_CPUS],
    changes: [Change; ROOTS],
}

impl Shootdown {
    /// At the beginning nothing is cached.
    pub const fn new() -> Self {
        Shootdown {
            now: AtomicU64::new(1),
            pending: AtomicU64::new(0),
            is_freeing: AtomicU64::new(0),
            flushed: [const { AtomicU64::new(1) }; MAX_CPUS],
            changes: [const { Change { root: AtomicU64::new(0), time: AtomicU64::new(0) } }; ROOTS],
        }
    }

    /// The time.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// An entry of some page table becomes another: under the lock of the tables.
    pub fn write(&self, old: u64, new: u64) {
        if super::weakens(old, new) && self.is_freeing.load(Ordering::SeqCst) == 0 {
            let time = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.pending.store(time, Ordering::SeqCst);
        }
    }

    /// Whether a change still waits for its shootdown.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) != 0
    }

    /// A change of which there is no write.
    pub fn tick(&self) {
        self.now.fetch_add(1, Ordering::SeqCst);
    }

    /// The tables below `root` changed at the present time.
    pub fn change(&self, root: u64) {
        let change = &self.changes[slot(root)];
        change.root.store(root, Ordering::SeqCst);
        change.time.store(self.now(), Ordering::SeqCst);
    }

    /// When the tables below `root` last lost something; 0 if that is not known.
    pub fn changed_at(&self, root: u64) -> u64 {
        let change = &self.changes[slot(root)];
        if change.root.load(Ordering::SeqCst) == root { change.time.load(Ordering::SeqCst) } else { 0 }
    }

    /// A CPU loaded CR3, which drops all that user code can use.
    pub fn flushed(&self, cpu: usize) {
        self.flushed[cpu].store(self.now(), Ordering::SeqCst);
    }

    /// The shootdown is over: every CPU has flushed since the last change.
    ///
    /// # Errors
    /// The first CPU that has not.
    pub fn complete(&self, cpus: usize) -> Result<(), Missing> {
        let pending = self.pending.swap(0, Ordering::SeqCst);
        let is_late = |cpu: &usize| self.flushed[*cpu].load(Ordering::SeqCst) < pending;
        (0..cpus).find(is_late).map_or(Ok(()), |cpu| Err(Missing::OnCpu(cpu)))
    }

    /// The next holder of the lock begins: whatever the last one took away was shot down.
    ///
    /// # Errors
    /// [`Missing::Shootdown`].
    pub fn begin(&self) -> Result<(), Missing> {
        if self.is_pending() { Err(Missing::Shootdown) } else { Ok(()) }
    }

    /// From here to the next call with `false` page tables that nobody can use any more are freed.
    pub fn free(&self, is_freeing: bool) {
        self.is_freeing.store(is_freeing as u64, Ordering::SeqCst);
    }

    /// A page table is freed.
    ///
    /// # Errors
    /// [`Missing::BeforeFree`].
    pub fn free_table(&self) -> Result<(), Missing> {
        if self.is_freeing.load(Ordering::SeqCst) == 0 || self.is_pending() {
            Err(Missing::BeforeFree)
        } else {
            Ok(())
        }
    }
}

impl Default for Shootdown {
    fn default() -> Self {
        Self::new()
    }
}

fn slot(root: u64) -> usize {
    (root >> 12) as usize % ROOTS
}
