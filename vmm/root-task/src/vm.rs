//! One VM: what belongs to it for good, and its VMM while that lives.

use crate::console::{Console, ring_pages};
use crate::disk::Disk;
use crate::error::StartError;
use crate::memory::{Allocation, FreeMemory};
use crate::network::{Card, Network, Sockets};
use crate::process::{Blueprint, Process, Shared, page_tables};
use crate::supervisor::events;
use crate::system::System;
use crate::vm_memory::VmMemory;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Narrow, Ntfn};
use usys::memory::Mapping;
use usys::object::{Fault, Schedule};
use usys::{process, selector};
use vmm_protocol::manifest::{DiskDriver, NetInterface, VmConfig};
use vmm_protocol::net::MAX_LONG;
use vmm_protocol::outcome::Outcome;
use vmm_protocol::process::{
    BALLOON, CARD, CHANNEL, DISK, INITRD, INPUT, KERNEL, MonitorConfig, OUTPUT, REPORT, Report, VSOCK,
    monitor,
};

/// KiB for records from the VM.
const OUTPUT_KIB: u64 = 64;
/// KiB for input to the VM.
const INPUT_KIB: u64 = 16;
/// Pages of a VMM's heap: 256 KiB, twice what any guest was seen to need. Most of it are the tables of the instruction decoder.
const HEAP_PAGES: u64 = 64;
/// Pages of heap for a socket device: buffers of the VMM's services, connections and answers.
const VSOCK_HEAP_PAGES: u64 = 40;
/// Pages of heap for a disk with a driver process: what its guest has in flight.
const DISK_HEAP_PAGES: u64 = (block_channel::HEAP_BYTES as u64).div_ceil(PAGE_SIZE);
/// Pages of heap for a virtio network card: a long frame each way, and the header before one.
const CARD_HEAP_PAGES: u64 = (2 * MAX_LONG as u64).div_ceil(PAGE_SIZE) + 1;
/// Pages in a MiB.
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE;
/// Frames of kernel memory for a vCPU and a guest space, without page tables for the guest's memory.
const VCPU_FRAMES: u64 = 16;
/// Frames for the page tables of memory that is no RAM in the guest space, as a network card's channel: it may begin a table at each level.
const RANGE_FRAMES: u64 = 4;
/// Pages of a superpage: guest memory begins at one.
const SUPERPAGE: u64 = 512;

/// Page tables for the guest's memory, in the guest space and in the VMM: it is made of superpages, but for what is left of
/// the last one.
const fn guest_tables(memory_mib: u32) -> u64 {
    2 * (page_tables(memory_mib as u64 / 2) + page_tables(SUPERPAGE))
}

/// Frames for the capabilities of the parts, of which the guest's space needs another each.
fn part_frames(memory: &VmMemory) -> u64 {
    const SLOTS: u64 = 64;
    2 * (memory.part_count().div_ceil(SLOTS) + 1)
}

/// Pages of heap to note what a balloon has: two balloons with a bit for each page, and a few words for each part.
fn balloon_heap(memory: &VmMemory) -> u64 {
    const BYTES: u64 = 2 * 64 + 64;
    if memory.balloon_page().is_some() { (memory.part_count() * BYTES).div_ceil(PAGE_SIZE) + 1 } else { 0 }
}

/// What a VM shares with others than the console.
struct Shares<'a> {
    disks: Vec<&'a Disk>,
    cards: Vec<&'a Card>,
    sockets: Option<&'a Sockets>,
}

/// One VM. Its rings and its notification outlive its VMM, so that the console server need not notice a restart.
#[derive(Debug)]
pub struct Vm {
    index: usize,
    config: VmConfig,
    events: Cap<Ntfn>,
    output: Allocation,
    input: Allocation,
    report: Allocation,
    report_view: Mapping,
    instance: Option<Instance>,
}

/// A living VMM.
#[derive(Debug)]
struct Instance {
    process: Process,
    memory: VmMemory,
    /// Its vCPU's pages.
    pages: Vec<Allocation>,
}

impl Vm {
    /// Makes what outlives the VMM; [`Self::start`] makes the VMM.
    pub fn new(system: &mut System, index: usize, mut config: VmConfig) -> Result<Self, StartError> {
        for (number, card) in config.cards.iter_mut().enumerate() {
            // The VMM need not know how an address is made.
            card.mac = Some(card.address(index, number));
        }
        let output = system.memory.allocate(ring_pages(OUTPUT_KIB), 1)?;
        let input = system.memory.allocate(ring_pages(INPUT_KIB), 1)?;
        let report = system.memory.allocate(1, 1)?;
        let report_view = Mapping::new(report.memory(), 0, 1, true)?;
        let events = process::pool().create_ntfn(selector::allocate()?)?;
        Ok(Vm { index, config, events, output, input, report, report_view, instance: None })
    }

