//! What belongs to a virtio device on PCI: its registers, and memory that it reaches.

use crate::dma::Confinement;
use crate::error::StartError;
use crate::memory::Allocation;
use crate::pci::{self, Range, VirtioDevice};
use crate::process::Shared;
use crate::system::System;
use usys::abi::PAGE_SIZE;
use usys::cap::{Cap, Memory};
use vmm_protocol::process::driver::virtio::{self, PciDevice};

/// A virtio device, which reaches memory itself.
#[derive(Debug)]
pub struct DmaDevice {
    device: VirtioDevice,
    /// Capabilities for the pages of its registers.
    pages: [Registers; 4],
    queue: Allocation,
    /// Unless the machine has no IOMMU.
    confinement: Option<Confinement>,
}

#[derive(Clone, Copy, Debug)]
struct Registers {
    name: &'static str,
    memory: Cap<Memory>,
    bytes: u64,
    /// Where in the first page they begin.
    offset: u32,
}

impl DmaDevice {
    /// The machine's device with this number among those with one of `ids`, if there is one that can be used; `queue_pages` are
    /// for its queues, and whatever else it is to reach.
    ///
    /// # Errors
    /// The kernel, or the machine, has no room for what is to be mapped.
    pub fn find(
        system: &mut System,
        ids: &[u32],
        number: usize,
        queue_pages: u64,
    ) -> Result<Option<Self>, StartError> {
        let Some(mut configuration) = pci::Ports::new() else { return Ok(None) };
        let Some(&function) = pci::functions(&mut configuration, ids).get(number) else {
            return Ok(None);
        };
        let device = match VirtioDevice::read(&mut configuration, function) {
            Ok(device) => device,
            Err(what) => {
                log::error!("the virtio device at {function:x?} cannot be used: {what}");
                return Ok(None);
            }
        };
        let map = |name, range: Range| -> Result<Registers, StartError> {
            let offset = range.address % PAGE_SIZE;
            let bytes = offset + range.bytes;
            let memory = system.device_memory(range.address - offset, bytes.div_ceil(PAGE_SIZE))?;
            Ok(Registers { name, memory, bytes, offset: offset as u32 })
        };
        let pages = [
            map(virtio::COMMON, device.common)?,
            map(virtio::NOTIFY, device.notify)?,
            map(virtio::CONFIG, device.config)?,
            map(virtio::MESSAGES, device.messages)?,
        ];
        let queue = system.memory.allocate(queue_pages, 1)?;
        let confinement = Confinement::new(system, function)?;
        let device = DmaDevice { device, pages, queue, confinement };
        device.reach(&device.queue)?;
        Ok(Some(device))
    }

    /// Lets the device reach some memory, besides that for its queues. Without an IOMMU it reaches all of it anyway.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn reach(&self, memory: &Allocation) -> usys::Result<()> {
        self.confinement.as_ref().map_or(Ok(()), |confinement| confinement.map(memory))
    }

    /// Whether it reaches that memory only.
    pub fn is_confined(&self) -> bool {
        self.confinement.is_some()
    }

    /// What its driver process shares with it.
    pub fn windows(&self) -> [Shared<'static>; 5] {
        let [common, notify, config, messages] = self.pages.map(|registers| {
            let Registers { name, memory, bytes, .. } = registers;
            Shared::device(name, memory, bytes)
        });
        [common, notify, config, messages, Shared::writable(virtio::QUEUE, &self.queue)]
    }

    /// What its driver process is told.
    pub fn description(&self, channel: &Allocation) -> PciDevice {
        let [common, notify, config, messages] = self.pages.map(|registers| registers.offset);
        PciDevice {
            common,
            notify,
            notify_multiplier: self.device.notify_multiplier,
            config,
            messages,
            queue_address: self.queue.address(),
            channel_address: channel.address(),
        }
    }

    /// Lets the device work, before its driver begins.
    pub fn enable(&self) {
        if let Some(Err(error)) = self.confinement.as_ref().map(Confinement::admit) {
            log::error!("a device is kept from all memory: {error}");
        }
        if let Some(mut configuration) = pci::Ports::new() {
            self.device.enable(&mut configuration);
        }
    }

    /// Keeps the device from memory, after its driver ended.
    pub fn quiesce(&self) {
        if let Some(mut configuration) = pci::Ports::new() {
            self.device.quiesce(&mut configuration);
        }
        if let Some(confinement) = &self.confinement {
            confinement.expel();
        }
    }
}
