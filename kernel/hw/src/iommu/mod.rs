//! IOMMUs: what memory devices reach, and which interrupts they raise. Nothing outside this folder names VT-d or AMD-Vi.
//!
//! All units share one table of devices. One without a space reaches nothing. Page tables have the format that CPUs of the same
//! vendor use for guests, which both vendors made so that they can.

mod amdvi;
mod interrupts;
mod tables;
mod vtd;

use crate::mem::FrameSource;
use crate::sync::Lock;
use kcore::addr::PhysAddr;
use kcore::boot::iommu::{Architecture, IommuUnit};
use kcore::iommu::{Delivery, Fault, Limits, Request, Space};
use kcore::paging::{Attr, MapDone, Partial, Unmapped};

pub use interrupts::{admit, shut};
pub use tables::{prepare, release};

/// Units that are used at most: what the firmware's list has room for.
const MAX_UNITS: usize = 8;
/// Domains of spaces: 0 is none's.
const DOMAINS: u32 = 256;
/// Faults that one interrupt deals with.
const FAULTS_AT_ONCE: usize = 64;
/// Looks at a register, or at memory, until a unit has done what it was told.
const PATIENCE: u32 = 100_000_000;

/// Memory of a unit's own: a page for commands, one for the answer, and one for events, if they are in memory.
const UNIT_PAGES: u64 = 3;

/// Tables that all units of a machine share. They are RAM in the direct map, for ever the units'.
#[derive(Clone, Copy, Debug)]
struct Shared {
    /// What memory each device reaches.
    devices: PhysAddr,
    /// A page: where interrupts go.
    interrupts: PhysAddr,
    /// What all units can do.
    limits: Limits,
}

/// One unit, of either vendor. All units of a machine have the same table of devices, so any of them can change it.
///
/// # Safety
/// Implementations guarantee that from the end of [`Self::enable`] on a device reaches no memory that its entry in the table does not
/// give it, raises no interrupt that the table of interrupts does not give, if they are remapped, and that [`Self::flush`] ends what
/// was taken away.
unsafe trait Unit {
    /// Pages of the table of devices.
    fn table_pages(&self) -> u64;

    /// Fills a zeroed table of devices: none has a space.
    ///
    /// # Safety
    /// The table is [`Self::table_pages`] of RAM in the direct map, for ever the units'. So it is for the methods below.
    unsafe fn prepare(&self, shared: Shared);

    /// Whether a device has a space.
    ///
    /// # Safety
    /// As [`Self::prepare`].
    unsafe fn is_assigned(&self, table: PhysAddr, device: u16) -> bool;

    /// Gives a device a space of `levels` levels, or none. A flush is due.
    ///
    /// # Safety
    /// As [`Self::prepare`]; the space's tables stay until after the device has another or none, and a flush.
    unsafe fn assign(&self, table: PhysAddr, device: u16, space: Option<Space>, levels: usize);

    /// Has no more faults of a device recorded until it gets another space: true if they were so far. A flush is due.
    ///
    /// # Safety
    /// As [`Self::prepare`].
    unsafe fn silence(&self, table: PhysAddr, device: u16) -> bool;

    /// Makes the interrupt `index` of the table a delivery, or nothing. A flush is due.
    ///
    /// # Safety
    /// The table of interrupts is a page of RAM in the direct map, for ever the units'.
    unsafe fn route(&self, shared: Shared, index: u8, delivery: Option<Delivery>);

    /// How an interrupt is asked for that is in the table.
    fn request(&self, delivery: Delivery) -> Request;

    /// Switches remapping on. Faults raise [`crate::irq::vector::DMA_FAULT`] at the CPU with this APIC ID, if the unit can.
    ///
    /// # Safety
    /// As [`Self::prepare`]; `own` is [`UNIT_PAGES`] of zeroed RAM for the unit alone.
    unsafe fn enable(&mut self, shared: Shared, own: PhysAddr, apic_id: u32);

    /// Drops everything that the unit cached, and waits until that is done.
    fn flush(&mut self);