    /// What the manifest says.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The notification that its VMM waits on.
    pub fn events(&self) -> Cap<Ntfn> {
        self.events
    }

    /// Ring with its records.
    pub fn output(&self) -> &Allocation {
        &self.output
    }

    /// Ring with its input.
    pub fn input(&self) -> &Allocation {
        &self.input
    }

    /// Whether its VMM lives.
    pub fn is_running(&self) -> bool {
        self.instance.is_some()
    }

    /// Starts a VMM for it.
    pub fn start(
        &mut self,
        system: &mut System,
        console: &Console,
        disks: &[Disk],
        networks: &[Network],
    ) -> Result<(), StartError> {
        let count = system.info.cpu_count;
        if self.config.cpu >= count {
            return Err(StartError::Cpu { cpu: self.config.cpu, count });
        }
        self.report_view.window().atomic_u32(Report::LEN)?.store(0, Ordering::Relaxed);
        let shares = Shares {
            disks: disks.iter().filter(|disk| disk.user().vm == self.index).collect(),
            cards: networks.iter().flat_map(Network::cards).filter(|card| card.vm() == self.index).collect(),
            sockets: self.sockets(networks),
        };
        let memory = VmMemory::allocate(&mut system.memory, &self.config)?;
        let process = match self.create_process(system, &shares, &memory) {
            Ok(process) => process,
            Err(error) => {
                memory.free(&mut system.memory);
                return Err(error);
            }
        };
        let mut instance = Instance { process, memory, pages: Vec::new() };
        match self.equip(system, console, &shares, &mut instance) {
            Ok(()) => {
                self.instance = Some(instance);
                Ok(())
            }
            Err(error) => {
                instance.destroy(&mut system.memory);
                Err(error)
            }
        }
    }

