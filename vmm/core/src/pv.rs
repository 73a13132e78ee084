//! The board's paravirtual devices (`hypercall-abi`, SPEC.md 11): where their pages are, and which doorbell is whose.
//!
//! Device n has the page `layout::PV + n * 0x1000`, and queue q of it the doorbell call 8 * n + q. A doorbell call comes here as
//! an exit, with which the device serves its queue at once.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use hypercall_abi::guest::device::{Fault, Interrupt, Kind, MAX_QUEUES, PAGE_BYTES};
use hypercall_abi::vcpu::LINES;
use vdev::Request;
use vdev::guest_mem::GuestMemory;
use vdev::lapic::Lapic;
use vdev::pvring::{self, Core, Device};

use crate::layout;

/// Most devices of a VM.
pub const MAX_DEVICES: usize = layout::PV_DEVICES;

/// The devices of a VM.
#[derive(Debug, Default)]
pub(crate) struct PvBus {
    devices: Vec<Device>,
    /// Some device has more to do than it did at once.
    is_behind: bool,
}

/// What devices reach on the board.
pub(crate) struct Wires<'a> {
    pub(crate) lapic: &'a mut Lapic,
    pub(crate) request: &'a mut Option<Request>,
    /// What is to be said about a driver.
    pub(crate) complaint: Option<String>,
}

impl pvring::Board for Wires<'_> {
    fn raise(&mut self, interrupt: Interrupt) {
        if self.lapic.is_destination(interrupt.apic_id, false) {
            self.lapic.accept(interrupt.vector, false);
        }
    }

    fn request(&mut self, request: Request) {
        *self.request = self.request.or(Some(request));
    }

    #[cold]
    fn report(&mut self, kind: Kind, fault: Fault) {
        let why = format!("paravirtual {kind:?} device stopped until its driver resets it: {fault:?}");
        self.complaint = Some(why);
        self.lapic.note_change();
    }
}

impl PvBus {
    /// These devices, as far as there is room for them.
    pub(crate) fn new(cores: Vec<Core>) -> Self {
        let doorbells = (0u16..).step_by(MAX_QUEUES);
        let devices = cores.into_iter().take(MAX_DEVICES).zip(doorbells);
        PvBus {
            devices: devices.map(|(core, doorbell)| Device::new(core, doorbell)).collect(),
            is_behind: false,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.devices.len()
    }

    /// All of them as after power-on.
    pub(crate) fn reset(&mut self) {
        self.devices.iter_mut().for_each(Device::reset);
        self.is_behind = false;
    }

    /// Reads 1 to 8 bytes; `None` if no device is there. `unix_ns` is Unix time in nanoseconds at guest TSC 0.
    pub(crate) fn read(&self, address: u64, size: u8, unix_ns: impl FnOnce() -> u64) -> Option<u64> {
        let (index, offset) = self.find(address)?;
        Some(self.devices[index].read(offset, size, unix_ns()))
    }

    /// Writes 1 to 8 bytes, if a device is there.
    pub(crate) fn write(&mut self, address: u64, size: u8, value: u64) {
        if let Some((index, offset)) = self.find(address) {
            self.devices[index].write(offset, size, value);
        }
    }

    fn find(&self, address: u64) -> Option<(usize, u64)> {
        let offset = address.checked_sub(layout::PV)?;
        let index = usize::try_from(offset / PAGE_BYTES).ok().filter(|index| *index < self.devices.len())?;
        Some((index, offset % PAGE_BYTES))
    }

    /// The interrupts that come past the VMM, by the lines of the vCPU with this local APIC.
    pub(crate) fn lines(&self, lapic: &Lapic) -> [u8; LINES] {
        let mut lines = [0; LINES];
        for (line, interrupt) in self.devices.iter().filter_map(Device::line) {
            if let Some(vector) =
                lines.get_mut(line).filter(|_| lapic.is_destination(interrupt.apic_id, false))
            {
                *vector = interrupt.vector;
            }
        }
        lines
    }

    /// Whether this doorbell call is a device's.
    #[inline]
    pub(crate) fn has_doorbell(&self, call: u16) -> bool {
        usize::from(call) / MAX_QUEUES < self.devices.len()
    }

    /// The guest rang the doorbell of this call. Returns whether there is output to take.
    #[inline]
    pub(crate) fn ring<M: GuestMemory>(&mut self, call: u16, memory: &mut M, wires: &mut Wires<'_>) -> bool {
        let Some(device) = self.devices.get_mut(usize::from(call) / MAX_QUEUES) else {
            return false;
        };
        device.ring(usize::from(call) % MAX_QUEUES, memory, wires);
        self.is_behind |= device.is_behind();
        has_output(device)
    }

    /// Whether [`Self::catch_up`] has something to do.
    #[inline]
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Lets devices do what they left. Returns whether there is output to take.
    pub(crate) fn catch_up<M: GuestMemory>(&mut self, memory: &mut M, wires: &mut Wires<'_>) -> bool {
        let mut has_any = false;
        for device in self.devices.iter_mut().filter(|device| device.is_behind()) {
            device.catch_up(memory, wires);
            has_any |= has_output(device);
        }
        self.is_behind = self.devices.iter().any(Device::is_behind);
        has_any
    }

    /// Lets disks end what their backends have carried out since.
    pub(crate) fn collect<M: GuestMemory>(&mut self, memory: &mut M, wires: &mut Wires<'_>) {
        self.devices.iter_mut().for_each(|device| device.collect(memory, wires));
        self.is_behind = self.devices.iter().any(Device::is_behind);
    }

    /// Has balloons say how many pages the owner of the memory would like to have.
    pub(crate) fn set_balloon_target(&mut self, pages: u64, wires: &mut Wires<'_>) {
        self.devices.iter_mut().for_each(|device| device.set_balloon_target(pages, wires));
    }

    /// Queues bytes for the guest, if its driver drives the console; returns how many there was room for.
    pub(crate) fn queue_input(&mut self, bytes: &[u8]) -> Option<usize> {
        for device in self.devices.iter_mut().filter(|device| device.is_running()) {
            if let Core::Console(console, _) = device.core() {
                let taken = console.queue_input(bytes);
                device.nudge(0);
                self.is_behind |= device.is_behind();
                return Some(taken);
            }
        }
        None
    }

    /// Takes what the guest has shown on its console.
    pub(crate) fn take_output(&mut self) -> impl Iterator<Item = u8> + '_ {
        let consoles = self.devices.iter_mut().filter_map(|device| match device.core() {
            Core::Console(console, _) => Some(console),
            _ => None,
        });
        consoles.flat_map(vdev::console::Console::take_output)
    }

    /// Takes what the guest has said to the log.
    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        let lines = self.devices.iter_mut().filter_map(|device| match device.core() {
            Core::Control(control) => Some(control.take_lines()),
            _ => None,
        });
        lines.flatten().map(|line| format!("the guest says: {line}")).collect()
    }
}

/// Whether somebody should take what a device has.
#[inline]
fn has_output(device: &mut Device) -> bool {
    match device.core() {
        Core::Console(console, _) => console.has_output(),
        Core::Control(control) => control.has_lines(),
        _ => false,
    }
}