    /// Takes the next fault out of the unit's records.
    fn next_fault(&mut self) -> Option<Fault>;
}

#[derive(Debug)]
enum AnyUnit {
    Vtd(vtd::Unit),
    AmdVi(amdvi::Unit),
}

impl AnyUnit {
    fn get(&mut self) -> &mut dyn Unit {
        match self {
            AnyUnit::Vtd(unit) => unit,
            AnyUnit::AmdVi(unit) => unit,
        }
    }
}

/// The units of a machine; none before [`start`], or if it failed.
#[derive(Debug)]
struct Iommu {
    units: [Option<AnyUnit>; MAX_UNITS],
    architecture: Architecture,
    shared: Shared,
    /// Levels of page tables.
    levels: usize,
    /// Domains in use.
    domains: [u64; DOMAINS as usize / 64],
}

static IOMMU: Lock<Option<Iommu>> = Lock::new(None);

impl Iommu {
    fn each(&mut self) -> impl Iterator<Item = &mut dyn Unit> {
        self.units.iter_mut().flatten().map(AnyUnit::get)
    }

    fn flush(&mut self) {
        self.each().for_each(|unit| unit.flush());
    }

    /// # Safety
    /// As [`Unit::assign`].
    unsafe fn assign(&mut self, device: u16, space: Option<Space>) -> bool {
        let (table, levels) = (self.shared.devices, self.levels);
        let Some(unit) = self.each().next() else { return false };
        // SAFETY: the table is what `start` made; the rest is the caller's promise.
        unsafe {
            if space.is_some() && unit.is_assigned(table, device) {
                return false;
            }
            unit.assign(table, device, space, levels);
        }
        self.flush();
        true
    }
}

/// Switches all units on: from then on no device reaches any memory, nor raises an interrupt if the units can see to that, which is
/// returned. Once, at boot. Faults are told to the CPU with this APIC ID.
///
/// # Errors
/// Why that cannot be. No unit was switched on.
///
/// # Safety
/// The registers of the units are mapped uncached in the direct map, and nobody else uses them. `take_pages` gives contiguous
/// zeroed pages of RAM that are nobody else's for ever.
pub unsafe fn start(
    found: &[IommuUnit],
    dropped: u32,
    apic_id: u32,
    take_pages: fn(u64) -> PhysAddr,
) -> Result<bool, &'static str> {
    // Half of a machine's devices confined would be worse than none: it would look safe.
    if dropped != 0 {
        return Err("there are too many, or the firmware lists nonsense");
    }
    if found.iter().any(|unit| unit.segment != 0) {
        return Err("there is more than one PCI segment");
    }
    let mut units = [const { None }; MAX_UNITS];
    let mut limits: Option<Limits> = None;
    for (place, unit) in units.iter_mut().zip(found) {
        // SAFETY: by the contract of this function.
        let (unit, own) = unsafe {
            match unit.architecture {
                Architecture::Vtd => vtd::Unit::probe(unit).map(|(unit, own)| (AnyUnit::Vtd(unit), own))?,
                Architecture::AmdVi => {
                    amdvi::Unit::probe(unit).map(|(unit, own)| (AnyUnit::AmdVi(unit), own))?
                }
            }
        };
        limits = Some(limits.map_or(own, |limits| limits.with(own)));
        *place = Some(unit);
    }
    let (Some(limits), Some(first)) = (limits, &mut units[0]) else {
        return Err("there is none that may be used");
    };
    let levels = limits.levels().ok_or("they agree on no size of page tables")?;
    let pages = first.get().table_pages();
    let shared = Shared { devices: take_pages(pages), interrupts: take_pages(1), limits };
    // SAFETY: the pages are RAM for ever nobody else's.
    unsafe {
        first.get().prepare(shared);
        (0..=u8::MAX).for_each(|index| first.get().route(shared, index, None));
        if !limits.is_coherent {
            tables::write_back(shared.devices, pages * 4096);
        }
    }
    let architecture = found[0].architecture;
    let mut iommu = Iommu { units, architecture, shared, levels, domains: [1, 0, 0, 0] };
    // SAFETY: as above.
    iommu.each().for_each(|unit| unsafe { unit.enable(shared, take_pages(UNIT_PAGES), apic_id) });
    *IOMMU.lock() = Some(iommu);
    Ok(limits.remaps_interrupts)
}

