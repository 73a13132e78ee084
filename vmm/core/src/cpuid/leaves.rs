//! The answers of CPUID, by leaf. It is the commonest exit of some guests, so the way to one is short.

use alloc::vec::Vec;
use hypercall_abi::guest::cpuid as guest;

use super::{EXTENDED, EXTENDED_MAX, HYPERVISOR, HYPERVISOR_MAX, INTEL_MAX};
use crate::facts::CpuidRegs;

/// First slot of the hypervisor's range, behind the basic leaves.
const HYPERVISOR_SLOT: usize = INTEL_MAX as usize + 1;
/// First slot of the paravirtual devices' leaves.
const DEVICES_SLOT: usize = HYPERVISOR_SLOT + (HYPERVISOR_MAX - HYPERVISOR) as usize + 1;
/// Last of these leaves.
const DEVICES_MAX: u32 = guest::BASE + guest::DEVICES;
/// First slot of the extended range.
const EXTENDED_SLOT: usize = DEVICES_SLOT + (DEVICES_MAX - guest::BASE) as usize + 1;
const SLOTS: usize = EXTENDED_SLOT + (EXTENDED_MAX - EXTENDED) as usize + 1;

/// The answers that do not depend on the state of the CPU.
#[derive(Clone, Debug)]
pub(super) struct Leaves {
    /// Subleaf 0 of each leaf, by [`slot`].
    first: [Option<CpuidRegs>; SLOTS],
    /// Leaf, subleaf and answer of the others.
    others: Vec<(u32, u32, CpuidRegs)>,
}

impl Leaves {
    pub(super) fn new() -> Self {
        Leaves { first: [None; SLOTS], others: Vec::new() }
    }

    /// The answer; leaves that do not look at ECX answer any `subleaf`.
    pub(super) fn get(&self, leaf: u32, subleaf: u32) -> Option<CpuidRegs> {
        if subleaf == 0 || !matches!(leaf, 4 | 7 | 0xd) {
            return self.first[slot(leaf)?];
        }
        let mut others = self.others.iter();
        others.find(|other| (other.0, other.1) == (leaf, subleaf)).map(|other| other.2)
    }

    /// Adds an answer; one outside the four ranges is not kept.
    pub(super) fn set(&mut self, leaf: u32, subleaf: u32, regs: CpuidRegs) {
        if subleaf != 0 {
            self.others.push((leaf, subleaf, regs));
        } else if let Some(slot) = slot(leaf) {
            self.first[slot] = Some(regs);
        }
    }
}

fn slot(leaf: u32) -> Option<usize> {
    match leaf {
        0..=INTEL_MAX => Some(leaf as usize),
        HYPERVISOR..=HYPERVISOR_MAX => Some(HYPERVISOR_SLOT + (leaf - HYPERVISOR) as usize),
        guest::BASE..=DEVICES_MAX => Some(DEVICES_SLOT + (leaf - guest::BASE) as usize),
        EXTENDED..=EXTENDED_MAX => Some(EXTENDED_SLOT + (leaf - EXTENDED) as usize),
        _ => None,
    }
}
