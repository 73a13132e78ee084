//! A virtual machine with one CPU on the board `reduced`.
//!
//! The run loop of a monitor is: [`Machine::prepare_entry`], run the vCPU, [`Machine::handle_exit`], take output, again.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{
    ACTIVITY_ACTIVE, ACTIVITY_HALTED, Event, Groups, Interruptibility, RunFlags, VcpuPage,
};
use vdev::Request;
use vdev::balloon::Balloon;
use vdev::guest_mem::GuestMemory;
use vdev::lapic::PageWords;
use vdev::virtio::mirror::Mirror;
use vmm_protocol::manifest::VmConfig;
use vmm_protocol::outcome::Outcome;

use crate::board::{Board, BoardSetup, Time};
use crate::cpuid::GuestCpu;
use crate::emulate::DecodeCache;
use crate::exits::{self, Exit, Handled};
use crate::facts::{HostCpuid, HostFacts};
use crate::image::BootImages;
use crate::layout::{self, Layout};
use crate::loader::{self, BootProtocol, BootRequest, LoadError};
use crate::log::Log;
use crate::msr::Msrs;
use crate::pv::PvBus;
use crate::vcpu::{RFLAGS_IF, Vcpu};
use crate::virtio::{VirtioBus, VirtioDevice};

/// Fewest ticks of [`Machine::patience`], which is a second.
const MIN_PATIENCE: u64 = 1_000_000;

/// What the monitor does after an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Runs the guest.
    Run,
    /// The guest reset its machine: [`Machine::reset`], or the end of the VM, as its manifest says.
    Reset,
    /// The VM ended.
    End(Outcome),
}

/// The host under a machine.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    /// Its CPUID instruction.
    pub cpuid: &'a dyn HostCpuid,
    /// What the kernel said about it.
    pub facts: HostFacts,
    /// Unix time in nanoseconds at the moment of the call; 0 if nobody knows.
    pub unix_ns: u64,
    /// TSC ticks for which the vCPU's thread could have run and did not, since it began.
    pub waited: fn() -> u64,
    /// The vCPU's virtual-APIC page, if it has one.
    pub apic_page: Option<&'static PageWords>,
}

/// The devices that not every VM has. Those for which there is no room ([`crate::virtio::MAX_DEVICES`],
/// [`crate::pv::MAX_DEVICES`]) are left out.
#[derive(Debug, Default)]
pub struct Devices {
    /// Virtio devices.
    pub virtio: Vec<VirtioDevice>,
    /// Paravirtual devices of the guest contract.
    pub pv: Vec<vdev::pvring::Core>,
    /// Where the guest reads the registers of the virtio devices by itself, if it can: a page each from [`layout::VIRTIO`] on.
    pub mirror: Option<Rc<dyn Mirror>>,
}

/// A virtual machine, without its memory and its vCPU.
pub struct Machine {
    layout: Layout,
    command_line: String,
    facts: HostFacts,
    cpu: GuestCpu,
    msrs: Msrs,
    board: Board,
    decoded: DecodeCache,
    log: Log,
    protocol: BootProtocol,
    apic_page: Option<&'static PageWords>,
    waited: fn() -> u64,
    /// Host ticks after which a guest that waits for nothing in particular is looked at.
    patience: u64,
    /// What becomes of HLT: a debugger may have breakpoints that are one, which have to exit.
    halting: RunFlags,
}

impl Machine {
    /// The guest-physical map for this configuration: what memory the monitor has to provide.
    pub fn layout(config: &VmConfig) -> Layout {
        Layout::new(u64::from(config.memory_mib) << 20)
    }

