//! Starting everything, and waiting for what ends.

use crate::console::Console;
use crate::disk::{self, Disk};
use crate::error::StartError;
use crate::network::{self, Network, Sockets};
use crate::pressure;
use crate::system::System;
use crate::trace::Recorder;
use crate::vm::Vm;
use alloc::vec::Vec;
use usys::cap::{Cap, Ntfn};
use usys::object::{FOREVER, Fault};
use usys::power::{self, Ending};
use usys::{cpu, process, selector};
use vmm_protocol::manifest::{Manifest, OnCrash, VmConfig, WhenDone};
use vmm_protocol::outcome::Outcome;
use vmm_protocol::process::MAX_VMS;

/// Bits of the root task's notification.
pub mod events {
    use super::MAX_VMS;

    const FAULTS: usize = 32;
    const _: () = assert!(MAX_VMS <= 30 && FAULTS + MAX_VMS <= 62);

    /// The VMM of VM `index` reported an outcome.
    pub const fn report(index: usize) -> u64 {
        1 << index
    }

    /// The VMM of VM `index` stopped on a fault.
    pub const fn fault(index: usize) -> u64 {
        1 << (FAULTS + index)
    }

    /// A driver process or a switch has something to say; none has.
    pub const DRIVER_REPORT: u64 = 1 << 30;
    /// A driver process or a switch stopped on a fault.
    pub const DRIVER_FAULT: u64 = 1 << 31;
    /// The console server stopped on a fault.
    pub const CONSOLE_FAULT: u64 = 1 << 62;
    /// The console server has sent everything.
    pub const CONSOLE_DONE: u64 = 1 << 63;
}

/// How often a VMM, a driver or the console server is started again.
const MAX_RESTARTS: u32 = 3;
/// How long to leave the CPU to others after each round, in ms: a VMM that signals without end must not keep it from VMs.
const BREATH_MS: u64 = 1;
/// How long VMs may take to give memory before more is asked for, in ms.
const PATIENCE_MS: u64 = 2000;
/// How long the console server may take to send what is left, in ms: 64 KiB at 115200 baud are 6 s.
const BYE_MS: u64 = 30_000;

/// The running system.
#[derive(Debug)]
pub struct Supervisor {
    system: System,
    when_done: WhenDone,
    /// Nobody signals it: to wait for the time alone.
    pause: Cap<Ntfn>,
    console: Console,
    console_crashes: u32,
    vms: Vec<Vm>,
    disks: Vec<Disk>,
    networks: Vec<Network>,
    /// Crashes of each VM's VMM.
    crashes: Vec<u32>,
    /// VMs that wait for memory of others, and until when before more is asked for.
    waiting: Vec<usize>,
    patience: u64,
}

impl Supervisor {
    /// Starts the console server, the drivers and every VM. A driver or a VM that cannot start is reported, and no error.
    pub fn start(mut system: System, manifest: Manifest) -> Result<Self, StartError> {
        if let Some(config) = manifest.trace {
            system.recorder = Some(Recorder::new(&mut system.memory, system.info, config)?);
        }
        let new_vm = |(index, config): (usize, VmConfig)| Vm::new(&mut system, index, config);
        let vms: Vec<Vm> = manifest.vms.iter().cloned().enumerate().map(new_vm).collect::<Result<_, _>>()?;
        let disks = disk::all(&mut system, &vms)?;
        let networks = network::all(&mut system, &manifest, &vms)?;
        let mut console = Console::new(&mut system, manifest.console, &vms)?;
        console.start(&mut system, &vms)?;
        console.take_log();
        let crashes = alloc::vec![0; vms.len()];
        let when_done = manifest.when_done;
        let pause = process::pool().create_ntfn(selector::allocate()?)?;
        let mut supervisor = Supervisor {
            system,
            when_done,
            pause,
            console,
            console_crashes: 0,
            vms,
            disks,
            networks,
            crashes,
            waiting: Vec::new(),
            patience: FOREVER,
        };
        for index in 0..supervisor.disks.len() {
            supervisor.start_driver(index);
        }
        for index in 0..supervisor.networks.len() {
            supervisor.start_switch(index);
            supervisor.start_uplink(index);
        }
        for index in 0..supervisor.vms.len() {
            supervisor.start_vm(index);
        }
        Ok(supervisor)
    }

