//! Which interrupts devices raise: those that somebody waits for, where the units remap interrupts. An interrupt's place in their
//! table is its vector, so no place has to be found, and none is ever shared.

use super::IOMMU;
use kcore::iommu::{Delivery, Request};

/// Lets an interrupt through, and returns how its pin or its device asks for it.
pub fn admit(delivery: Delivery) -> Request {
    set(delivery.vector, Some(delivery)).unwrap_or(Request::direct(delivery))
}

/// Lets an interrupt through no more. When it returns, none is on its way but to the CPU's local APIC.
pub fn shut(vector: u8) {
    set(vector, None);
}

/// The request of what was let through; `None` where nothing is remapped, too.
fn set(vector: u8, delivery: Option<Delivery>) -> Option<Request> {
    let mut iommu = IOMMU.lock();
    let iommu = iommu.as_mut().filter(|iommu| iommu.shared.limits.remaps_interrupts)?;
    let shared = iommu.shared;
    let unit = iommu.each().next()?;
    // SAFETY: the table is what `start` made.
    unsafe { unit.route(shared, vector, delivery) };
    let request = delivery.map(|delivery| unit.request(delivery));
    iommu.flush();
    request
}
