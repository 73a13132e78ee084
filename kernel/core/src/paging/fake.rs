//! Table memory that remembers every write, and a walker that looks at any moment of its history.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::{ENTRIES, PtFormat, PtMemory};
use crate::addr::PhysAddr;

/// One change of the memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Write(PhysAddr, usize, u64),
    Alloc(PhysAddr),
    Free(PhysAddr),
}

#[derive(Clone, Debug)]
pub(super) struct FakeMemory {
    tables: BTreeMap<u64, Vec<u64>>,
    next: u64,
    /// Tables that `alloc_table` still hands out.
    pub(super) quota: usize,
    pub(super) history: Vec<Event>,
}

impl FakeMemory {
    /// Memory with an empty root.
    pub(super) fn new(quota: usize) -> (Self, PhysAddr) {
        let mut mem = FakeMemory {
            tables: BTreeMap::new(),
            next: 0x5_0000_0000,
            quota: quota + 1,
            history: Vec::new(),
        };
        let root = mem.alloc_table().unwrap();
        mem.history.clear();
        (mem, root)
    }

    /// Tables in use, the root included.
    pub(super) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Does again what happened to another memory.
    pub(super) fn replay(&mut self, event: Event) {
        match event {
            Event::Write(table, index, entry) => self.write(table, index, entry),
            Event::Alloc(table) => drop(self.tables.insert(table.0, std::vec![0; ENTRIES])),
            Event::Free(table) => self.free_table(table),
        }
    }

    /// Entries that are not zero.
    pub(super) fn used_entries(&self) -> usize {
        self.tables.values().flatten().filter(|&&entry| entry != 0).count()
    }
}

impl PtMemory for FakeMemory {
    fn read(&self, table: PhysAddr, index: usize) -> u64 {
        self.tables.get(&table.0).expect("the walker left the tables")[index]
    }

    fn write(&mut self, table: PhysAddr, index: usize, entry: u64) {
        self.tables.get_mut(&table.0).expect("a write outside of the tables")[index] = entry;
        self.history.push(Event::Write(table, index, entry));
    }

    fn clear(&mut self, table: PhysAddr, index: usize, bits: u64) -> u64 {
        let old = self.read(table, index);
        self.write(table, index, old & !bits);
        old
    }

    fn alloc_table(&mut self) -> Option<PhysAddr> {
        self.quota = self.quota.checked_sub(1)?;
        let table = PhysAddr(self.next);
        self.next += 4096;
        self.tables.insert(table.0, std::vec![0; ENTRIES]);
        self.history.push(Event::Alloc(table));
        Some(table)
    }

    fn free_table(&mut self, table: PhysAddr) {
        let is_linked = self.tables.values().flatten().any(|entry| entry & 0x000f_ffff_ffff_f000 == table.0);
        assert!(!is_linked, "freed while hardware could still walk it");
        self.tables.remove(&table.0).expect("freed once");
        self.quota += 1;
        self.history.push(Event::Free(table));
    }
}

/// What hardware finds at `va`: the frame and the leaf's own bits.
pub(super) fn hardware_walk<F: PtFormat>(
    mem: &FakeMemory,
    root: PhysAddr,
    va: u64,
) -> Option<(u64, super::Attr)> {
    let mut table = root;
    for level in (1..=4).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry = mem.read(table, (va >> shift) as usize & 511);
        if !F::is_present(entry) {
            return None;
        }
        if F::is_leaf(entry, level) {
            let offset = va & ((1 << shift) - 1) & !0xfff;
            return Some((F::addr(entry, level).0 | offset, F::attr(entry)));
        }
        table = F::addr(entry, level);
    }
    None
}