    /// Reports what ends, until every VM has; returns only with what makes going on impossible.
    pub fn run(mut self) -> StartError {
        while self.vms.iter().any(Vm::is_running) || self.when_done == WhenDone::Halt {
            let next_record = self.system.recorder.as_ref().map_or(FOREVER, Recorder::next);
            let deadline = next_record.min(self.patience).min(self.next_look());
            let raised = match process::events().wait(deadline) {
                Ok(raised) => raised,
                Err(error) => return error.into(),
            };
            if let Err(error) = self.record().and_then(|()| self.handle(raised)) {
                return error;
            }
            let deadline = cpu::deadline_in(BREATH_MS, self.system.info.tsc_hz);
            let _ = self.pause.wait(deadline);
        }
        self.finish()
    }

    /// When to look whether a driver is stuck.
    fn next_look(&self) -> u64 {
        self.disks.iter().map(Disk::next_look).min().unwrap_or(FOREVER)
    }

    /// Begins, or stops, recording if it is time.
    fn record(&mut self) -> Result<(), StartError> {
        self.system.recorder.as_mut().map_or(Ok(()), Recorder::look)
    }

    fn handle(&mut self, raised: u64) -> Result<(), StartError> {
        if raised & events::CONSOLE_FAULT != 0 {
            self.restart_console()?;
        }
        if raised & events::DRIVER_FAULT != 0 || cpu::now() >= self.next_look() {
            (0..self.disks.len()).for_each(|index| self.look_at_driver(index));
            (0..self.networks.len()).for_each(|index| self.look_at_switch(index));
            (0..self.networks.len()).for_each(|index| self.look_at_uplink(index));
        }
        let free = self.system.memory.free_pages();
        for index in 0..self.vms.len() {
            if raised & (events::report(index) | events::fault(index)) != 0 {
                self.vms[index].serve_memory(&mut self.system.memory);
                self.look_at(index);
            }
        }
        if self.system.memory.free_pages() > free {
            self.start_waiting();
        }
        self.ask_again();
        Ok(())
    }

    /// A VMM reported, or crashed.
    fn look_at(&mut self, index: usize) {
        if let Some(outcome) = self.vms[index].report() {
            self.stop_vm(index);
            self.console.report(index, &outcome);
            if self.waiting.is_empty() {
                pressure::deflate(&mut self.vms);
            }
        } else if let Some(fault) = self.vms[index].fault() {
            self.stop_vm(index);
            self.handle_crash(index, fault);
        }
    }

    /// Ends a VMM. Who is connected to its guest is told.
    fn stop_vm(&mut self, index: usize) {
        let vm = &mut self.vms[index];
        vm.stop(&mut self.system.memory);
        vm.sockets(&self.networks).into_iter().for_each(Sockets::hang_up);
    }

    fn handle_crash(&mut self, index: usize, fault: Fault) {
        let Fault { vector, rip, address } = fault;
        let outcome = Outcome::VmmCrashed { vector, rip, address };
        let config = self.vms[index].config();
        let restarts = self.crashes[index];
        if config.on_crash == OnCrash::Report || restarts >= MAX_RESTARTS {
            self.console.report(index, &outcome);
            return;
        }
        self.crashes[index] = restarts + 1;
        log::warn!("VM {}: {outcome}; starting it again ({} of {MAX_RESTARTS})", config.name, restarts + 1);
        self.start_vm(index);
    }

    fn start_vm(&mut self, index: usize) {
        match self.vms[index].start(&mut self.system, &self.console, &self.disks, &self.networks) {
            Ok(()) => {}
            Err(StartError::Memory { pages }) if self.inflate(pages) => {
                log::info!("VM {}: waits for memory of others", self.vms[index].config().name);
                self.waiting.push(index);
                self.be_patient();
            }
            Err(error) => self.console.report(index, &Outcome::not_started(error)),
        }
    }

    /// Asks VMs for memory, so that there are `pages` pages. Whether they have so much.
    fn inflate(&mut self, pages: u64) -> bool {
        pressure::inflate(&mut self.vms, pages.saturating_sub(self.system.memory.free_pages()))
    }

    fn be_patient(&mut self) {
        let wait = || cpu::deadline_in(PATIENCE_MS, self.system.info.tsc_hz);
        self.patience = if self.waiting.is_empty() { FOREVER } else { wait() };
    }

    /// What was asked for did not come, or not in pieces that can be used: asks for more.
    fn ask_again(&mut self) {
        if cpu::now() >= self.patience {
            pressure::inflate(&mut self.vms, 0);
            self.be_patient();
        }
    }

