//! The memory that a driver's device reaches, where the machine has an IOMMU.

use crate::error::StartError;
use crate::memory::Allocation;
use crate::pci::Function;
use crate::system::System;
use usys::abi::Rights;
use usys::abi::boot_info::{Machine, root};
use usys::abi::cap::MapFlags;
use usys::cap::{Cap, Devices, DmaSpace, Narrow};
use usys::{process, selector};

/// A device, and a space with the memory that it reaches while it is let in.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    space: Cap<DmaSpace>,
    device: Cap<Devices>,
}

impl Confinement {
    /// An empty space for a device; `None` if the machine has no IOMMU. Only what [`Self::admit`] lets in reaches what is mapped there.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn new(system: &System, function: Function) -> Result<Option<Self>, StartError> {
        if system.info.machine & Machine::DMA_SPACES.bits() == 0 {
            return Ok(None);
        }
        let space = process::pool().create_dma_space(selector::allocate()?)?;
        let devices: Cap<Devices> = Cap::new(root::DEVICES);
        let only = Narrow::rights(Rights::USE).range(function.requester_id().into(), 1);
        let device = devices.derive(selector::allocate()?, only)?;
        Ok(Some(Confinement { space, device }))
    }

    /// Maps memory at its physical addresses, for reading and writing.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn map(&self, memory: &Allocation) -> usys::Result<()> {
        let rights = Narrow::rights(Rights::READ | Rights::WRITE);
        let part = memory.memory().derive(selector::allocate()?, rights)?;
        part.map(self.space, memory.address(), 0, memory.pages(), MapFlags::READ | MapFlags::WRITE)
    }

    /// Lets the device in.
    pub fn admit(&self) -> usys::Result<()> {
        self.space.admit(self.device, 0)
    }

    /// Keeps the device out again. Afterwards it reaches no memory.
    pub fn expel(&self) {
        // It fails if the device was not let in.
        let _ = self.device.expel();
    }
}
