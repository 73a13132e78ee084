//! DMA spaces: the memory that devices reach.

use super::pool::Pool;
use super::{Header, Object};
use crate::cap::BoundList;
use hypercall_abi::ObjectType;
use kcore::iommu::{Access, Fault, Space};
use khw::iommu;

/// A space of addresses that devices use.
#[repr(C)]
#[derive(Debug)]
pub struct DmaSpace {
    header: Header,
    /// The pool that pays for its tables.
    pub pool: &'static Pool,
    /// What the IOMMU is told.
    pub space: Space,
    /// Capabilities for the devices that are in it. Under the tree lock.
    pub devices: BoundList,
    /// Memory capabilities that are mapped into it. Under the tree lock.
    pub bound: BoundList,
}

// SAFETY: each field says who touches it.
unsafe impl Sync for DmaSpace {}
// SAFETY: first field is the header.
unsafe impl Object for DmaSpace {
    const KIND: ObjectType = ObjectType::DmaSpace;
}

impl DmaSpace {
    /// An empty space with this domain and these tables.
    pub fn new(header: Header, pool: &'static Pool, space: Space) -> DmaSpace {
        DmaSpace { header, pool, space, devices: BoundList::new(), bound: BoundList::new() }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

/// Logs what devices tried that they may not: of each the first fault since its space changed.
pub fn report_faults() {
    iommu::report_faults(|Fault { device, address, access, reason }| {
        let [bus, slot, function, reason] =
            [device >> 8, device >> 3 & 31, device & 7, reason.into()].map(u64::from);
        let access = match access {
            Access::Read => "a read of",
            Access::Write => "a write to",
            Access::Interrupt => "the interrupt",
        };
        log::warn!(
            "iommu: device {bus:02x}:{slot:02x}.{function:x} was refused {access} {address:#x} (reason {reason:#x})"
        );
    });
}