    /// Memory came free: starts the VMs that waited for it.
    fn start_waiting(&mut self) {
        for index in core::mem::take(&mut self.waiting) {
            match self.vms[index].start(&mut self.system, &self.console, &self.disks, &self.networks) {
                Ok(()) => {}
                Err(StartError::Memory { .. }) if self.vms.iter().any(|vm| vm.asked() > 0) => {
                    self.waiting.push(index);
                }
                Err(error) => self.console.report(index, &Outcome::not_started(error)),
            }
        }
        self.be_patient();
    }

    fn start_driver(&mut self, index: usize) {
        let disk = &mut self.disks[index];
        if let Err(error) = disk.start(&mut self.system) {
            log::error!("{}: its driver does not start: {error}", disk.name());
        }
    }

    /// A driver may have crashed, or be stuck.
    fn look_at_driver(&mut self, index: usize) {
        let disk = &mut self.disks[index];
        let Some(failure) = disk.take_failure(&mut self.system) else {
            return;
        };
        let (name, failures) = (disk.name(), disk.failures());
        log::error!("{name}: its driver {failure}");
        if disk.on_crash() == OnCrash::Restart && failures <= MAX_RESTARTS {
            log::warn!("{name}: starting its driver again ({failures} of {MAX_RESTARTS})");
            self.start_driver(index);
        } else {
            disk.announce_none();
        }
    }

    fn start_switch(&mut self, index: usize) {
        let network = &mut self.networks[index];
        if let Err(error) = network.start(&mut self.system) {
            log::error!("{} does not start: {error}", network.name());
        }
    }

    /// A switch may have crashed.
    fn look_at_switch(&mut self, index: usize) {
        let network = &mut self.networks[index];
        let Some(Fault { vector, rip, address }) = network.take_crash(&mut self.system) else {
            return;
        };
        let (name, crashes) = (network.name(), network.crashes());
        log::error!("{name} crashed: vector {vector} at {rip:#x}, address {address:#x}");
        if network.on_crash() == OnCrash::Restart && crashes <= MAX_RESTARTS {
            log::warn!("{name}: starting it again ({crashes} of {MAX_RESTARTS})");
            self.start_switch(index);
        }
    }

    fn start_uplink(&mut self, index: usize) {
        let network = &mut self.networks[index];
        if let Err(error) = network.start_uplink(&mut self.system) {
            log::error!("{}: the driver of its uplink does not start: {error}", network.name());
        }
    }

    /// The driver of an uplink may have crashed.
    fn look_at_uplink(&mut self, index: usize) {
        let network = &mut self.networks[index];
        let on_crash = network.on_crash();
        let Some(uplink) = network.uplink() else { return };
        let Some(Fault { vector, rip, address }) = uplink.take_crash(&mut self.system) else {
            return;
        };
        let (name, crashes) = (uplink.name(), uplink.crashes());
        log::error!("{name}: its driver crashed: vector {vector} at {rip:#x}, address {address:#x}");
        if on_crash == OnCrash::Restart && crashes <= MAX_RESTARTS {
            log::warn!("{name}: starting its driver again ({crashes} of {MAX_RESTARTS})");
            self.start_uplink(index);
        }
    }

    fn restart_console(&mut self) -> Result<(), StartError> {
        let Some(Fault { vector, rip, address }) = self.console.take_crash(&mut self.system) else {
            return Ok(());
        };
        usys::logger::to_kernel();
        log::error!("the console server crashed: vector {vector} at {rip:#x}, address {address:#x}");
        self.console_crashes += 1;
        if self.console_crashes <= MAX_RESTARTS {
            self.console.start(&mut self.system, &self.vms)?;
            self.console.take_log();
        }
        Ok(())
    }

    /// Every VM has ended: lets the console server send what is left, and turns the machine off.
    fn finish(&mut self) -> ! {
        if let Some(Err(error)) = self.system.recorder.as_mut().map(Recorder::print) {
            log::error!("the trace cannot be printed: {error}");
        }
        self.console.say_bye();
        let deadline = cpu::deadline_in(BYE_MS, self.system.info.tsc_hz);
        while self.console.is_running()
            && let Ok(raised) = process::events().wait(deadline)
        {
            // No bits: the deadline.
            if raised == 0 || raised & (events::CONSOLE_DONE | events::CONSOLE_FAULT) != 0 {
                break;
            }
        }
        power::off(Ending::Done)
    }
}
