//! The board's virtio devices: where they are, and which one an access is for.
//!
//! Device n has the page `layout::VIRTIO + n * 0x1000` and the I/O APIC input `layout::VIRTIO_GSI + n`; the DSDT says so
//! with a node LNRO0005 each ([`crate::acpi`]). An access to registers needs no guest memory, so a notification is only
//! remembered until the exit is handled; then the devices look at their queues. Where the VMM has a
//! [`Mirror`] for the guest, only writes exit.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use vdev::balloon::Balloon;
use vdev::bus::Bus;
use vdev::console::Console;
use vdev::guest_mem::GuestMemory;
use vdev::virtio::balloon::BalloonDevice;
use vdev::virtio::block::Block;
use vdev::virtio::console::{self, ConsoleDevice};
use vdev::virtio::entropy::EntropyDevice;
use vdev::virtio::mirror::Mirror;
use vdev::virtio::mmio::{INTERRUPT_ACK, Line, MMIO_BYTES, Transport};
use vdev::virtio::net::Net;
use vdev::virtio::queue::Queue;
use vdev::virtio::vsock::VsockDevice;
use vdev::virtio::{Device, DeviceType, DriverError, Turn};

use crate::layout;

/// Most devices of a VM.
pub const MAX_DEVICES: usize = layout::VIRTIO_DEVICES;

/// A device that a VM can have.
#[derive(Debug)]
pub enum VirtioDevice {
    /// A disk.
    Block(Block),
    /// A source of random numbers.
    Entropy(EntropyDevice),
    /// A console.
    Console(ConsoleDevice),
    /// A network card.
    Net(Net),
    /// Memory that the guest does without.
    Balloon(BalloonDevice),
    /// Sockets.
    Vsock(VsockDevice),
}

/// Calls a method of whichever device it is.
macro_rules! each {
    ($device:expr, $inner:ident => $call:expr) => {
        match $device {
            VirtioDevice::Block($inner) => $call,
            VirtioDevice::Entropy($inner) => $call,
            VirtioDevice::Console($inner) => $call,
            VirtioDevice::Net($inner) => $call,
            VirtioDevice::Balloon($inner) => $call,
            VirtioDevice::Vsock($inner) => $call,
        }
    };
}

impl Device for VirtioDevice {
    fn device_type(&self) -> DeviceType {
        each!(self, device => device.device_type())
    }

    fn features(&self) -> u64 {
        each!(self, device => device.features())
    }

    fn queue_sizes(&self) -> &[u16] {
        each!(self, device => device.queue_sizes())
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        each!(self, device => device.read_config(offset, into));
    }

    fn write_config(&mut self, offset: u64, from: &[u8]) {
        each!(self, device => device.write_config(offset, from));
    }

    fn set_features(&mut self, features: u64) {
        each!(self, device => device.set_features(features));
    }

    fn reset(&mut self) {
        each!(self, device => device.reset());
    }

    fn queue_stopped(&mut self, index: usize) {
        each!(self, device => device.queue_stopped(index));
    }

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        each!(self, device => device.process(memory, queues, index))
    }

    fn settle<M: GuestMemory>(
        &mut self,
        memory: &M,
        queues: &mut [Queue],
        is_silent: bool,
    ) -> Result<bool, DriverError> {
        each!(self, device => device.settle(memory, queues, is_silent))
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        each!(self, device => device.poll(memory, queues))
    }
}

/// What became of a device's interrupt line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LineChange {
    /// Its input of the I/O APIC.
    pub(crate) gsi: usize,
    /// What happened.
    pub(crate) line: Line,
}

/// Host TSC at which drivers are told what can wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Settling {
    /// If nothing comes that puts it off.
    pub(crate) at: u64,
    /// Whatever comes.
    pub(crate) by: u64,
}

impl Settling {
    /// Nothing waits.
    const NEVER: Settling = Settling { at: u64::MAX, by: u64::MAX };
}

/// The devices of a VM.
pub(crate) struct VirtioBus {
    bus: Bus<usize>,
    devices: Vec<Transport<VirtioDevice>>,
    /// Some device was notified and has not looked.
    is_notified: bool,
    /// When drivers are told what could wait.
    settling: Settling,
    /// A console, or a service of the VMM, may have output that nobody took.
    has_output: bool,
}

impl Default for VirtioBus {
    fn default() -> Self {
        VirtioBus {
            bus: Bus::default(),
            devices: Vec::new(),
            is_notified: false,
            settling: Settling::NEVER,
            has_output: false,
        }
    }
}

impl fmt::Debug for VirtioBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.devices).finish()
    }
}

