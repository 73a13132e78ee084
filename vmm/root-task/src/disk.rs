//! One disk with a driver process: what belongs to it for good, and its driver while that lives.

use crate::error::StartError;
use crate::memory::Allocation;
use crate::pci;
use crate::process::{Blueprint, Process, Shared};
use crate::supervisor::events;
use crate::system::System;
use crate::virtio::DmaDevice;
use crate::vm::Vm;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use block_channel::Watch;
use core::fmt;
use core::sync::atomic::Ordering;
use usys::abi::boot_info::root;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Irqs, Log, Narrow, Ntfn, Pd, Ports};
use usys::cpu;
use usys::memory::Mapping;
use usys::object::{FOREVER, Fault, Schedule};
use usys::process::{self, selector as well_known};
use usys::selector;
use vmm_protocol::block::{CHANNEL_BYTES, SERVED, Served};
use vmm_protocol::manifest::{DiskConfig, DiskDriver, OnCrash};
use vmm_protocol::process::driver::virtio;
use vmm_protocol::process::{CHANNEL, DriverConfig, driver, monitor};

/// Pages of a channel.
const CHANNEL_PAGES: u64 = (CHANNEL_BYTES as u64).div_ceil(PAGE_SIZE);
/// Pages for the queue of a virtio device.
const QUEUE_PAGES: u64 = 2;
/// Frames of kernel memory for what a driver makes: a bitmap of its ports, and capability tables.
const EXTRA_FRAMES: u64 = 16;
/// Pages of a driver's heap: what it copies a request's data through, twice.
const HEAP_PAGES: u64 = 64;
/// Of each 10 ms, a driver gets at most this many µs: a VM that keeps its disk busy leaves time to other VMs.
const BUDGET_US: u64 = 8_000;
const PERIOD_US: u64 = 10_000;

/// Who uses a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The VM.
    pub vm: usize,
    /// The disk's number there.
    pub number: usize,
}

/// What a driver is ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It stopped on a fault.
    Crash(Fault),
    /// It completed nothing for so many ms.
    Stuck(u32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Crash(Fault { vector, rip, address }) => {
                write!(f, "crashed: vector {vector} at {rip:#x}, address {address:#x}")
            }
            Failure::Stuck(ms) => write!(f, "is stuck: it completed nothing for {ms} ms"),
        }
    }
}

/// A disk with a driver process. The channel and the notifications outlive the driver, so that the VM only notices that its
/// requests fail for a while.
#[derive(Debug)]
pub struct Disk {
    name: String,
    config: DiskConfig,
    /// Its number among the disks with the same driver.
    device: u8,
    user: User,
    /// CPU and priority of the VM.
    cpu: u16,
    priority: u8,
    channel: Allocation,
    /// The channel's words.
    view: Mapping,
    events: Cap<Ntfn>,
    /// Signals the VM, for this process and to derive the driver's from.
    doorbell: Cap<Ntfn>,
    process: Option<Process>,
    session: u32,
    /// Sees whether the driver gets anywhere, and looks at this TSC next.
    watch: Watch,
    next_look: u64,
    /// For a virtio device, what it is.
    virtio: Option<DmaDevice>,
}

impl Disk {
    /// Makes what outlives the driver; [`Self::start`] makes the driver. `device` is the disk's number among those with the same
    /// driver.
    pub fn new(
        system: &mut System,
        vm: &Vm,
        user: User,
        config: DiskConfig,
        device: u8,
    ) -> Result<Self, StartError> {
        let channel = system.memory.allocate(CHANNEL_PAGES, 1)?;
        let view = Mapping::new(channel.memory(), 0, 1, true)?;
        let events = process::pool().create_ntfn(selector::allocate()?)?;
        let signal = Narrow::rights(Rights::SIGNAL | Rights::DERIVE).badge(monitor::DEVICE_BIT);
        let doorbell = vm.events().derive(selector::allocate()?, signal)?;
        let virtio = match config.driver {
            DiskDriver::VirtioBlk => DmaDevice::find(system, pci::VIRTIO_BLOCK, device.into(), QUEUE_PAGES)?,
            DiskDriver::Ata | DiskDriver::Memory => None,
        };
        virtio.as_ref().map_or(Ok(()), |device| device.reach(&channel))?;
        let watch = Watch::new(view.window())?;
        Ok(Disk {
            name: format!("{}.disk{}", vm.config().name, user.number),
            config,
            device,
            user,
            cpu: vm.config().cpu,
            priority: vm.config().priority,
            channel,
            view,
            events,
            doorbell,
            process: None,
            session: 0,
            watch,
            next_look: FOREVER,
            virtio,
        })
    }

    /// Who uses it.
    pub fn user(&self) -> User {
        self.user
    }

    /// The memory that its user and its driver share.
    pub fn channel(&self) -> &Allocation {
        &self.channel
    }

    /// Its name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a crash of its driver, or that it is stuck, does.
    pub fn on_crash(&self) -> OnCrash {
        self.config.on_crash
    }

    /// Drivers that failed so far.
    pub fn failures(&self) -> u32 {
        self.session - u32::from(self.process.is_some())
    }

    /// Lets a VMM signal the driver.
    pub fn delegate_doorbell(&self, pd: Cap<Pd>) -> usys::Result<()> {
        let to = Selector(monitor::DISKS + self.user.number as u32);
        self.events.delegate(pd, to, Narrow::rights(Rights::SIGNAL).badge(driver::USER_BIT))
    }

    /// Starts a driver process for it. What its user asks from now on waits for that.
    pub fn start(&mut self, system: &mut System) -> Result<(), StartError> {
        let Some(program) = self.config.driver.module() else { return Ok(()) };
        self.session += 1;
        self.announce(self.session);
        self.launch(system, program).inspect_err(|_| self.announce_none())
    }

