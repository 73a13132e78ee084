//! The uplink of a network: its card, what the card's driver process shares with the switch, and that process while it lives.

use crate::error::StartError;
use crate::memory::Allocation;
use crate::network::CHANNEL_PAGES;
use crate::pci::{self, PortDevice};
use crate::process::{Blueprint, Process, Shared};
use crate::supervisor::events;
use crate::system::System;
use crate::virtio::DmaDevice;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use usys::abi::boot_info::root;
use usys::abi::{Rights, Selector};
use usys::cap::{Cap, Irqs, Log, Narrow, Ntfn, Ports};
use usys::object::{Fault, Schedule};
use usys::process::{self, selector as well_known};
use usys::selector;
use vmm_protocol::manifest::{self, NetworkConfig};
use vmm_protocol::process::driver::virtio::PciDevice;
use vmm_protocol::process::{CHANNEL, UplinkConfig, driver};

/// Frames of kernel memory for what a driver makes: a bitmap of its ports, and capability tables.
const EXTRA_FRAMES: u64 = 16;
/// Pages of a driver's heap.
const HEAP_PAGES: u64 = 16;
/// Of each 10 ms, a driver gets at most this many µs: a flood from the wire leaves time to the VMs.
const BUDGET_US: u64 = 8_000;
const PERIOD_US: u64 = 10_000;
/// Pages that a virtio device reaches: its queues, and their buffers.
const VIRTIO_PAGES: u64 = 65;
/// Ports of an NE2000.
const NE2000_PORTS: u64 = 32;

/// A network card of the machine.
#[derive(Debug)]
enum Card {
    Virtio(Box<DmaDevice>),
    Ne2000(PortDevice),
}

/// An uplink. Channel and notifications outlive its driver and the switch.
#[derive(Debug)]
pub struct Uplink {
    name: String,
    program: &'static str,
    /// Its number among the uplinks of its kind.
    number: u8,
    card: Option<Card>,
    channel: Allocation,
    /// What the driver waits on.
    events: Cap<Ntfn>,
    /// Signals the driver, for the switch.
    doorbell: Cap<Ntfn>,
    /// Signals the switch, for the driver.
    switch: Cap<Ntfn>,
    process: Option<Process>,
    crashes: u32,
}