/// What the addresses of devices are below; 0 if devices are not confined.
pub fn end() -> u64 {
    IOMMU.lock().as_ref().map_or(0, |iommu| 1 << (12 + 9 * iommu.levels))
}

/// A domain that no space has.
pub fn take_domain() -> Option<u16> {
    let mut iommu = IOMMU.lock();
    let iommu = iommu.as_mut()?;
    let end = iommu.shared.limits.domains.min(DOMAINS);
    let domain = (0..end).find(|domain| iommu.domains[*domain as usize / 64] >> (domain % 64) & 1 == 0)?;
    iommu.domains[domain as usize / 64] |= 1 << (domain % 64);
    Some(domain as u16)
}

/// Gives a domain back that no device is in.
pub fn give_domain(domain: u16) {
    if let Some(iommu) = IOMMU.lock().as_mut() {
        iommu.domains[domain as usize / 64 % 4] &= !(1 << (domain % 64));
    }
}

/// Gives a device a space; false if it has one.
///
/// # Safety
/// The tables of the space stay until after [`withdraw`].
pub unsafe fn assign(device: u16, space: Space) -> bool {
    IOMMU.lock().as_mut().is_some_and(|iommu| {
        let space = tables::as_hardware_walks(space, iommu.levels);
        // SAFETY: by the contract of this function.
        unsafe { iommu.assign(device, Some(space)) }
    })
}

/// Takes a device's space away. When it returns, the device reaches no memory.
pub fn withdraw(device: u16) {
    if let Some(iommu) = IOMMU.lock().as_mut() {
        // SAFETY: no space is given.
        unsafe { iommu.assign(device, None) };
    }
}

/// Reports faults: of each device the first one since its space changed.
pub fn report_faults(report: fn(Fault)) {
    let mut iommu = IOMMU.lock();
    let Some(iommu) = iommu.as_mut() else { return };
    let table = iommu.shared.devices;
    for unit in iommu.each() {
        for _ in 0..FAULTS_AT_ONCE {
            let Some(fault) = unit.next_fault() else { break };
            // SAFETY: the table is what `start` made.
            if unsafe { unit.silence(table, fault.device) } {
                report(fault);
            }
        }
        // For what was silenced.
        unit.flush();
    }
}

fn flush() {
    if let Some(iommu) = IOMMU.lock().as_mut() {
        iommu.flush();
    }
}

/// Maps `pages` pages at the devices' `address` to the frames from `pa` on, with about `limit` visits to entries.
///
/// # Safety
/// As [`crate::mem::Tables::new`].
pub unsafe fn map<A: FrameSource>(
    frames: A,
    root: PhysAddr,
    address: u64,
    pa: PhysAddr,
    pages: u64,
    attr: Attr,
    limit: usize,
) -> Result<MapDone, Partial> {
    // SAFETY: by the contract of this function.
    let result = unsafe { tables::map(frames, root, address, pa, pages, attr, limit) };
    // Rights that were added count too, and absence may have been cached.
    flush();
    result
}

/// Removes translations that point at frames from `frame` on, with at most `budget` visits to entries. When it returns, no device
/// uses what was removed.
///
/// # Safety
/// As [`crate::mem::Tables::new`].
pub unsafe fn unmap<A: FrameSource>(
    frames: A,
    root: PhysAddr,
    address: u64,
    pages: u64,
    frame: PhysAddr,
    budget: &mut usize,
) -> Result<Unmapped, Partial> {
    // SAFETY: by the contract of this function.
    let result = unsafe { tables::unmap(frames, root, address, pages, frame, budget) };
    flush();
    result
}