    /// No driver comes any more: what its user asks fails.
    pub fn announce_none(&self) {
        self.announce(0);
    }

    /// Tells its user which driver is to come; 0 if there is none. What was at the one before is lost.
    fn announce(&self, session: u32) {
        if let Ok(served) = self.view.window().atomic_u64(SERVED) {
            served.store(Served { session, epoch: 0 }.encode(), Ordering::Release);
        }
        // A VM that is gone needs no signal.
        let _ = self.doorbell.signal();
    }

    fn launch(&mut self, system: &mut System, program: &str) -> Result<(), StartError> {
        let config = DriverConfig {
            session: self.session,
            device: self.device,
            is_read_only: self.config.read_only,
            pci: self.virtio.as_ref().map(|device| device.description(&self.channel)),
        };
        let config = postcard::to_allocvec(&config).map_err(|_| StartError::TooMuchConfiguration)?;
        let mut windows = alloc::vec![Shared::writable(CHANNEL, &self.channel)];
        windows.extend(self.virtio.iter().flat_map(DmaDevice::windows));
        let plan = Blueprint {
            name: &self.name,
            program,
            cpu: self.cpu,
            // Just above the VM that it works for: nothing that is more important than the VM waits for the VM's disk.
            schedule: Schedule { priority: self.priority + 1, budget_us: BUDGET_US, period_us: PERIOD_US },
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
        self.watch.forget();
        self.next_look = cpu::deadline_in(self.config.timeout_ms.into(), system.info.tsc_hz);
        Ok(())
    }

    /// The TSC at which its driver wants to be looked at.
    pub fn next_look(&self) -> u64 {
        self.next_look
    }

    /// Gives the driver its device, the kernel's log, and the doorbell of its user.
    fn equip(&self, process: &mut Process) -> Result<(), StartError> {
        let pd = process.pd();
        match self.config.driver {
            DiskDriver::Ata => self.equip_ata(process)?,
            DiskDriver::VirtioBlk => self.equip_virtio(process)?,
            DiskDriver::Memory => {}
        }
        let signal = Narrow::rights(Rights::SIGNAL);
        self.events.delegate(pd, Selector(driver::IRQ_NTFN), signal.badge(driver::IRQ_BIT))?;
        self.doorbell.delegate(pd, Selector(driver::USER), signal)?;
        let log: Cap<Log> = Cap::new(root::LOG);
        Ok(log.delegate(pd, well_known::LOG, Narrow::rights(Rights::USE))?)
    }

    /// The ports and the interrupt of its channel.
    fn equip_ata(&self, process: &mut Process) -> Result<(), StartError> {
        use driver::ata;
        let pd = process.pd();
        let channel = usize::from(self.device) % ata::IRQ.len();
        let ports: Cap<Ports> = Cap::new(root::PORTS);
        for (base, count) in [(ata::COMMAND[channel], ata::COMMAND_PORTS), (ata::CONTROL[channel], 1)] {
            let range = Narrow::rights(Rights::USE).range(base.into(), count.into());
            process.derive(ports, range)?.map(pd, 0, count.into())?;
        }
        let irqs: Cap<Irqs> = Cap::new(root::IRQS);
        let irq = Narrow::rights(Rights::USE).range(ata::IRQ[channel], 1);
        Ok(irqs.delegate(pd, Selector(driver::IRQ), irq)?)
    }

    /// The message of its device.
    fn equip_virtio(&self, process: &mut Process) -> Result<(), StartError> {
        let Some(device) = &self.virtio else { return Ok(()) };
        if device.is_confined() {
            log::info!("{}: its device reaches its queue and its channel only", self.name);
        } else {
            log::warn!(
                "{}: without an IOMMU its device reaches all memory: its driver is trusted",
                self.name
            );
        }
        device.enable();
        let irqs: Cap<Irqs> = Cap::new(root::IRQS);
        let irq = Narrow::rights(Rights::USE).range(virtio::IRQS + u64::from(self.device), 1);
        Ok(irqs.delegate(process.pd(), Selector(driver::IRQ), irq)?)
    }

    /// Ends the driver if it crashed, or is stuck; says what it did. [`Self::start`] or [`Self::announce_none`] is due then.
    pub fn take_failure(&mut self, system: &mut System) -> Option<Failure> {
        let fault = self.process.as_ref()?.fault().map(Failure::Crash);
        let failure = fault.or_else(|| self.look(system.info.tsc_hz))?;
        self.next_look = FOREVER;
        if let Some(device) = &self.virtio {
            device.quiesce();
        }
        if let Some(process) = self.process.take() {
            process.destroy(&mut system.memory);
        }
        Some(failure)
    }

    /// Looks at the driver, if it is time.
    fn look(&mut self, tsc_hz: u64) -> Option<Failure> {
        if cpu::now() < self.next_look {
            return None;
        }
        let ms = self.config.timeout_ms;
        self.next_look = cpu::deadline_in(ms.into(), tsc_hz);
        self.watch.is_stuck().then_some(Failure::Stuck(ms))
    }
}

/// The disks with driver processes of all VMs.
pub fn all(system: &mut System, vms: &[Vm]) -> Result<Vec<Disk>, StartError> {
    let mut disks: Vec<Disk> = Vec::new();
    for (vm_index, vm) in vms.iter().enumerate() {
        for (number, config) in vm.config().disks.iter().enumerate() {
            if config.driver.module().is_some() {
                let device = disks.iter().filter(|disk| disk.config.driver == config.driver).count();
                let user = User { vm: vm_index, number };
                disks.push(Disk::new(system, vm, user, config.clone(), device as u8)?);
            }
        }
    }
    Ok(disks)
}