impl Uplink {
    /// Makes what outlives the driver, if the network has an uplink; [`Self::start`] makes the driver. `number` is the uplink's among
    /// those of its kind, `events` what the switch waits on, `port` the uplink's number there.
    pub fn new(
        system: &mut System,
        config: &NetworkConfig,
        number: u8,
        events: Cap<Ntfn>,
        port: usize,
    ) -> Result<Option<Self>, StartError> {
        let Some(program) = config.uplink.module() else { return Ok(None) };
        let name = format!("uplink.{}", config.name);
        let card = find(system, config.uplink, number)?;
        if card.is_none() {
            log::error!("{name}: the machine has no card for driver {}", config.uplink.name());
        }
        let signal = Narrow::rights(Rights::SIGNAL | Rights::DERIVE);
        let own = process::pool().create_ntfn(selector::allocate()?)?;
        Ok(Some(Uplink {
            name,
            program,
            number,
            card,
            channel: system.memory.allocate(CHANNEL_PAGES, 1)?,
            events: own,
            doorbell: own.derive(selector::allocate()?, signal.badge(driver::USER_BIT))?,
            switch: events.derive(selector::allocate()?, signal.badge(1 << port))?,
            process: None,
            crashes: 0,
        }))
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Drivers that crashed so far.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// The memory that the driver and the switch share.
    pub fn channel(&self) -> &Allocation {
        &self.channel
    }

    /// Signals the driver.
    pub fn doorbell(&self) -> Cap<Ntfn> {
        self.doorbell
    }

    /// Starts a driver process, if the machine has the card.
    pub fn start(&mut self, system: &mut System, cpu: u16, priority: u8) -> Result<(), StartError> {
        let Some(card) = &self.card else { return Ok(()) };
        let config =
            postcard::to_allocvec(&self.config(card)).map_err(|_| StartError::TooMuchConfiguration)?;
        let mut windows = alloc::vec![Shared::writable(CHANNEL, &self.channel)];
        if let Card::Virtio(device) = card {
            windows.extend(device.windows());
        }
        let plan = Blueprint {
            name: &self.name,
            program: self.program,
            cpu,
            schedule: Schedule { priority, budget_us: BUDGET_US, period_us: PERIOD_US },
            extra_frames: EXTRA_FRAMES,
            heap_pages: HEAP_PAGES,
            config: &config,
            events: self.events,
            parent_badge: events::DRIVER_REPORT,
            fault_badge: events::DRIVER_FAULT,
            windows: &windows,
        };
        let process = Process::launch(system, &plan, |process| self.equip(card, process))?;
        self.process = Some(process);
        Ok(())
    }

    /// What the driver is told.
    fn config(&self, card: &Card) -> UplinkConfig {
        match card {
            Card::Ne2000(card) => UplinkConfig { ports: Some(card.ports), pci: None },
            Card::Virtio(device) => {
                // Its frames are copied into memory of its own.
                let pci = PciDevice { channel_address: 0, ..device.description(&self.channel) };
                UplinkConfig { ports: None, pci: Some(pci) }
            }
        }
    }

    /// Gives the driver its card, the kernel's log, and the doorbell of the switch.
    fn equip(&self, card: &Card, process: &mut Process) -> Result<(), StartError> {
        let pd = process.pd();
        let interrupt = match card {
            Card::Ne2000(card) => {
                let ports: Cap<Ports> = Cap::new(root::PORTS);
                let range = Narrow::rights(Rights::USE).range(card.ports.into(), NE2000_PORTS);
                process.derive(ports, range)?.map(pd, 0, NE2000_PORTS)?;
                if let Some(mut configuration) = pci::Ports::new() {
                    card.enable(&mut configuration);
                }
                card.line.into()
            }
            Card::Virtio(device) => {
                if !device.is_confined() {
                    log::warn!(
                        "{}: without an IOMMU its card reaches all memory: its driver is trusted",
                        self.name
                    );
                }
                device.enable();
                driver::virtio::NET_IRQS + u64::from(self.number)
            }
        };
        let irqs: Cap<Irqs> = Cap::new(root::IRQS);
        irqs.delegate(pd, Selector(driver::IRQ), Narrow::rights(Rights::USE).range(interrupt, 1))?;
        let signal = Narrow::rights(Rights::SIGNAL);
        self.events.delegate(pd, Selector(driver::IRQ_NTFN), signal.badge(driver::IRQ_BIT))?;
        self.switch.delegate(pd, Selector(driver::USER), signal)?;
        let log: Cap<Log> = Cap::new(root::LOG);
        Ok(log.delegate(pd, well_known::LOG, Narrow::rights(Rights::USE))?)
    }

    /// Ends the driver after it crashed; says what it did.
    pub fn take_crash(&mut self, system: &mut System) -> Option<Fault> {
        let fault = self.process.as_ref()?.fault()?;
        if let Some(Card::Virtio(device)) = &self.card {
            device.quiesce();
        }
        if let Some(process) = self.process.take() {
            process.destroy(&mut system.memory);
        }
        self.crashes += 1;
        Some(fault)
    }
}

/// The machine's card with this number among those of its kind, if there is one that can be used.
fn find(system: &mut System, uplink: manifest::Uplink, number: u8) -> Result<Option<Card>, StartError> {
    match uplink {
        manifest::Uplink::None => Ok(None),
        manifest::Uplink::VirtioNet => {
            let device = DmaDevice::find(system, pci::VIRTIO_NET, number.into(), VIRTIO_PAGES)?;
            Ok(device.map(Box::new).map(Card::Virtio))
        }
        manifest::Uplink::Ne2000 => {
            let Some(mut configuration) = pci::Ports::new() else { return Ok(None) };
            let functions = pci::functions(&mut configuration, pci::NE2000);
            let Some(&function) = functions.get(usize::from(number)) else { return Ok(None) };
            match PortDevice::read(&mut configuration, function) {
                Ok(card) => Ok(Some(Card::Ne2000(card))),
                Err(what) => {
                    log::error!("the NE2000 at {function:x?} cannot be used: {what}");
                    Ok(None)
                }
            }
        }
    }
}
