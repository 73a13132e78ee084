//! The MMIO transport (4.2): registers, feature negotiation, device status.

use super::mirror::{Mirror, Page};
use super::queue::Queue;
use super::{COMMON_FEATURES, Device, DriverError, RING_PACKED, VERSION_1};
use crate::guest_mem::GuestMemory;
use alloc::rc::Rc;
use alloc::vec::Vec;
use bitflags::bitflags;

/// Bytes of address space that a device takes.
pub const MMIO_BYTES: u64 = 0x1000;
/// Most queues of a device.
pub const MAX_QUEUES: usize = 64;
/// Offset of the register by which a driver ends an interrupt (4.2.2, InterruptACK).
pub const INTERRUPT_ACK: u64 = register::INTERRUPT_ACK;
/// One past the last byte of a configuration space.
const CONFIG_END: u64 = 0x200;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Not legacy.
const VERSION: u32 = 2;
/// "NACR".
const VENDOR: u32 = 0x5243_414e;

/// Registers (4.2.2), by byte offset.
mod register {
    pub(super) const MAGIC_VALUE: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

bitflags! {
    /// Device status (2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Status: u32 {
        const ACKNOWLEDGE = 1;
        const DRIVER = 2;
        const DRIVER_OK = 4;
        const FEATURES_OK = 8;
        const NEEDS_RESET = 64;
        const FAILED = 128;
    }
}

bitflags! {
    /// Reasons for an interrupt (4.2.2, InterruptStatus).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Reasons: u32 {
        const USED_BUFFER = 1;
        const CONFIG_CHANGE = 2;
    }
}

/// What happened to the interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Line {
    /// Nothing.
    Same,
    /// It is asserted now.
    Raised,
    /// It is not asserted now.
    Lowered,
    /// It went down and up: one reason was acknowledged while another is there. An edge-triggered input has to see it.
    Pulsed,
}

/// A device behind its registers.
#[derive(Debug)]
pub struct Transport<D> {
    device: D,
    queues: Vec<Queue>,
    status: Status,
    reasons: Reasons,
    /// Bits of the 32-bit windows to the feature bits.
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// [`RING_PACKED`] where it is offered.
    packed: u64,
    queue_sel: u32,
    config_generation: u32,
    /// Queues that the driver notified, one bit each.
    notified: u64,
    /// The driver may want an interrupt that waits for [`Self::settle`].
    is_owing: bool,
    /// Where the guest reads the registers, if not here.
    page: Option<Page>,
    /// Why the device stopped, until somebody asks.
    error: Option<DriverError>,
}

impl<D: Device> Transport<D> {
    /// A device after power-on. Of its queues, [`MAX_QUEUES`] can be used.
    pub fn new(device: D) -> Self {
        let sizes = device.queue_sizes().iter().take(MAX_QUEUES);
        let queues = sizes.map(|size| Queue::new(*size)).collect();
        Transport {
            device,
            queues,
            status: Status::empty(),
            reasons: Reasons::empty(),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            packed: 0,
            queue_sel: 0,
            config_generation: 0,
            notified: 0,
            is_owing: false,
            page: None,
            error: None,
        }
    }

    /// Has the guest read the registers in the page of device `index`: from now on, that has what [`Self::read`] would give.
    pub fn show_in(&mut self, mirror: Rc<dyn Mirror>, index: usize) {
        self.page = Some(Page::new(mirror, index));
        self.show_all();
    }