    /// Loads the guest into `memory` and `vcpu`, whose TSC becomes 0 at host TSC `now`. It has these devices.
    ///
    /// # Errors
    /// The guest cannot be started; the text of the error is for the user.
    pub fn boot(
        config: &VmConfig,
        images: &BootImages<'_>,
        devices: Devices,
        host: &Host<'_>,
        memory: &mut impl GuestMemory,
        vcpu: &mut impl Vcpu,
        now: u64,
    ) -> Result<Machine, LoadError> {
        let mut cpu = GuestCpu::new(host.cpuid, &host.facts, &config.hide_features)
            .map_err(|error| LoadError::UnknownFeature { name: error.0 })?;
        let layout = Self::layout(config);
        let virtio = VirtioBus::new(devices.virtio, config.packed_queues, devices.mirror);
        let pv = PvBus::new(devices.pv);
        cpu.add_devices(layout::PV, pv.len() as u32);
        let mut board = new_board(layout, virtio, pv, &cpu, &host.facts, (host.unix_ns, host.waited), now);
        host.apic_page.iter().for_each(|page| board.lapic.share(page));
        let mut machine = Machine {
            layout,
            command_line: config.cmdline.clone(),
            facts: host.facts,
            cpu,
            msrs: Msrs::default(),
            board,
            decoded: DecodeCache::default(),
            log: Log::new(host.facts.tsc_hz),
            protocol: BootProtocol::Linux,
            apic_page: host.apic_page,
            waited: host.waited,
            patience: host.facts.tsc_hz.max(MIN_PATIENCE),
            halting: if config.debug { RunFlags::empty() } else { RunFlags::HLT_BLOCKS },
        };
        machine.load(images, memory, vcpu, now)?;
        Ok(machine)
    }

    /// Starts the guest again from its kernel, as after power-on; output that was not taken is lost.
    ///
    /// # Errors
    /// As [`Self::boot`].
    pub fn reset(
        &mut self,
        images: &BootImages<'_>,
        memory: &mut impl GuestMemory,
        vcpu: &mut impl Vcpu,
        now: u64,
    ) -> Result<(), LoadError> {
        let unix_ns = self.board.clock.unix_nanoseconds(time(vcpu, now).guest);
        let mut virtio = core::mem::take(&mut self.board.virtio);
        virtio.reset();
        let mut pv = core::mem::take(&mut self.board.pv);
        pv.reset();
        self.board = new_board(self.layout, virtio, pv, &self.cpu, &self.facts, (unix_ns, self.waited), now);
        self.apic_page.iter().for_each(|page| self.board.lapic.share(page));
        self.msrs = Msrs::default();
        self.load(images, memory, vcpu, now)
    }

    fn load(
        &mut self,
        images: &BootImages<'_>,
        memory: &mut impl GuestMemory,
        vcpu: &mut impl Vcpu,
        now: u64,
    ) -> Result<(), LoadError> {
        let request = BootRequest {
            images: *images,
            command_line: &self.command_line,
            layout: self.layout,
            virtio_devices: self.board.virtio.len(),
        };
        let page = vcpu.page();
        self.protocol = loader::load(&request, memory, page)?;
        page.tsc_offset = 0u64.wrapping_sub(now);
        Ok(())
    }

    /// How the guest's kernel was booted.
    pub fn protocol(&self) -> BootProtocol {
        self.protocol
    }

    /// Writes into the page what the next run needs: the event to inject, whether to stop when one could be, whether
    /// HLT may block in the kernel, and the deadline. `now` is the host's TSC.
    pub fn prepare_entry(&mut self, vcpu: &mut impl Vcpu, now: u64) {
        let time = time(vcpu, now);
        self.board.advance(time);
        let page = vcpu.page();
        let flags = self.choose_event(page);
        page.deadline = self.deadline(time);
        page.run_flags = (flags | self.halting).bits();
    }

    /// Host TSC at which the guest has to stop, if it runs from `time` on.
    fn deadline(&self, time: Time) -> u64 {
        let deadline = match self.board.lapic.next_event(time.guest) {
            // A device has more to do than it did at once.
            _ if self.board.is_behind() => time.host,
            Some(event) => time.host.saturating_add(event.saturating_sub(time.guest)),
            // A guest that halts with interrupts off is stuck, and is found at the deadline.
            None => time.host.saturating_add(self.patience),
        };
        deadline.min(self.board.virtio.settle_at())
    }

