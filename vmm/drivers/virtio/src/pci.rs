//! The registers on PCI (4.1.4), and the message that the device interrupts with.

use crate::device::Registers;
use crate::queue::DmaWindow;
use usys::Window;
use usys::abi::Selector;
use usys::cap::{Cap, Irqs};
use usys::process::ProcessInfo;
use vmm_protocol::process::driver;
use vmm_protocol::process::driver::virtio::{self, PciDevice};

/// Offsets in the common configuration (4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: usize = 0;
    pub(super) const DEVICE_FEATURE: usize = 4;
    pub(super) const DRIVER_FEATURE_SELECT: usize = 8;
    pub(super) const DRIVER_FEATURE: usize = 12;
    pub(super) const CONFIG_MSIX_VECTOR: usize = 16;
    pub(super) const DEVICE_STATUS: usize = 20;
    pub(super) const QUEUE_SELECT: usize = 22;
    pub(super) const QUEUE_SIZE: usize = 24;
    pub(super) const QUEUE_MSIX_VECTOR: usize = 26;
    pub(super) const QUEUE_ENABLE: usize = 28;
    pub(super) const QUEUE_NOTIFY_OFF: usize = 30;
    pub(super) const QUEUE_DESC: usize = 32;
}

/// No message for a source of interrupts (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// Most queues whose notifications are known.
pub const MAX_QUEUES: usize = 2;

/// The device's registers. Each access has the width of its field (4.1.3.1).
#[derive(Clone, Copy, Debug)]
pub struct Pci {
    common: Window,
    notify: Window,
    config: Window,
    messages: Window,
    notify_multiplier: u32,
    /// Where each queue is notified; known once it is enabled.
    notify_offsets: [usize; MAX_QUEUES],
}

impl Pci {
    /// The registers that a driver process finds in its regions, and the memory that it shares with the device. What the device
    /// interrupts for is a bit of the process's notification from now on.
    ///
    /// # Errors
    /// They are not there, or the kernel refused the interrupt.
    pub fn open(info: &'static ProcessInfo, device: &PciDevice) -> Result<(Self, DmaWindow), &'static str> {
        let window = |name: &str| info.window(name).ok_or("the device is not mapped");
        let windows = [
            window(virtio::COMMON)?,
            window(virtio::NOTIFY)?,
            window(virtio::CONFIG)?,
            window(virtio::MESSAGES)?,
        ];
        let registers =
            Pci::new(windows, device).ok_or("the device's registers are not where they should be")?;
        let irq: Cap<Irqs> = Cap::new(Selector(driver::IRQ));
        let (address, data) = irq
            .bind_message(0, Cap::new(Selector(driver::IRQ_NTFN)))
            .map_err(|_| "the kernel refused the interrupt")?;
        registers.set_message(address, data);
        let window = info.window(virtio::QUEUE).ok_or("the memory for the queues is missing")?;
        Ok((registers, DmaWindow { window, address: device.queue_address }))
    }

    /// The registers in these windows, which begin at page boundaries; `device` says where in them.
    fn new(windows: [Window; 4], device: &PciDevice) -> Option<Self> {
        let [common, notify, config, messages] = windows;
        let part = |window: Window, offset: u32| {
            let offset = offset as usize;
            window.slice(offset, window.len().checked_sub(offset)?).ok()
        };
        Some(Pci {
            common: part(common, device.common)?,
            notify: part(notify, device.notify)?,
            config: part(config, device.config)?,
            messages: part(messages, device.messages)?,
            notify_multiplier: device.notify_multiplier,
            notify_offsets: [0; MAX_QUEUES],
        })
    }

    /// Makes the device's only interrupt this message: an entry of its MSI-X table (PCI Local Bus 3.0, 6.8.2.6 to 6.8.2.9).
    fn set_message(&self, address: u64, data: u32) {
        let entry = [address as u32, (address >> 32) as u32, data, 0];
        for (index, word) in entry.into_iter().enumerate() {
            // The table has one entry at least.
            let _ = self.messages.write(4 * index, &word.to_le_bytes());
        }
    }

    // An access outside the window reads as 0 and writes nothing: then the device does not get ready.

    fn read16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        let _ = self.common.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn write16(&self, offset: usize, value: u16) {
        let _ = self.common.write(offset, &value.to_le_bytes());
    }

    fn write32(&self, offset: usize, value: u32) {
        let _ = self.common.write(offset, &value.to_le_bytes());
    }
}

fn read32(window: &Window, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    let _ = window.read(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

impl Registers for Pci {
    fn status(&mut self) -> u8 {
        let mut byte = [0];
        let _ = self.common.read(common::DEVICE_STATUS, &mut byte);
        byte[0]
    }

    fn set_status(&mut self, status: u8) {
        let _ = self.common.write(common::DEVICE_STATUS, &[status]);
    }

    fn device_features(&mut self, high: bool) -> u32 {
        self.write32(common::DEVICE_FEATURE_SELECT, high.into());
        read32(&self.common, common::DEVICE_FEATURE)
    }

    fn set_driver_features(&mut self, high: bool, features: u32) {
        self.write32(common::DRIVER_FEATURE_SELECT, high.into());
        self.write32(common::DRIVER_FEATURE, features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.write16(common::QUEUE_SELECT, queue);
        self.read16(common::QUEUE_SIZE)
    }

    fn enable_queue(&mut self, queue: u16, size: u16, areas: [u64; 3]) {
        self.write16(common::CONFIG_MSIX_VECTOR, NO_VECTOR);
        self.write16(common::QUEUE_SELECT, queue);
        self.write16(common::QUEUE_SIZE, size);
        self.write16(common::QUEUE_MSIX_VECTOR, 0);
        for (index, address) in areas.into_iter().enumerate() {
            let field = common::QUEUE_DESC + 8 * index;
            self.write32(field, address as u32);
            self.write32(field + 4, (address >> 32) as u32);
        }
        let notify_off = u32::from(self.read16(common::QUEUE_NOTIFY_OFF));
        if let Some(offset) = self.notify_offsets.get_mut(usize::from(queue)) {
            *offset = notify_off.saturating_mul(self.notify_multiplier) as usize;
        }
        self.write16(common::QUEUE_ENABLE, 1);
    }

    fn config(&mut self, offset: usize) -> u32 {
        read32(&self.config, offset)
    }

    fn notify(&mut self, queue: u16) {
        if let Some(&offset) = self.notify_offsets.get(usize::from(queue)) {
            // The queue's number is what is written (4.1.5.2).
            let _ = self.notify.write(offset, &queue.to_le_bytes());
        }
    }
}
