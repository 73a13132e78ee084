//! What IOMMUs read and write: entries of their tables, commands, faults. Devices are requester IDs of PCI segment 0: bus in
//! bits 8 to 15, device in 3 to 7, function in 0 to 2.

pub mod amdvi;
pub mod vtd;

use crate::addr::PhysAddr;
use crate::paging::PageSize;

/// Tables that devices can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The table of the highest level.
    pub root: PhysAddr,
    /// Names what is cached of it; not 0.
    pub domain: u16,
}

/// What all units of a machine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Page tables of three levels are walked.
    pub has_3_levels: bool,
    /// Page tables of four levels are walked.
    pub has_4_levels: bool,
    /// Largest pages.
    pub largest: PageSize,
    /// Spaces have domains below this.
    pub domains: u32,
    /// Tables are read from the caches of CPUs.
    pub is_coherent: bool,
}

impl Limits {
    /// What both can do.
    pub fn with(self, other: Limits) -> Limits {
        Limits {
            has_3_levels: self.has_3_levels && other.has_3_levels,
            has_4_levels: self.has_4_levels && other.has_4_levels,
            largest: self.largest.min(other.largest),
            domains: self.domains.min(other.domains),
            is_coherent: self.is_coherent && other.is_coherent,
        }
    }

    /// Levels of page tables.
    pub fn levels(self) -> Option<usize> {
        if self.has_4_levels { Some(4) } else { self.has_3_levels.then_some(3) }
    }
}

/// A device did what it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device.
    pub device: u16,
    /// The address it used.
    pub address: u64,
    /// It wrote.
    pub is_write: bool,
    /// Why that was refused, in the terms of the unit's manual.
    pub reason: u8,
}

/// A command, or an event.
pub type Record = [u64; 2];