    /// Injects the most urgent event if the guest can take it; else says which window to wait for.
    fn choose_event(&mut self, page: &mut VcpuPage) -> RunFlags {
        let mut flags = RunFlags::empty();
        let shadow = Interruptibility::from_bits_retain(page.interruptibility);
        let is_shadowed = shadow.intersects(Interruptibility::STI | Interruptibility::MOV_SS);
        // An event that is in the page is an exception of the last instruction, or one whose delivery was interrupted:
        // it goes first.
        let mut is_free = !page.inject.is_valid();
        if self.board.has_nmi() {
            if is_free && !is_shadowed && !shadow.contains(Interruptibility::NMI) {
                self.board.take_nmi();
                inject(page, Event::nmi());
                is_free = false;
            } else {
                flags |= RunFlags::NMI_WINDOW;
            }
        }
        if self.board.lapic.is_virtual() {
            flags |= RunFlags::VIRTUAL_APIC;
            if self.board.lapic.take_has_changed() {
                page.eoi_exits = self.board.lapic.level_triggered();
                page.lines = self.board.pv.lines(&self.board.lapic);
                page.dirty |= Groups::APIC.bits();
            }
        } else if let Some(vector) = self.board.lapic.pending() {
            if is_free && !is_shadowed && page.rflags & RFLAGS_IF != 0 {
                self.board.lapic.acknowledge(vector);
                inject(page, Event::interrupt(vector));
                // What else is requested comes after its EOI, which exits.
            } else {
                flags |= RunFlags::INTERRUPT_WINDOW;
            }
        }
        flags
    }

    /// Handles the exit that the page describes if that is an access to a register of which nothing follows: then the guest can be
    /// entered as the page is, since nothing changed of which [`Self::prepare_entry`] makes something. Says whether it was so; else
    /// nothing was done, and the exit is for [`Self::handle_exit`].
    #[inline(always)]
    pub fn access_quietly(&mut self, vcpu: &mut impl Vcpu, memory: &impl GuestMemory) -> bool {
        exits::access_quietly(vcpu, memory, &mut self.board, &mut self.decoded)
    }

    /// Handles the exit that the page describes if it arms the timer for a time to come, as guests do after each tick: then the guest can
    /// be entered with nothing changed in the page but the deadline. Says whether it was so; else nothing was done, and the exit is for
    /// [`Self::handle_exit`]. `now` is the host's TSC.
    #[inline(always)]
    pub fn arm_timer_quietly(
        &mut self,
        vcpu: &mut impl Vcpu,
        memory: &mut impl GuestMemory,
        now: u64,
    ) -> bool {
        vcpu.page().exit_kind == ExitKind::MsrWrite as u32
            && !self.board.is_behind()
            && exits::arm_timer_quietly(vcpu, memory, &mut self.board, &self.cpu, &mut self.decoded, now)
            && {
                let time = time(vcpu, now);
                vcpu.page().deadline = self.deadline(time);
                true
            }
    }

    /// Handles the exit that the page describes. `now` is the host's TSC.
    pub fn handle_exit<V: Vcpu, M: GuestMemory>(&mut self, vcpu: &mut V, memory: &mut M, now: u64) -> Action {
        let now = time(vcpu, now);
        let handled = Exit {
            vcpu,
            memory,
            board: &mut self.board,
            msrs: &mut self.msrs,
            cpu: &self.cpu,
            decoded: &mut self.decoded,
            layout: self.layout,
            log: &mut self.log,
            now,
        }
        .handle();
        if self.board.virtio.is_notified() {
            self.board.run_virtio(memory, now.host, |line| self.log.add(now.host, || line));
        }
        self.board.settle_virtio(memory, now.host, |line| self.log.add(now.host, || line));
        if self.board.pv.is_behind()
            && let Some(line) = self.board.catch_up_pv(memory)
        {
            self.log.add(now.host, || line);
        }
        let page = vcpu.page();
        match handled {
            Handled::Resume if !self.board.has_request() && !self.is_stuck(page) => Action::Run,
            handled => self.end(handled, page.rip),
        }
    }

    #[cold]
    fn end(&mut self, handled: Handled, rip: u64) -> Action {
        match (handled, self.board.take_request()) {
            (Handled::End(outcome), _) => Action::End(*outcome),
            (Handled::Resume, Some(Request::PowerOff)) => Action::End(Outcome::PoweredOff),
            (Handled::Resume, Some(Request::Exit(code))) => Action::End(Outcome::ExitCode(code)),
            (Handled::Resume, Some(Request::Reset)) => Action::Reset,
            (Handled::Resume, None) => Action::End(Outcome::Stuck { rip }),
        }
    }

