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
    /// Interrupts of devices are remapped.
    pub remaps_interrupts: bool,
    /// Remapped interrupts go to APIC IDs of 32 bits.
    pub has_wide_apic_ids: bool,
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
            remaps_interrupts: self.remaps_interrupts && other.remaps_interrupts,
            has_wide_apic_ids: self.has_wide_apic_ids && other.has_wide_apic_ids,
        }
    }

    /// Levels of page tables.
    pub fn levels(self) -> Option<usize> {
        if self.has_4_levels { Some(4) } else { self.has_3_levels.then_some(3) }
    }
}

/// Where an interrupt of a device goes: fixed, to one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The vector, which is also the interrupt's place in the table.
    pub vector: u8,
    /// The CPU's; below 256.
    pub apic_id: u32,
    /// From a pin that is level-triggered.
    pub is_level: bool,
}

/// How an interrupt is told to what raises it, so that it comes as a [`Delivery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Upper half of the redirection entry of an I/O APIC's pin.
    pub redirection: u32,
    /// Address to which a device writes.
    pub address: u32,
    /// What it writes.
    pub data: u32,
}

impl Request {
    /// Where devices write messages that are interrupts.
    pub const BASE: u32 = 0xfee0_0000;

    /// As without remapping: a physical destination, fixed (SDM 3A 10.11; 82093AA 3.2.4).
    pub fn direct(delivery: Delivery) -> Request {
        let Delivery { vector, apic_id, .. } = delivery;
        Request { redirection: apic_id << 24, address: Self::BASE | apic_id << 12, data: vector.into() }
    }
}

/// What a device tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read memory.
    Read,
    /// To write memory.
    Write,
    /// To raise an interrupt.
    Interrupt,
}

/// A device did what it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The device.
    pub device: u16,
    /// The address it used; of an interrupt what the unit says about it.
    pub address: u64,
    /// What that was for.
    pub access: Access,
    /// Why that was refused, in the terms of the unit's manual.
    pub reason: u8,
}

/// A command, or an event.
pub type Record = [u64; 2];