    /// Offers packed queues, too. They cost a device that is software 50 instructions in a request more than split ones.
    pub fn with_packed_queues(self) -> Self {
        Transport { packed: RING_PACKED, ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for its owner to give it something: [`Self::poll`] is due afterwards.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Why the device stopped, once after it did.
    pub fn take_error(&mut self) -> Option<DriverError> {
        self.error.take()
    }

    /// Whether [`Self::run`] has something to do.
    pub fn is_notified(&self) -> bool {
        self.notified != 0
    }

    /// Whether [`Self::settle`] may have something to do.
    #[inline]
    pub fn is_owing(&self) -> bool {
        self.is_owing
    }

    /// Reads 1 to 8 bytes at byte `offset`.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let mut bytes = [0; 8];
            self.device.read_config(at, &mut bytes[..usize::from(size.min(8))]);
            return u64::from_le_bytes(bytes);
        }
        // Only 32 bits at a time (4.2.2.2); what else is read is nothing.
        if size == 4 { self.read_register(offset).into() } else { 0 }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.device_type() as u32,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            register::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.is_some_and(Queue::is_ready).into(),
            register::INTERRUPT_STATUS => self.reasons.bits(),
            register::STATUS => self.status.bits(),
            // No shared memory regions: length and base are all ones (4.2.2.1).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    /// Writes 1 to 8 bytes at byte `offset`.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Line {
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            self.device.write_config(at, &value.to_le_bytes()[..usize::from(size.min(8))]);
            self.show_all();
            return Line::Same;
        }
        if size != 4 {
            return Line::Same;
        }
        let value = value as u32;
        match offset {
            register::QUEUE_NOTIFY => {
                self.notify(value);
                Line::Same
            }
            register::INTERRUPT_ACK => self.acknowledge(value),
            _ => {
                let line = self.write_other(offset, value);
                self.show_changing();
                line
            }
        }
    }

    /// Writes a register that is not of every interrupt or notification.
    fn write_other(&mut self, offset: u64, value: u32) -> Line {
        match offset {
            register::STATUS => return self.write_status(value),
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.write_features(value),
            register::QUEUE_SEL => self.queue_sel = value,
            _ => return self.write_queue(offset, value),
        }
        Line::Same
    }

    /// Lets the guest see the registers that writes to others change.
    fn show_changing(&self) {
        let Some(page) = &self.page else { return };
        for register in [
            register::DEVICE_FEATURES,
            register::QUEUE_NUM_MAX,
            register::QUEUE_READY,
            register::INTERRUPT_STATUS,
            register::STATUS,
            register::CONFIG_GENERATION,
        ] {
            page.store(register, self.read_register(register));
        }
    }

    /// Lets the guest see all registers, and the configuration space.
    fn show_all(&self) {
        let Some(page) = &self.page else { return };
        for register in (0..register::CONFIG).step_by(4) {
            page.store(register, self.read_register(register));
        }
        for at in (register::CONFIG..CONFIG_END).step_by(4) {
            let mut bytes = [0; 4];
            self.device.read_config(at - register::CONFIG, &mut bytes);
            page.store(at, u32::from_le_bytes(bytes));
        }
    }

    /// Lets the guest see why it is interrupted.
    fn show_reasons(&self) {
        if let Some(page) = &self.page {
            page.store(register::INTERRUPT_STATUS, self.reasons.bits());
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES | self.packed
    }

    fn write_features(&mut self, value: u32) {
        // What was agreed on stays.
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn write_queue(&mut self, offset: u64, value: u32) -> Line {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return Line::Same;
        };
        if offset == register::QUEUE_READY {
            if value & 1 == 0 {
                queue.disable();
                self.device.queue_stopped(self.queue_sel as usize);
            } else if self.status.contains(Status::FEATURES_OK)
                && !queue.is_ready()
                && let Err(error) = queue.enable(self.driver_features)
            {
                return self.fail(error);
            }
            return Line::Same;
        }
        // A queue in use does not move (4.2.2.2).
        if queue.is_ready() {
            return Line::Same;
        }
        let addresses = queue.addresses_mut();
        match offset {
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_DESC_LOW => set_low(&mut addresses.descriptors, value),
            register::QUEUE_DESC_HIGH => set_high(&mut addresses.descriptors, value),
            register::QUEUE_DRIVER_LOW => set_low(&mut addresses.available, value),
            register::QUEUE_DRIVER_HIGH => set_high(&mut addresses.available, value),
            register::QUEUE_DEVICE_LOW => set_low(&mut addresses.used, value),
            register::QUEUE_DEVICE_HIGH => set_high(&mut addresses.used, value),
            _ => {}
        }
        Line::Same
    }

    fn write_status(&mut self, value: u32) -> Line {
        if value == 0 {
            return self.reset();
        }
        // A driver clears bits by a reset alone, and NEEDS_RESET is the device's to set.
        let mut new = (Status::from_bits_truncate(value) - Status::NEEDS_RESET) | self.status;
        let set = new - self.status;
        if set.contains(Status::FEATURES_OK) {
            let is_good =
                self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0;
            if is_good {
                self.device.set_features(self.driver_features);
                self.show_all();
            } else {
                new -= Status::FEATURES_OK;
            }
        }
        if !new.contains(Status::FEATURES_OK) {
            new -= Status::DRIVER_OK;
        }
        if (new - self.status).contains(Status::DRIVER_OK) && !new.contains(Status::NEEDS_RESET) {
            // Buffers may have been there before; of those there was no notification.
            self.notify_all();
        }
        self.status = new;
        Line::Same
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) -> Line {
        self.device.reset();
        for queue in &mut self.queues {
            *queue = Queue::new(queue.max_size());
        }
        self.status = Status::empty();
        self.driver_features = 0;
        (self.device_features_sel, self.driver_features_sel, self.queue_sel) = (0, 0, 0);
        self.notified = 0;
        self.is_owing = false;
        let line = self.acknowledge(u32::MAX);
        self.show_all();
        line
    }

    /// Has queue `value` looked at by the next [`Self::run`], as the driver does by a notification.
    pub fn notify(&mut self, value: u32) {
        if (value as usize) < self.queues.len() && self.is_running() {
            self.notified |= 1 << value;
        }
    }

    fn notify_all(&mut self) {
        self.notified = u64::MAX >> (64 - self.queues.len().max(1));
    }

    /// The driver ends an interrupt, as by a write of [`INTERRUPT_ACK`], if nothing comes of that but that the line falls or is as it
    /// was; `None` if it does not, and then nothing was done.
    #[inline]
    pub fn acknowledge_quietly(&mut self, value: u32) -> Option<Line> {
        let rest = self.reasons - Reasons::from_bits_truncate(value);
        (rest.is_empty() || rest == self.reasons).then(|| self.acknowledge(value))
    }

    fn acknowledge(&mut self, value: u32) -> Line {
        let before = self.reasons;
        self.reasons -= Reasons::from_bits_truncate(value);
        self.show_reasons();
        match (before.is_empty(), self.reasons.is_empty()) {
            (false, true) => Line::Lowered,
            (false, false) if before != self.reasons => Line::Pulsed,
            _ => Line::Same,
        }
    }

    /// Whether the driver is set up, and the device not stopped.
    pub fn is_running(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && !self.status.contains(Status::NEEDS_RESET)
    }

    /// Looks at the queues that the driver notified. [`Self::is_notified`] says whether there is more to do.
    pub fn run<M: GuestMemory>(&mut self, memory: &mut M) -> Line {
        let mut wants_interrupt = false;
        let mut notified = core::mem::take(&mut self.notified);
        while notified != 0 {
            let index = notified.trailing_zeros();
            notified &= notified - 1;
            match self.device.process(memory, &mut self.queues, index as usize) {
                Ok(turn) => {
                    wants_interrupt |= turn.interrupt;
                    self.is_owing |= turn.later;
                    self.notified |= u64::from(turn.again) << index;
                }
                Err(error) => return self.fail(error),
            }
        }
        if wants_interrupt { self.raise(Reasons::USED_BUFFER) } else { Line::Same }
    }

    /// Looks for what came from behind the device. [`Self::is_notified`] says whether there is more to do.
    pub fn poll<M: GuestMemory>(&mut self, memory: &mut M) -> Line {
        if !self.is_running() {
            return Line::Same;
        }
        match self.device.poll(memory, &mut self.queues) {
            Ok(turn) => {
                if turn.again {
                    self.notify_all();
                }
                if turn.interrupt { self.raise(Reasons::USED_BUFFER) } else { Line::Same }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Interrupts the driver for what it was to be told some time, if it has not found that by itself; `is_silent` is as in
    /// [`Device::settle`].
    pub fn settle<M: GuestMemory>(&mut self, memory: &mut M, is_silent: bool) -> Line {
        if !core::mem::take(&mut self.is_owing) || !self.is_running() {
            return Line::Same;
        }
        match self.device.settle(memory, &mut self.queues, is_silent) {
            Ok(true) => self.raise(Reasons::USED_BUFFER),
            Ok(false) => Line::Same,
            Err(error) => self.fail(error),
        }
    }

    /// The configuration space has changed where the driver, if there is one, has not agreed to be told of it: it finds that when it looks.
    pub fn config_changed_untold(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        self.show_all();
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&mut self) -> Line {
        self.config_changed_untold();
        if self.status.contains(Status::DRIVER_OK) { self.raise(Reasons::CONFIG_CHANGE) } else { Line::Same }
    }

    /// The driver is broken: nothing more is done for it until it resets the device (2.1.2).
    fn fail(&mut self, error: DriverError) -> Line {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::disable);
        self.notified = 0;
        self.is_owing = false;
        self.error = Some(error);
        self.status |= Status::NEEDS_RESET;
        self.config_changed()
    }

    fn raise(&mut self, reason: Reasons) -> Line {
        let was_asserted = !self.reasons.is_empty();
        self.reasons |= reason;
        // One interrupt is for all queues (4.2.2, InterruptStatus).
        self.is_owing &= reason != Reasons::USED_BUFFER;
        self.show_reasons();
        if was_asserted { Line::Same } else { Line::Raised }
    }
}

/// 32 of the feature bits.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}
