//! IOMMUs: what memory devices reach. Nothing outside this folder names VT-d or AMD-Vi.
//!
//! All units share one table of devices. One without a space reaches nothing. Page tables have the format that CPUs of the same
//! vendor use for guests, which both vendors made so that they can.

mod amdvi;
mod tables;
mod vtd;

use crate::mem::FrameSource;
use crate::sync::Lock;
use kcore::addr::PhysAddr;
use kcore::boot::iommu::{Architecture, IommuUnit};
use kcore::iommu::{Fault, Limits, Space};
use kcore::paging::{Attr, MapDone, Partial, Unmapped};

pub use tables::{prepare, release};

/// Domains of spaces: 0 is none's.
const DOMAINS: u32 = 256;
/// Faults that one interrupt deals with.
const FAULTS_AT_ONCE: usize = 64;
/// Looks at a register, or at memory, until a unit has done what it was told.
const PATIENCE: u32 = 100_000_000;

/// Memory of a unit's own: a page for commands, one for the answer, and one for events, if they are in memory.
const UNIT_PAGES: u64 = 3;

/// One unit, of either vendor.
///
/// # Safety
/// Implementations guarantee that from the end of [`Self::enable`] on a device reaches no memory that its entry in the table does not
/// give it, and that [`Self::flush`] ends what was taken away.
unsafe trait Unit: Sized {
    /// Pages of the table of devices.
    const TABLE_PAGES: u64;

    /// Reads what a unit can do, or says why it cannot be used.
    ///
    /// # Safety
    /// The unit's registers are mapped uncached in the direct map, and nobody else uses them.
    unsafe fn probe(unit: &IommuUnit) -> Result<(Self, Limits), &'static str>;

    /// Fills a zeroed table: no device has a space.
    ///
    /// # Safety
    /// The table is [`Self::TABLE_PAGES`] of RAM in the direct map, for ever the units'. So it is for the methods below.
    unsafe fn prepare(table: PhysAddr);

    /// Whether a device has a space.
    ///
    /// # Safety
    /// As [`Self::prepare`].
    unsafe fn is_assigned(table: PhysAddr, device: u16) -> bool;

    /// Gives a device a space of `levels` levels, or none. A flush is due.
    ///
    /// # Safety
    /// As [`Self::prepare`]; the space's tables stay until after the device has another or none, and a flush.
    unsafe fn assign(table: PhysAddr, device: u16, space: Option<Space>, levels: usize);

    /// Has no more faults of a device recorded until it gets another space: true if they were so far. A flush is due.
    ///
    /// # Safety
    /// As [`Self::prepare`].
    unsafe fn silence(table: PhysAddr, device: u16) -> bool;

    /// Switches remapping on. Faults raise [`crate::irq::vector::DMA_FAULT`] at the CPU with this APIC ID, if the unit can.
    ///
    /// # Safety
    /// As [`Self::prepare`]; `own` is [`UNIT_PAGES`] of zeroed RAM for the unit alone.
    unsafe fn enable(&mut self, table: PhysAddr, own: PhysAddr, apic_id: u32);

    /// Drops everything that the unit cached, and waits until that is done.
    fn flush(&mut self);

    /// Takes the next fault out of the unit's records.
    fn next_fault(&mut self) -> Option<Fault>;
}

/// The units of a machine.
struct Iommu<U> {
    units: [Option<U>; 8],
    table: PhysAddr,
    limits: Limits,
    levels: usize,
}

impl<U: Unit> Iommu<U> {
    /// # Safety
    /// As [`start`].
    unsafe fn start(
        found: &[IommuUnit],
        apic_id: u32,
        mut take_pages: impl FnMut(u64) -> PhysAddr,
    ) -> Result<Self, &'static str> {
        let mut units = [const { None }; 8];
        let mut limits: Option<Limits> = None;
        for (place, unit) in units.iter_mut().zip(found.iter()) {
            // SAFETY: by the contract of this function.
            let (unit, own) = unsafe { U::probe(unit)? };
            limits = Some(limits.map_or(own, |limits| limits.with(own)));
            *place = Some(unit);
        }
        let limits = limits.ok_or("there is none that may be used")?;
        let levels = limits.levels().ok_or("they agree on no size of page tables")?;
        let table = take_pages(U::TABLE_PAGES);
        let mut iommu = Iommu { units, table, limits, levels };
        // SAFETY: the pages are RAM for ever nobody else's.
        unsafe {
            U::prepare(table);
            if !limits.is_coherent {
                tables::write_back(table, U::TABLE_PAGES * 4096);
            }
            iommu
                .units
                .iter_mut()
                .flatten()
                .for_each(|unit| unit.enable(table, take_pages(UNIT_PAGES), apic_id));
        }
        Ok(iommu)
    }

    fn flush(&mut self) {
        self.units.iter_mut().flatten().for_each(U::flush);
    }

    /// # Safety
    /// As [`Unit::assign`].
    unsafe fn assign(&mut self, device: u16, space: Option<Space>) -> bool {
        // SAFETY: the table is what `start` made; the rest is the caller's promise.
        unsafe {
            if space.is_some() && U::is_assigned(self.table, device) {
                return false;
            }
            U::assign(self.table, device, space, self.levels);
        }
        self.flush();
        true
    }

    fn report_faults(&mut self, report: fn(Fault)) {
        let mut has_silenced = false;
        for unit in self.units.iter_mut().flatten() {
            for fault in (0..FAULTS_AT_ONCE).map_while(|_| unit.next_fault()) {
                // SAFETY: the table is what `start` made.
                if unsafe { U::silence(self.table, fault.device) } {
                    has_silenced = true;
                    report(fault);
                }
            }
        }
        if has_silenced {
            self.flush();
        }
    }
}