impl VirtioBus {
    /// These devices, as far as there is room for them; with packed queues if that is wanted. The guest reads their registers in the
    /// mirror, if there is one.
    pub(crate) fn new(devices: Vec<VirtioDevice>, has_packed: bool, mirror: Option<Rc<dyn Mirror>>) -> Self {
        let transport = |(index, device)| {
            let transport = Transport::new(device);
            let mut transport = if has_packed { transport.with_packed_queues() } else { transport };
            mirror.iter().for_each(|mirror| transport.show_in(mirror.clone(), index));
            transport
        };
        let devices: Vec<_> = devices.into_iter().take(MAX_DEVICES).enumerate().map(transport).collect();
        let mut bus = Bus::new();
        for index in 0..devices.len() {
            let base = layout::VIRTIO + index as u64 * MMIO_BYTES;
            let inserted = bus.insert(base..base + MMIO_BYTES, index);
            debug_assert!(inserted.is_ok(), "each device has a page of its own");
        }
        VirtioBus { bus, devices, ..VirtioBus::default() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.devices.len()
    }

    /// All of them as after power-on. Their lines fall with the board's I/O APIC.
    pub(crate) fn reset(&mut self) {
        for device in &mut self.devices {
            let _ = device.reset();
        }
        self.is_notified = false;
        self.settling = Settling::NEVER;
    }

    /// Reads 1 to 8 bytes; `None` if no device is there.
    pub(crate) fn read(&mut self, address: u64, size: u8) -> Option<u64> {
        let (index, offset) = self.bus.find(address)?;
        Some(self.devices.get_mut(index)?.read(offset, size))
    }

    /// Writes 1 to 8 bytes; `None` if no device is there.
    pub(crate) fn write(&mut self, address: u64, size: u8, value: u64) -> Option<LineChange> {
        let (index, offset) = self.bus.find(address)?;
        let device = self.devices.get_mut(index)?;
        let line = device.write(offset, size, value);
        self.is_notified |= device.is_notified();
        Some(LineChange { gsi: gsi(index), line })
    }

    /// The device whose driver ends interrupts at this address.
    #[inline]
    pub(crate) fn acknowledged_at(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(layout::VIRTIO + INTERRUPT_ACK);
        let index = (offset / MMIO_BYTES) as usize;
        (offset.is_multiple_of(MMIO_BYTES) && index < self.devices.len()).then_some(index)
    }

    /// The driver of device `index` ends an interrupt, as [`Transport::acknowledge_quietly`] says.
    #[inline]
    pub(crate) fn acknowledge_quietly(&mut self, index: usize, value: u32) -> Option<LineChange> {
        let line = self.devices.get_mut(index)?.acknowledge_quietly(value)?;
        Some(LineChange { gsi: gsi(index), line })
    }

    /// Whether [`Self::run`] has something to do.
    pub(crate) fn is_notified(&self) -> bool {
        self.is_notified
    }

    /// Host TSC at which [`Self::settle`] is due; `u64::MAX` if it is not.
    #[inline]
    pub(crate) fn settle_at(&self) -> u64 {
        self.settling.at
    }

    /// Tells drivers what could wait until now. `follow` is as in [`Self::run`].
    #[cold]
    pub(crate) fn settle<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        mut follow: impl FnMut(LineChange, Option<String>),
    ) {
        let Settling { at, by } = core::mem::replace(&mut self.settling, Settling::NEVER);
        for (index, device) in self.devices.iter_mut().enumerate() {
            let line = device.settle(memory, at < by);
            follow(LineChange { gsi: gsi(index), line }, take_complaint(index, device));
        }
    }

