//! One network: its switch, the channels to the cards on it, and its uplink.

use crate::error::StartError;
use crate::memory::Allocation;
use crate::process::{Blueprint, Process, Shared};
use crate::supervisor::events;
use crate::system::System;
use crate::uplink::Uplink;
use crate::vm::Vm;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use usys::abi::boot_info::root;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Log, Narrow, Ntfn, Pd};
use usys::memory::Mapping;
use usys::object::{Fault, Schedule};
use usys::process::{self, selector as well_known};
use usys::selector;
use vmm_protocol::manifest::{MacAddress, Manifest, NetInterface, NetworkConfig, OnCrash, SWITCH_MODULE};
use vmm_protocol::net::{CHANNEL_BYTES, Side};
use vmm_protocol::process::{CHANNEL, PortConfig, SwitchConfig, monitor, switch};

/// Pages of a channel.
pub const CHANNEL_PAGES: u64 = (CHANNEL_BYTES as u64).div_ceil(PAGE_SIZE);
/// Frames of kernel memory for what a switch makes: capability tables.
const EXTRA_FRAMES: u64 = 16;
/// Pages of a switch's heap: twice what its table of addresses takes.
const HEAP_PAGES: u64 = 16;

/// The port of a VM's network card. It outlives the VMM.
#[derive(Debug)]
pub struct Card {
    vm: usize,
    /// The card's number there.
    number: usize,
    channel: Allocation,
    /// Signals the VM.
    doorbell: Cap<Ntfn>,
    /// Of the switch.
    switch: Cap<Ntfn>,
    port: usize,
    address: MacAddress,
    is_bridge: bool,
    /// The guest may have the channel.
    is_direct: bool,
}

impl Card {
    /// Number of its VM.
    pub fn vm(&self) -> usize {
        self.vm
    }

    /// Its number in its VM.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The memory that the VMM and the switch share.
    pub fn channel(&self) -> &Allocation {
        &self.channel
    }

    /// Whether the guest may have the channel.
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Lets a VMM signal the switch, and give the channel to its guest if that may have it.
    pub fn delegate(&self, pd: Cap<Pd>) -> usys::Result<()> {
        let number = self.number as u32;
        let signal = Narrow::rights(Rights::SIGNAL).badge(1 << self.port);
        self.switch.delegate(pd, Selector(monitor::CARDS + number), signal)?;
        if self.is_direct {
            let channel = Narrow::rights(Rights::READ | Rights::WRITE);
            self.channel.memory().delegate(pd, Selector(monitor::CHANNELS + number), channel)?;
        }
        Ok(())
    }
}

/// The port of a VM's socket device. It outlives the VMM.
#[derive(Debug)]
pub struct Sockets {
    vm: usize,
    channel: Allocation,
    /// The first page of the channel.
    view: Mapping,
    /// Signals the VM.
    doorbell: Cap<Ntfn>,
    /// Signals the switch.
    switch: Cap<Ntfn>,
    cid: u32,
}

impl Sockets {
    /// Number of its VM.
    pub fn vm(&self) -> usize {
        self.vm
    }

    /// The memory that the VMM and the switch share.
    pub fn channel(&self) -> &Allocation {
        &self.channel
    }

    /// Lets a VMM signal the switch.
    pub fn delegate(&self, pd: Cap<Pd>) -> usys::Result<()> {
        self.switch.delegate(pd, Selector(monitor::VSOCK), Narrow::rights(Rights::SIGNAL))
    }

    /// Ends the session of a VMM that has ended: who is connected to its guest is told.
    pub fn hang_up(&self) {
        if let Ok(session) = self.view.window().atomic_u64(Side::Card.session()) {
            session.store(0, Ordering::Release);
        }
        // Without a switch nobody needs to know.
        let _ = self.switch.signal();
    }
}

/// A network. What its ports share with the switch outlives the switch, so that a restart only loses frames.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    name: String,
    /// CPU of the switch.
    cpu: u16,
    /// Priority of the switch: that of the most urgent VM that it works for. They get their turns in slices, so that none of them
    /// waits for ever: not for VMs that send without end, nor the switch for one that computes. A VM that sends goes on until its
    /// slice is over or it waits, and the switch then finds all that it sent.
    priority: u8,
    events: Cap<Ntfn>,
    cards: Vec<Card>,
    /// At the port behind the cards'.
    uplink: Option<Uplink>,
    /// At the ports behind that.
    sockets: Vec<Sockets>,
    process: Option<Process>,
    crashes: u32,
}