/// The machine's kind.
enum Any {
    Vtd(Iommu<vtd::Unit>),
    AmdVi(Iommu<amdvi::Unit>),
}

struct State {
    iommu: Option<Any>,
    /// Domains in use.
    domains: [u64; DOMAINS as usize / 64],
}

static STATE: Lock<State> = Lock::new(State { iommu: None, domains: [1, 0, 0, 0] });

macro_rules! dispatch {
    ($state:expr, $iommu:ident => $call:expr, else $none:expr) => {
        match &mut $state.iommu {
            Some(Any::Vtd($iommu)) => $call,
            Some(Any::AmdVi($iommu)) => $call,
            None => $none,
        }
    };
}

/// Switches all units on: from then on no device reaches any memory. Once, at boot. Faults are told to the CPU with this APIC ID.
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
    take_pages: impl FnMut(u64) -> PhysAddr,
) -> Result<(), &'static str> {
    // Half of a machine's devices confined would be worse than none: it would look safe.
    if dropped != 0 {
        return Err("there are too many, or the firmware lists nonsense");
    }
    if found.iter().any(|unit| unit.segment != 0) {
        return Err("there is more than one PCI segment");
    }
    // SAFETY: by the contract of this function.
    let iommu = unsafe {
        match found.first().map(|unit| unit.architecture) {
            Some(Architecture::AmdVi) => Any::AmdVi(Iommu::start(found, apic_id, take_pages)?),
            _ => Any::Vtd(Iommu::start(found, apic_id, take_pages)?),
        }
    };
    STATE.lock().iommu = Some(iommu);
    Ok(())
}

/// What the units can do, and the levels of page tables; `None` if there are none.
pub fn limits() -> Option<(Limits, usize)> {
    dispatch!(STATE.lock(), iommu => Some((iommu.limits, iommu.levels)), else None)
}

/// What the addresses of devices are below.
pub fn end() -> u64 {
    limits().map_or(0, |(_, levels)| 1 << (12 + 9 * levels))
}

/// A domain that no space has.
pub fn take_domain() -> Option<u16> {
    let end = limits()?.0.domains.min(DOMAINS);
    let mut state = STATE.lock();
    let domain = (0..end).find(|domain| state.domains[*domain as usize / 64] >> (domain % 64) & 1 == 0)?;
    state.domains[domain as usize / 64] |= 1 << (domain % 64);
    Some(domain as u16)
}

/// Gives a domain back that no device is in.
pub fn give_domain(domain: u16) {
    STATE.lock().domains[domain as usize / 64 % 4] &= !(1 << (domain % 64));
}

/// Gives a device a space; false if it has one.
///
/// # Safety
/// The tables of the space stay until after [`withdraw`].
pub unsafe fn assign(device: u16, space: Space) -> bool {
    let space = tables::as_hardware_walks(space);
    // SAFETY: by the contract of this function.
    dispatch!(STATE.lock(), iommu => unsafe { iommu.assign(device, Some(space)) }, else false)
}

/// Takes a device's space away. When it returns, the device reaches no memory.
pub fn withdraw(device: u16) {
    // SAFETY: no space is given.
    dispatch!(STATE.lock(), iommu => unsafe { iommu.assign(device, None) }, else false);
}

/// Reports faults: of each device the first one since its space changed.
pub fn report_faults(report: fn(Fault)) {
    dispatch!(STATE.lock(), iommu => iommu.report_faults(report), else ());
}

fn flush() {
    dispatch!(STATE.lock(), iommu => iommu.flush(), else ());
}

/// Maps `pages` pages at the devices' `address` to the frames from `pa` on, or as many as are done in a short time.
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
) -> Result<MapDone, Partial> {
    // SAFETY: by the contract of this function.
    let result = unsafe { tables::map(frames, root, address, pa, pages, attr) };
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