    /// Lets the devices that were notified look at their queues. `follow` gets every change of a line, and what is to be
    /// said about a driver that broke the rules. What their drivers are told can wait until `settling`, but by no later than for
    /// what waits already: others of their notifications could put that off for ever.
    pub(crate) fn run<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        settling: Settling,
        mut follow: impl FnMut(LineChange, Option<String>),
    ) {
        self.is_notified = false;
        for (index, device) in self.devices.iter_mut().enumerate().filter(|(_, device)| device.is_notified())
        {
            let line = device.run(memory);
            self.is_notified |= device.is_notified();
            self.has_output |= has_output(device.device());
            if device.is_owing() {
                let by = self.settling.by.min(settling.by);
                self.settling = Settling { at: settling.at.min(by), by };
            }
            follow(LineChange { gsi: gsi(index), line }, take_complaint(index, device));
        }
        self.forget_settled();
    }

    /// Whether a driver drives some device.
    #[inline]
    pub(crate) fn is_driven(&self) -> bool {
        self.devices.iter().any(Transport::is_running)
    }

    /// Lets all devices look for what came from behind them: completions, input. `follow` is as in [`Self::run`].
    pub(crate) fn poll<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        mut follow: impl FnMut(LineChange, Option<String>),
    ) {
        for (index, device) in self.devices.iter_mut().enumerate() {
            let line = device.poll(memory);
            self.is_notified |= device.is_notified();
            follow(LineChange { gsi: gsi(index), line }, take_complaint(index, device));
        }
        self.forget_settled();
    }

    /// Nothing waits of which drivers were told meanwhile.
    #[inline]
    fn forget_settled(&mut self) {
        if self.settling != Settling::NEVER && !self.devices.iter().any(Transport::is_owing) {
            self.settling = Settling::NEVER;
        }
    }

    /// Has balloons say how many pages the owner of the memory would like to have. `follow` is as in [`Self::run`].
    pub(crate) fn set_balloon_target(&mut self, pages: u64, mut follow: impl FnMut(LineChange)) {
        for (index, device) in self.devices.iter_mut().enumerate() {
            if let VirtioDevice::Balloon(balloon) = device.device_mut()
                && balloon.set_target(pages)
            {
                follow(LineChange { gsi: gsi(index), line: device.config_changed() });
            }
        }
    }

    /// Has consoles say how large their terminal is: columns and rows. `follow` is as in [`Self::run`].
    pub(crate) fn set_console_size(&mut self, columns: u16, rows: u16, mut follow: impl FnMut(LineChange)) {
        for (index, device) in self.devices.iter_mut().enumerate() {
            let VirtioDevice::Console(console) = device.device_mut() else { continue };
            if console.set_size(columns, rows) {
                follow(LineChange { gsi: gsi(index), line: device.config_changed() });
            } else {
                device.config_changed_untold();
            }
        }
    }

    /// Whether a driver of a console has begun since this was last asked, which is to be told the size.
    pub(crate) fn take_wants_console_size(&mut self) -> bool {
        let take = |device: &mut Transport<VirtioDevice>| match device.device_mut() {
            VirtioDevice::Console(console) => console.take_wants_size(),
            _ => false,
        };
        self.devices.iter_mut().any(take)
    }

    /// Queues bytes for the guest, if its driver drives the console; returns how many there was room for.
    pub(crate) fn queue_input(&mut self, bytes: &[u8]) -> Option<usize> {
        for device in self.devices.iter_mut().filter(|device| device.is_running()) {
            if let VirtioDevice::Console(console) = device.device_mut() {
                let taken = console.console_mut().queue_input(bytes);
                device.notify(console::RECEIVE as u32);
                self.is_notified = true;
                return Some(taken);
            }
        }
        None
    }

    /// Whether a console may have said something since this was last asked.
    pub(crate) fn take_has_output(&mut self) -> bool {
        core::mem::take(&mut self.has_output)
    }

    /// Takes what the guest has shown on its console.
    pub(crate) fn take_output(&mut self) -> impl Iterator<Item = u8> + '_ {
        let consoles = self.devices.iter_mut().filter_map(|device| match device.device_mut() {
            VirtioDevice::Console(console) => Some(console.console_mut()),
            _ => None,
        });
        consoles.flat_map(Console::take_output)
    }

    /// Takes what the guest has said to the log.
    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        let lines = self.devices.iter_mut().filter_map(|device| match device.device_mut() {
            VirtioDevice::Vsock(sockets) => Some(sockets.core_mut().host_mut().take_lines()),
            _ => None,
        });
        lines.flatten().map(|line| format!("the guest says: {line}")).collect()
    }

    /// The balloon, if there is one.
    pub(crate) fn balloon(&self) -> Option<&Balloon> {
        self.devices.iter().find_map(|device| match device.device() {
            VirtioDevice::Balloon(balloon) => Some(balloon.balloon()),
            _ => None,
        })
    }
}

/// Whether somebody should take what a device has.
fn has_output(device: &VirtioDevice) -> bool {
    match device {
        VirtioDevice::Console(console) => console.console().has_output() || console.wants_size(),
        VirtioDevice::Vsock(sockets) => sockets.core().host().has_lines(),
        _ => false,
    }
}

fn gsi(index: usize) -> usize {
    usize::from(layout::VIRTIO_GSI) + index
}

fn take_complaint(index: usize, device: &mut Transport<VirtioDevice>) -> Option<String> {
    let error = device.take_error()?;
    let device_type = device.device().device_type();
    Some(format!("virtio device {index} ({device_type:?}) stopped until its driver resets it: {error}"))
}