impl Network {
    /// Makes what outlives the switch; [`Self::start`] makes the switch.
    fn new(
        system: &mut System,
        config: NetworkConfig,
        manifest: &Manifest,
        vms: &[Vm],
    ) -> Result<Self, StartError> {
        let events = process::pool().create_ntfn(selector::allocate()?)?;
        let mut cards = Vec::new();
        for (port, (vm, number, card)) in manifest.cards(&config.name).enumerate() {
            let bit = monitor::card_bit(number, card.interface);
            let signal = Narrow::rights(Rights::SIGNAL | Rights::DERIVE).badge(bit);
            cards.push(Card {
                vm,
                number,
                channel: system.memory.allocate(CHANNEL_PAGES, 1)?,
                doorbell: vms[vm].events().derive(selector::allocate()?, signal)?,
                switch: events,
                port,
                address: card.address(vm, number),
                is_bridge: card.bridge,
                is_direct: card.interface == NetInterface::Pv,
            });
        }
        let mut sockets = Vec::new();
        let before = cards.len() + usize::from(config.uplink.module().is_some());
        for (port, (vm, cid)) in (before..).zip(manifest.vsocks(&config.name)) {
            let signal = |badge| Narrow::rights(Rights::SIGNAL | Rights::DERIVE).badge(badge);
            let channel = system.memory.allocate(CHANNEL_PAGES, 1)?;
            sockets.push(Sockets {
                vm,
                view: Mapping::new(channel.memory(), 0, 1, true)?,
                channel,
                doorbell: vms[vm].events().derive(selector::allocate()?, signal(monitor::DEVICE_BIT))?,
                switch: events.derive(selector::allocate()?, signal(1 << port))?,
                cid,
            });
        }
        let users = || cards.iter().map(Card::vm).chain(sockets.iter().map(Sockets::vm));
        let cpu = users().next().map_or(0, |vm| vms[vm].config().cpu);
        let priority = users().map(|vm| vms[vm].config().priority).max().unwrap_or(1);
        let before = manifest.networks.iter().take_while(|other| other.name != config.name);
        let number = before.filter(|other| other.uplink == config.uplink).count() as u8;
        let uplink = Uplink::new(system, &config, number, events, cards.len())?;
        let name = format!("switch.{}", config.name);
        let (process, crashes) = (None, 0);
        Ok(Network { config, name, cpu, priority, events, cards, uplink, sockets, process, crashes })
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cards on it.
    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// The socket devices on it.
    pub fn sockets(&self) -> &[Sockets] {
        &self.sockets
    }

    /// Its uplink, if it has one.
    pub fn uplink(&mut self) -> Option<&mut Uplink> {
        self.uplink.as_mut()
    }

    /// What a crash of its switch does.
    pub fn on_crash(&self) -> OnCrash {
        self.config.on_crash
    }

    /// Switches that crashed so far.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Starts a driver process for its uplink, if it has one.
    pub fn start_uplink(&mut self, system: &mut System) -> Result<(), StartError> {
        // A device has little room for what comes.
        let (cpu, priority) = (self.cpu, self.priority + 1);
        self.uplink.as_mut().map_or(Ok(()), |uplink| uplink.start(system, cpu, priority))
    }

    /// Starts a switch for it.
    pub fn start(&mut self, system: &mut System) -> Result<(), StartError> {
        let cards = self
            .cards
            .iter()
            .map(|card| PortConfig::Card { address: card.address, is_bridge: card.is_bridge });
        let uplink = self.uplink.iter().map(|_| PortConfig::Uplink);
        let sockets = self.sockets.iter().map(|sockets| PortConfig::Vsock { cid: sockets.cid });
        let ports = cards.chain(uplink).chain(sockets).collect();
        let config =
            postcard::to_allocvec(&SwitchConfig { ports }).map_err(|_| StartError::TooMuchConfiguration)?;
        let channels: Vec<_> = self.channels().collect();
        let names: Vec<_> = (0..channels.len()).map(|port| format!("{CHANNEL}{port}")).collect();
        let windows: Vec<_> =
            channels.into_iter().zip(&names).map(|(channel, name)| Shared::writable(name, channel)).collect();
        let plan = Blueprint {
            name: &self.name,
            program: SWITCH_MODULE,
            cpu: self.cpu,
            schedule: Schedule::whole(self.priority),
            extra_frames: EXTRA_FRAMES,
            heap_pages: HEAP_PAGES,
            config: &config,
            events: self.events,
            parent_badge: events::DRIVER_REPORT,
            fault_badge: events::DRIVER_FAULT,
            windows: &windows,
        };
        let process = Process::launch(system, &plan, |process| self.equip(process))?;
        self.process = Some(process);
        Ok(())
    }

    /// The channels of its ports, in their order.
    fn channels(&self) -> impl Iterator<Item = &Allocation> {
        let cards = self.cards.iter().map(Card::channel);
        cards.chain(self.uplink.iter().map(Uplink::channel)).chain(self.sockets.iter().map(Sockets::channel))
    }

    /// Gives the switch the doorbells of its ports and the kernel's log.
    fn equip(&self, process: &mut Process) -> Result<(), StartError> {
        let pd = process.pd();
        let doorbells = self.cards.iter().map(|card| card.doorbell);
        let doorbells = doorbells.chain(self.uplink.iter().map(Uplink::doorbell));
        let doorbells = doorbells.chain(self.sockets.iter().map(|sockets| sockets.doorbell));
        for (doorbell, port) in doorbells.zip(0..) {
            doorbell.delegate(pd, Selector(switch::PORTS + port), Narrow::rights(Rights::SIGNAL))?;
        }
        let log: Cap<Log> = Cap::new(root::LOG);
        Ok(log.delegate(pd, well_known::LOG, Narrow::rights(Rights::USE))?)
    }

    /// Ends the switch after it crashed; says what it did.
    pub fn take_crash(&mut self, system: &mut System) -> Option<Fault> {
        let fault = self.process.as_ref()?.fault()?;
        if let Some(process) = self.process.take() {
            process.destroy(&mut system.memory);
        }
        self.crashes += 1;
        Some(fault)
    }
}

/// The networks of the manifest.
pub fn all(system: &mut System, manifest: &Manifest, vms: &[Vm]) -> Result<Vec<Network>, StartError> {
    let networks = manifest.networks.iter();
    networks.map(|config| Network::new(system, config.clone(), manifest, vms)).collect()
}