    /// The port of its socket device, if that is on one of the networks.
    pub fn sockets<'a>(&self, networks: &'a [Network]) -> Option<&'a Sockets> {
        networks.iter().flat_map(Network::sockets).find(|sockets| sockets.vm() == self.index)
    }

    fn create_process(
        &self,
        system: &mut System,
        Shares { disks, cards, sockets }: &Shares<'_>,
        memory: &VmMemory,
    ) -> Result<Process, StartError> {
        let kernel = system.module(&self.config.kernel)?;
        let names: Vec<_> = (0..self.config.initrd.len()).map(|piece| format!("{INITRD}{piece}")).collect();
        let mut windows = vec![
            Shared::writable(OUTPUT, &self.output),
            Shared::writable(INPUT, &self.input),
            Shared::writable(REPORT, &self.report),
            Shared::module(KERNEL, kernel),
        ];
        for (module, name) in self.config.initrd.iter().zip(&names) {
            windows.push(Shared::module(name, system.module(module)?));
        }
        let names: Vec<_> = (0..self.config.disks.len()).map(|disk| format!("{DISK}{disk}")).collect();
        for (disk, name) in self.config.disks.iter().zip(&names) {
            if disk.driver == DiskDriver::Memory {
                windows.push(Shared::disk(name, system.module(&disk.image)?, !disk.read_only));
            }
        }
        let names: Vec<_> = disks.iter().map(|disk| format!("{CHANNEL}{}", disk.user().number)).collect();
        windows.extend(disks.iter().zip(&names).map(|(disk, name)| Shared::writable(name, disk.channel())));
        let names: Vec<_> = cards.iter().map(|card| format!("{CARD}{}", card.number())).collect();
        windows.extend(cards.iter().zip(&names).map(|(card, name)| Shared::writable(name, card.channel())));
        windows.extend(sockets.iter().map(|sockets| Shared::writable(VSOCK, sockets.channel())));
        if let Some(page) = memory.balloon_page() {
            windows.push(Shared::writable(BALLOON, page));
        }
        let config =
            MonitorConfig { index: self.index as u8, vm: self.config.clone(), memory: memory.parts() };
        let config = postcard::to_allocvec(&config).map_err(|_| StartError::TooMuchConfiguration)?;
        let disk_heap = disks.len() as u64 * DISK_HEAP_PAGES;
        let virtio_cards = self.config.cards.iter().filter(|card| card.interface == NetInterface::Virtio);
        let card_heap = virtio_cards.count() as u64 * CARD_HEAP_PAGES;
        let vsock_heap = if self.config.vsock.is_some() { VSOCK_HEAP_PAGES } else { 0 };
        // One more for the registers of the virtio devices.
        let ranges = 1 + cards.iter().filter(|card| card.is_direct()).count() as u64;
        let plan = Blueprint {
            name: &self.config.name,
            program: &self.config.vmm,
            cpu: self.config.cpu,
            schedule: Schedule::whole(self.config.priority),
            extra_frames: VCPU_FRAMES
                + guest_tables(self.config.memory_mib)
                + part_frames(memory)
                + ranges * RANGE_FRAMES,
            heap_pages: HEAP_PAGES + balloon_heap(memory) + disk_heap + card_heap + vsock_heap,
            config: &config,
            events: self.events,
            parent_badge: events::report(self.index),
            fault_badge: events::fault(self.index),
            windows: &windows,
        };
        Process::create(system, &plan)
    }

    /// Gives the VMM its guest's memory and its doorbells, and starts it.
    fn equip(
        &self,
        system: &mut System,
        console: &Console,
        Shares { disks, cards, sockets }: &Shares<'_>,
        instance: &mut Instance,
    ) -> Result<(), StartError> {
        let pd = instance.process.pd();
        instance.memory.delegate(pd)?;
        let keep = Rights::READ | Rights::WRITE | Rights::DERIVE;
        let registers = self.config.virtio_devices() as u64;
        for (to, pages) in
            [(monitor::VCPU_PAGE, 1), (monitor::APIC_PAGE, 1), (monitor::REGISTER_PAGES, registers)]
        {
            let page = system.memory.allocate(pages, 1)?;
            let page_cap = page.memory();
            instance.pages.push(page);
            page_cap.delegate(pd, Selector(to), Narrow::rights(keep))?;
        }
        console.delegate_doorbell(self.index, &instance.process, Selector(monitor::CONSOLE))?;
        let again = Narrow::rights(Rights::SIGNAL).badge(monitor::DEVICE_BIT);
        self.events.delegate(pd, Selector(monitor::DEVICE_NTFN), again)?;
        for disk in disks {
            disk.delegate_doorbell(pd)?;
        }
        for card in cards {
            card.delegate(pd)?;
        }
        sockets.iter().try_for_each(|sockets| sockets.delegate(pd))?;
        instance.process.start()?;
        let sc = instance.process.sc();
        Ok(sc.delegate(pd, Selector(monitor::SC), Narrow::rights(Rights::SC_INFO))?)
    }

    /// How the VM ended, if its VMM says so. The VMM may say anything.
    pub fn report(&self) -> Option<Outcome> {
        let window = self.report_view.window();
        let len = window.atomic_u32(Report::LEN).ok()?.load(Ordering::Acquire) as usize;
        if !self.is_running() || len == 0 {
            return None;
        }
        let mut bytes = vec![0; len.min(Report::MAX)];
        let decoded = window.read(Report::OUTCOME, &mut bytes).ok().and_then(|()| Outcome::decode(&bytes));
        Some(decoded.unwrap_or_else(|| Outcome::unsupported("the VMM's report is damaged")))
    }

    /// Does what its VMM asks for memory; whether some came free.
    pub fn serve_memory(&mut self, memory: &mut FreeMemory) -> bool {
        let events = self.events;
        self.instance.as_mut().is_some_and(|instance| {
            let pd = instance.process.pd();
            instance.memory.serve(memory, pd, events)
        })
    }

    /// Pages that its balloon could have beyond what it is asked for; 0 if it has none.
    pub fn spare_pages(&self) -> u64 {
        let target = self.instance.as_ref().and_then(|instance| instance.memory.target());
        let most = u64::from(self.config.memory_mib - self.config.min_memory_mib()) * PAGES_PER_MIB;
        target.map_or(0, |target| most.saturating_sub(target))
    }

    /// Asks it for so many pages, if it has a balloon.
    pub fn ask_for(&mut self, pages: u64) {
        if let Some(instance) = &mut self.instance {
            instance.memory.set_target(pages, self.events);
        }
    }

    /// Pages that it is asked for.
    pub fn asked(&self) -> u64 {
        self.instance.as_ref().and_then(|instance| instance.memory.target()).unwrap_or(0)
    }

    /// Why its VMM crashed, if it did.
    pub fn fault(&self) -> Option<Fault> {
        self.instance.as_ref()?.process.fault()
    }

    /// Ends its VMM, and frees what that had.
    pub fn stop(&mut self, memory: &mut FreeMemory) {
        if let Some(instance) = self.instance.take() {
            instance.destroy(memory);
        }
    }
}

impl Instance {
    fn destroy(self, memory: &mut FreeMemory) {
        // The process first: afterwards nothing uses the memory.
        self.process.destroy(memory);
        self.memory.free(memory);
        for page in self.pages {
            memory.free(page);
        }
    }
}
