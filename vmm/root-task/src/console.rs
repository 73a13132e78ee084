//! The console server, from the root task's side.

use crate::error::StartError;
use crate::memory::Allocation;
use crate::process::{Blueprint, Process, Shared};
use crate::supervisor::events;
use crate::system::System;
use crate::vm::Vm;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use usys::abi::boot_info::root;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Irqs, Log, Narrow, Ntfn, Ports};
use usys::lock::Mutex;
use usys::memory::Mapping;
use usys::object::Schedule;
use usys::process::{self, selector as well_known};
use usys::ring::Producer;
use usys::selector;
use vmm_protocol::link::{NO_VM, Stream};
use vmm_protocol::manifest::{CONSOLE_MODULE, ConsoleMode};
use vmm_protocol::outcome::Outcome;
use vmm_protocol::process::{ConsoleConfig, INPUT, OUTPUT, ROOT_OUTPUT, console as protocol, monitor};

/// Pages of the ring with the root task's records.
const ROOT_OUTPUT_PAGES: u64 = ring_pages(16);
/// Global system interrupt of COM1.
const COM1_IRQ: u64 = 4;
/// More important than every VM, but never more than half of a CPU: a VMM that floods its ring cannot take it from VMs.
const SCHEDULE: Schedule = Schedule { priority: 31, budget_us: 5_000, period_us: 10_000 };
/// Frames of kernel memory for what it makes: a bitmap of its ports, and capability tables for the doorbells.
const EXTRA_FRAMES: u64 = 16;
/// Pages of heap.
const HEAP_PAGES: u64 = 128;

/// The console server and the ring to it. The ring outlives it.
#[derive(Debug)]
pub struct Console {
    process: Option<Process>,
    config: ConsoleConfig,
    events: Cap<Ntfn>,
    output: Allocation,
    producer: &'static Mutex<Producer>,
    doorbell: Cap<Ntfn>,
}

impl Console {
    /// Makes what outlives the process; [`Self::start`] makes the process.
    pub fn new(system: &mut System, mode: ConsoleMode, vms: &[Vm]) -> Result<Self, StartError> {
        let output = system.memory.allocate(ROOT_OUTPUT_PAGES, 1)?;
        // Mapped for good: the logger writes there until the machine is off.
        let mapping = Box::leak(Box::new(Mapping::new(output.memory(), 0, output.pages(), true)?));
        let producer = Box::leak(Box::new(Mutex::new(Producer::attach(mapping.window())?)));
        let events = process::pool().create_ntfn(selector::allocate()?)?;
        let signal = Narrow::rights(Rights::SIGNAL).badge(protocol::ROOT_BIT);
        let doorbell = events.derive(selector::allocate()?, signal)?;
        let names = vms.iter().map(|vm| vm.config().name.clone()).collect();
        let config = ConsoleConfig { mode, vms: names };
        Ok(Console { process: None, config, events, output, producer, doorbell })
    }

    /// Starts the process; it goes on where a predecessor stopped.
    pub fn start(&mut self, system: &mut System, vms: &[Vm]) -> Result<(), StartError> {
        let names: Vec<_> =
            (0..vms.len()).map(|index| (format!("{OUTPUT}{index}"), format!("{INPUT}{index}"))).collect();
        let mut windows = alloc::vec![Shared::writable(ROOT_OUTPUT, &self.output)];
        for (vm, (output, input)) in vms.iter().zip(&names) {
            windows.push(Shared::writable(output, vm.output()));
            windows.push(Shared::writable(input, vm.input()));
        }
        let config = postcard::to_allocvec(&self.config).map_err(|_| StartError::TooMuchConfiguration)?;
        let plan = Blueprint {
            name: CONSOLE_MODULE,
            program: CONSOLE_MODULE,
            cpu: 0,
            schedule: SCHEDULE,
            extra_frames: EXTRA_FRAMES,
            heap_pages: HEAP_PAGES,
            config: &config,
            events: self.events,
            parent_badge: events::CONSOLE_DONE,
            fault_badge: events::CONSOLE_FAULT,
            windows: &windows,
        };
        let process = Process::launch(system, &plan, |process| self.equip(process, vms))?;
        self.process = Some(process);
        Ok(())
    }

    /// Gives it COM1, the kernel's log, and the doorbells of the VMs.
    fn equip(&self, process: &mut Process, vms: &[Vm]) -> Result<(), StartError> {
        let pd = process.pd();
        let ports: Cap<Ports> = Cap::new(root::PORTS);
        let com1 = Narrow::rights(Rights::USE).range(protocol::COM1.into(), protocol::COM1_PORTS.into());
        process.derive(ports, com1)?.map(pd, 0, protocol::COM1_PORTS.into())?;
        let irqs: Cap<Irqs> = Cap::new(root::IRQS);
        irqs.delegate(pd, Selector(protocol::IRQ), Narrow::rights(Rights::USE).range(COM1_IRQ, 1))?;
        let signal = Narrow::rights(Rights::SIGNAL);
        self.events.delegate(pd, Selector(protocol::IRQ_NTFN), signal.badge(protocol::IRQ_BIT))?;
        let log: Cap<Log> = Cap::new(root::LOG);
        log.delegate(pd, well_known::LOG, Narrow::rights(Rights::USE))?;
        for (index, vm) in vms.iter().enumerate() {
            let to = Selector(protocol::DOORBELLS + index as u32);
            vm.events().delegate(pd, to, signal.badge(monitor::CONSOLE_BIT))?;
        }
        Ok(())
    }

    /// Whether the process lives.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Ends the process after it crashed; says what it did.
    pub fn take_crash(&mut self, system: &mut System) -> Option<usys::object::Fault> {
        let fault = self.process.as_ref()?.fault()?;
        if let Some(process) = self.process.take() {
            process.destroy(&mut system.memory);
        }
        Some(fault)
    }

    /// Sends this process's log to the console server.
    pub fn take_log(&self) {
        usys::logger::to_ring(self.producer, self.doorbell, Stream::Log as u8, NO_VM);
    }

    /// What VM `index` signals the console server with.
    pub fn delegate_doorbell(&self, index: usize, process: &Process, to: Selector) -> usys::Result<()> {
        let keep = Narrow::rights(Rights::SIGNAL).badge(1 << index);
        self.events.delegate(process.pd(), to, keep)
    }

    /// Reports how a VM ended.
    pub fn report(&self, index: usize, outcome: &Outcome) {
        if !self.send(Stream::Outcome, index as u8, &outcome.encode()) {
            let _ = process::kernel_log().write(
                format!("root: error: the console server does not read: VM {index}: {outcome}\n").as_bytes(),
            );
        }
    }

    /// Says that nothing follows; the console server raises [`events::CONSOLE_DONE`] when everything is on the line.
    pub fn say_bye(&self) {
        self.send(Stream::Bye, NO_VM, &[0]);
    }

    fn send(&self, stream: Stream, vm: u8, bytes: &[u8]) -> bool {
        let is_sent = self.producer.lock().push(stream as u8, vm, bytes);
        // A doorbell that is gone rings for nobody.
        let _ = self.doorbell.signal();
        is_sent
    }
}

/// Pages of a ring with `kib` KiB for records.
pub const fn ring_pages(kib: u64) -> u64 {
    1 + kib * 1024 / PAGE_SIZE
}
