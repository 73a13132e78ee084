//! The run loop of a VM that may have a debugger.

use super::{Vm, Watch, refused};
use crate::devices;
use crate::guest_cpu::GuestCpu;
use crate::guest_ram::GuestRam;
use usys::cpu;
use usys::object::FOREVER;
use usys::process;
use usys::ring::MAX_RECORD;
use vmm_core::gdb::{self, Ended, Inferior};
use vmm_core::machine::Machine;
use vmm_core::vcpu::Vcpu;
use vmm_protocol::link::Stream;
use vmm_protocol::outcome::Outcome;

/// An acknowledgement that nobody asked for: the VM waits for gdb.
const READY: &[u8] = b"+";

/// Runs the guest until it ends, with a debugger from the first instruction on, and again whenever one calls.
pub(super) fn run<W: Watch>(vm: &mut Vm<W>, machine: &mut Machine) -> Outcome {
    log::info!("waiting for gdb");
    vm.channel.send(Stream::Gdb, READY);
    loop {
        let mut debugged = Debugged { vm, machine, outcome: None };
        let ended = gdb::serve(&mut debugged);
        if let Some(outcome) = debugged.outcome {
            return outcome;
        }
        log::info!("gdb: {ended:?}");
        if ended == Ended::Killed {
            // As if the plug was pulled.
            return Outcome::PoweredOff;
        }
        while !vm.channel.has_gdb() {
            let Some(end) = vm.step(machine).transpose() else {
                continue;
            };
            if let Err(outcome) = vm.go_on(machine, end) {
                return outcome;
            }
        }
    }
}

/// A VM under a debugger.
struct Debugged<'a, W> {
    vm: &'a mut Vm<W>,
    machine: &'a mut Machine,
    outcome: Option<Outcome>,
}

impl<W: Watch> Inferior for Debugged<'_, W> {
    type Cpu = GuestCpu;
    type Memory = GuestRam;

    fn parts(&mut self) -> (&mut GuestCpu, &mut GuestRam) {
        (&mut self.vm.vcpu, &mut self.vm.ram)
    }

    fn is_emulated_svm(&self) -> bool {
        const HYPERVISOR: u32 = 0x4000_0000;
        let [_, ebx, ecx, edx] = cpu::cpuid(HYPERVISOR, 0);
        [ebx, ecx, edx].map(u32::to_le_bytes) == [*b"TCGT", *b"CGTC", *b"GTCG"]
    }

    fn enter(&mut self, is_quiet: bool) {
        let vm = &mut *self.vm;
        if is_quiet {
            let page = vm.vcpu.page();
            page.run_flags = 0;
            page.deadline = u64::MAX;
        } else {
            self.machine.prepare_entry(&mut vm.vcpu, vm.now);
        }
        match vm.enter() {
            Ok(now) => vm.now = now,
            Err(error) => self.outcome = Some(refused(error)),
        }
    }

    fn handle(&mut self) {
        if self.outcome.is_some() {
            return;
        }
        if let Some(end) = self.vm.handle(self.machine) {
            self.outcome = self.vm.go_on(self.machine, Ok(end)).err();
        }
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    fn receive(&mut self) -> Option<u8> {
        // What is typed for a guest that does not run is lost when its UART is full: it must not keep gdb waiting.
        let machine = &mut *self.machine;
        let size = self.vm.channel.receive(|port, bytes| {
            machine.input(port, bytes);
            bytes.len()
        });
        if let Some(size) = size {
            machine.set_console_size(size.columns, size.rows);
        }
        self.vm.channel.take_gdb()
    }

    fn wait(&mut self) {
        self.vm.output.flush(&mut self.vm.channel);
        devices::give_back(process::events().wait(FOREVER).unwrap_or(0));
    }

    fn send(&mut self, bytes: &[u8]) {
        for record in bytes.chunks(MAX_RECORD) {
            self.vm.channel.send(Stream::Gdb, record);
        }
    }
}