    /// Halted with interrupts off: only an NMI could wake the guest, and there is none, or it waits for the end of another.
    fn is_stuck(&self, page: &VcpuPage) -> bool {
        page.activity == ACTIVITY_HALTED
            && page.rflags & RFLAGS_IF == 0
            && !page.inject.is_valid()
            && !(self.board.has_nmi() && page.interruptibility & Interruptibility::NMI.bits() == 0)
    }

    /// Something came from behind a device: a disk has completed requests, a network has frames. Call it when whoever serves
    /// them signals.
    pub fn poll_devices<M: GuestMemory>(&mut self, memory: &mut M, now: u64) {
        self.board.poll_virtio(memory, |line| self.log.add(now, || line));
        if let Some(line) = self.board.poll_pv(memory) {
            self.log.add(now, || line);
        }
    }

    /// Where the guest now wants the word by which it ends interrupts (`vdev::lapic::MSR_PV_EOI`), if it has said so since this was last
    /// asked. Asked after writes to MSRs.
    pub fn take_eoi_word(&mut self) -> Option<Option<u64>> {
        self.board.lapic.take_eoi_word()
    }

    /// Has the balloons say how many pages of 4096 bytes the owner of the guest's memory would like to have.
    /// [`Self::poll_devices`] is due afterwards.
    pub fn set_balloon_target(&mut self, pages: u64) {
        self.board.set_balloon_target(pages);
    }

    /// The terminal of the guest's console has so many columns and rows; 0 if nobody knows.
    pub fn set_console_size(&mut self, columns: u16, rows: u16) {
        self.board.set_console_size(columns, rows);
    }

    /// Whether a driver of the console has begun that is to be told the size of its terminal, if it has since this was last asked. Asked
    /// when [`Self::take_has_output`] says so.
    pub fn take_wants_console_size(&mut self) -> bool {
        self.board.virtio.take_wants_console_size()
    }

    /// What Linux's driver has given and says about the guest's memory, if there is a balloon.
    pub fn balloon(&self) -> Option<&Balloon> {
        self.board.virtio.balloon()
    }

    /// Whether there is something to take below. Asked after every exit, and cheap.
    pub fn take_has_output(&mut self) -> bool {
        self.board.take_has_output() | self.log.has_lines()
    }

    /// Takes what the guest sent to a serial port (0 to 3: ttyS0 to ttyS3).
    pub fn take_output(&mut self, port: usize) -> impl Iterator<Item = u8> {
        self.board.take_output(port)
    }

    /// Takes what the guest sent to the debug consoles (ports 0xe9 and 0x402).
    pub fn take_debug_output(&mut self) -> impl Iterator<Item = u8> {
        self.board.take_debug_output()
    }

    /// Takes lines for the VMM's log about what the guest did.
    pub fn take_log(&mut self) -> Vec<String> {
        let mut lines = self.log.take();
        lines.append(&mut self.board.pv.take_lines());
        lines.append(&mut self.board.virtio.take_lines());
        lines
    }

    /// Queues input for a serial port; the guest gets it from the next [`Self::prepare_entry`] on, as fast as it reads.
    /// Returns how many bytes were taken: fewer if the guest has not read what it got before.
    pub fn input(&mut self, port: usize, bytes: &[u8]) -> usize {
        self.board.queue_input(port, bytes)
    }
}

fn new_board(
    layout: Layout,
    virtio: VirtioBus,
    pv: PvBus,
    cpu: &GuestCpu,
    facts: &HostFacts,
    (unix_ns, waited): (u64, fn() -> u64),
    now: u64,
) -> Board {
    let setup = BoardSetup {
        layout,
        crystal_hz: cpu.crystal_hz(),
        tsc_hz: facts.tsc_hz,
        unix_ns,
        waited,
        now: Time { host: now, guest: 0 },
    };
    Board::new(&setup, virtio, pv)
}

/// The moment `now` of the host's TSC on both clocks.
fn time(vcpu: &mut impl Vcpu, now: u64) -> Time {
    Time::at(now, vcpu.page())
}

/// Puts an event into the page, which also ends a halt.
fn inject(page: &mut VcpuPage, event: Event) {
    page.inject = event;
    page.activity = ACTIVITY_ACTIVE;
    page.dirty |= (Groups::INJECT | Groups::RIP).bits();
}

#[cfg(test)]
mod tests;
