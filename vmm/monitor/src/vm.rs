//! The run loop.

mod debugged;

use crate::console::Channel;
use crate::devices;
use crate::eoi_word::EoiWord;
use crate::guest_cpu::GuestCpu;
use crate::guest_ram::GuestRam;
use crate::images::Images;
use crate::output::{DEBUG_PORT, Output, SERIAL_PORTS};
use crate::pieces::Pieces;
use crate::registers::Registers;
use crate::statistics::Statistics;
use core::mem;
use usys::abi::Selector;
use usys::abi::boot_info::Machine as MachineBits;
use usys::abi::exit::ExitKind;
use usys::cap::{Cap, Sc};
use usys::process::{self, InfoHeader, ProcessInfo};
use usys::vcpu::{ApicPage, MappedVcpu};
use usys::{cpu, selector};
use vmm_core::facts::{CpuidRegs, HostFacts};
use vmm_core::image::BootImages;
use vmm_core::machine::{Action, Devices, Host, Machine};
use vmm_core::vcpu::Vcpu;
use vmm_protocol::manifest::{ConsoleInterface, OnReset, VmConfig};
use vmm_protocol::outcome::Outcome;
use vmm_protocol::process::{MonitorConfig, monitor};

/// Sees what the VMM does: tests of the VMM do.
pub trait Watch {
    /// The kernel has just returned from the guest.
    #[inline(always)]
    fn after_exit(&mut self) {}

    /// The VM ended so, or as this returns.
    fn judge(&mut self, outcome: Outcome) -> Outcome {
        outcome
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {}

/// A VM with everything it runs on.
pub struct Vm<W> {
    watch: W,
    info: &'static InfoHeader,
    config: VmConfig,
    images: Images,
    /// Until the machine is made, which takes them.
    devices: Devices,
    channel: Channel,
    output: Output,
    ram: GuestRam,
    vcpu: GuestCpu,
    apic_page: &'static ApicPage,
    eoi_word: EoiWord,
    statistics: Statistics,
    /// The statistics were written to the log when the guest first wrote to another port than its console.
    is_reported: bool,
    /// TSC at the last exit.
    now: u64,
}

/// Why the guest does not go on.
enum End {
    /// It reset its machine.
    Reset,
    /// The VM ended.
    Outcome(Outcome),
}

impl<W: Watch> Vm<W> {
    /// Makes the guest's memory and CPU; the kernel is not loaded yet.
    pub fn new(
        info: &'static ProcessInfo,
        monitor: MonitorConfig,
        channel: Channel,
        watch: W,
    ) -> Result<Self, &'static str> {
        let config = &monitor.vm;
        let statistics = Statistics::new(cpu::now(), config.statistics);
        let mut devices = devices::devices(info, config)?;
        let images = Images::new(info, config)?;
        let header = &info.header;
        let (ram, vcpu, apic_page) = create(info, &monitor, &mut devices).map_err(|error| {
            log::error!("{error}");
            "the kernel refused to make the VM"
        })?;
        let output = Output::new(header.tsc_hz);
        Ok(Vm {
            watch,
            info: header,
            config: monitor.vm,
            images,
            devices,
            channel,
            output,
            ram,
            vcpu,
            apic_page,
            eoi_word: EoiWord::default(),
            statistics,
            is_reported: false,
            now: 0,
        })
    }

    /// Runs the guest until it ends.
    pub fn run(mut self) -> Outcome {
        let mut machine = match self.boot() {
            Ok(machine) => machine,
            Err(outcome) => return outcome,
        };
        // The bit that says so may have been taken while a disk's driver was waited for.
        if let Some(pieces) = self.ram.pieces() {
            machine.set_balloon_target(pieces.target());
        }
        if self.config.console == ConsoleInterface::Virtio {
            self.channel.ask_size();
        }
        let outcome = if self.config.debug {
            debugged::run(&mut self, &mut machine)
        } else {
            loop {
                let end = self.run_guest(&mut machine);
                if let Err(outcome) = self.go_on(&mut machine, end) {
                    break outcome;
                }
            }
        };
        self.output.flush(&mut self.channel);
        log::info!("{}", self.statistics.at(cpu::now()));
        if let Some(pieces) = self.ram.pieces() {
            log::info!("{} MiB of the guest's memory are free for others", pieces.missing_bytes() >> 20);
        }
        self.watch.judge(outcome)
    }

    /// Loads the guest.
    fn boot(&mut self) -> Result<Machine, Outcome> {
        let now = cpu::now();
        self.now = now;
        let cpuid = |leaf, subleaf| {
            let [eax, ebx, ecx, edx] = cpu::cpuid(leaf, subleaf);
            CpuidRegs { eax, ebx, ecx, edx }
        };
        let facts = HostFacts {
            machine: MachineBits::from_bits_retain(self.info.machine),
            guest_xcr0: self.info.guest_xcr0,
            tsc_hz: self.info.tsc_hz,
        };
        let host = Host {
            cpuid: &cpuid,
            facts,
            unix_ns: unix_ns(self.info, now),
            waited,
            apic_page: Some(self.apic_page),
        };
        let modules = self.images.modules(&self.config);
        let images = BootImages { kernel: &self.images.kernel, modules: &modules };
        let devices = mem::take(&mut self.devices);
        Machine::boot(&self.config, &images, devices, &host, &mut self.ram, &mut self.vcpu, now)
            .map_err(Outcome::not_started)
    }

    /// Follows what stopped the guest. Returns the VM's outcome if that was its end.
    fn go_on(&mut self, machine: &mut Machine, end: usys::Result<End>) -> Result<(), Outcome> {
        let outcome = match end {
            Ok(End::Reset) => Outcome::Reset,
            Ok(End::Outcome(outcome)) => outcome,
            Err(error) => return Err(refused(error)),
        };
        self.restart(machine, outcome)
    }

    /// Starts the guest again if it ended by a reset and the manifest says so; else that was the end. A triple fault
    /// resets a PC, and some kernels reboot by one.
    fn restart(&mut self, machine: &mut Machine, outcome: Outcome) -> Result<(), Outcome> {
        let is_reset = matches!(outcome, Outcome::Reset | Outcome::TripleFault { .. });
        if !is_reset || self.config.on_reset != OnReset::Restart {
            return Err(outcome);
        }
        self.output.flush(&mut self.channel);
        log::info!("the guest ended ({outcome}): starting it again");
        // As at the first start, so that every start is the same. A PC may keep what was in RAM, but promises nothing.
        self.ram.clear();
        let modules = self.images.modules(&self.config);
        let images = BootImages { kernel: &self.images.kernel, modules: &modules };
        self.now = cpu::now();
        self.vcpu.reset_fpu().map_err(refused)?;
        self.eoi_word.place(self.vcpu.cap(), &self.ram, None);
        machine.reset(&images, &mut self.ram, &mut self.vcpu, self.now).map_err(Outcome::not_started)
    }

    /// Enters the guest and handles its exits until it ends or resets its machine: what happens here happens at every exit.
    fn run_guest(&mut self, machine: &mut Machine) -> usys::Result<End> {
        loop {
            if let Some(end) = self.step(machine)? {
                return Ok(end);
            }
        }
    }

    /// One entry and the exit after it, or several where nothing but registers and the deadline changed.
    #[inline(always)]
    fn step(&mut self, machine: &mut Machine) -> usys::Result<Option<End>> {
        if let Some(size) = self.channel.receive(|port, bytes| machine.input(port, bytes)) {
            machine.set_console_size(size.columns, size.rows);
        }
        // The time of the last exit will do: deadlines are absolute.
        machine.prepare_entry(&mut self.vcpu, self.now);
        let mut now = self.enter()?;
        loop {
            while machine.access_quietly(&mut self.vcpu, &self.ram) {
                self.output.flush_if_due(now, &mut self.channel);
                now = self.enter_again()?;
            }
            if !machine.arm_timer_quietly(&mut self.vcpu, &mut self.ram, now) {
                break;
            }
            self.output.flush_if_due(now, &mut self.channel);
            now = self.enter()?;
        }
        self.now = now;
        Ok(self.handle(machine))
    }

    /// Runs the guest, as the page says, until an exit. Returns the TSC then.
    #[inline(always)]
    fn enter(&mut self) -> usys::Result<u64> {
        let page = self.vcpu.page();
        page.deadline = page.deadline.min(self.output.deadline());
        self.enter_again()
    }

    /// As [`Self::enter`], with the same deadline.
    #[inline(always)]
    fn enter_again(&mut self) -> usys::Result<u64> {
        self.statistics.enter();
        self.vcpu.run()?;
        self.watch.after_exit();
        let now = cpu::now();
        self.statistics.exit(self.vcpu.page().exit_kind, now);
        Ok(now)
    }

    /// Does what the exit asks for.
    #[inline(always)]
    fn handle(&mut self, machine: &mut Machine) -> Option<End> {
        let now = self.now;
        let kind = self.vcpu.page().exit_kind;
        let action = machine.handle_exit(&mut self.vcpu, &mut self.ram, now);
        if machine.take_has_output() {
            self.collect(machine, now);
        }
        if kind == ExitKind::Notified as u32 {
            if self.ram.pieces().is_some_and(|pieces| follow_balloon(pieces, machine)) {
                return Some(End::Outcome(Outcome::OutOfMemory));
            }
            machine.poll_devices(&mut self.ram, now);
        }
        if kind == ExitKind::MsrWrite as u32
            && let Some(gpa) = machine.take_eoi_word()
        {
            self.eoi_word.place(self.vcpu.cap(), &self.ram, gpa);
        }
        if kind == ExitKind::Hlt as u32 {
            self.output.flush(&mut self.channel);
        } else {
            self.output.flush_if_due(now, &mut self.channel);
        }
        match action {
            Action::Run => None,
            Action::Reset => Some(End::Reset),
            Action::End(outcome) => Some(End::Outcome(outcome)),
        }
    }

    /// Takes what the machine has to say.
    #[cold]
    fn collect(&mut self, machine: &mut Machine, now: u64) {
        for port in 0..SERIAL_PORTS {
            let mut bytes = machine.take_output(port).peekable();
            // A command's output: booting is over.
            let is_first = port > 0 && !self.is_reported && bytes.peek().is_some();
            self.output.put(port, bytes, now, &mut self.channel);
            if is_first {
                self.is_reported = true;
                let since_entry = now.saturating_sub(self.info.entry_tsc);
                let statistics = self.statistics.at(now);
                log::info!("booted at {since_entry} after the kernel's entry: {statistics}");
            }
        }
        self.output.put(DEBUG_PORT, machine.take_debug_output(), now, &mut self.channel);
        if machine.take_wants_console_size() {
            self.channel.ask_size();
        }
        for line in machine.take_log() {
            log::warn!("{line}");
        }
    }
}

/// Tells the guest how many pages it is to do without. Returns whether a device needed some that did not come back.
#[cold]
fn follow_balloon(pieces: &Pieces, machine: &mut Machine) -> bool {
    machine.set_balloon_target(pieces.target());
    pieces.is_exhausted()
}

/// The end of a VM with whose vCPU the kernel does not want to have to do.
fn refused(error: usys::Error) -> Outcome {
    Outcome::unsupported(format_args!("the kernel refused {error}"))
}

fn create(
    info: &'static ProcessInfo,
    config: &MonitorConfig,
    devices: &mut Devices,
) -> usys::Result<(GuestRam, GuestCpu, &'static ApicPage)> {
    let space = process::pool().create_guest_space(selector::allocate()?)?;
    devices::share_channels(space, &config.vm)?;
    devices.mirror = Registers::share(space, devices.virtio.len() as u64)?;
    let ram = GuestRam::map(info, config, space, Machine::layout(&config.vm))?;
    let page = Cap::new(Selector(monitor::VCPU_PAGE));
    let vcpu = MappedVcpu::create(space, info.header.cpu as u16, page)?;
    vcpu.cap().bind_notification(process::events())?;
    let apic_page = vcpu.bind_virtual_apic(Cap::new(Selector(monitor::APIC_PAGE)))?;
    Ok((ram, GuestCpu::new(vcpu), apic_page))
}

/// TSC ticks for which this thread, the vCPU's, was ready and did not run.
fn waited() -> u64 {
    // Who made this process, and gave it no such capability, tells its guest of no steal time.
    Cap::<Sc>::new(Selector(monitor::SC)).time_waited().unwrap_or(0)
}

/// Unix time in nanoseconds at TSC `now`; 0 if the machine has no clock.
fn unix_ns(info: &InfoHeader, now: u64) -> u64 {
    const NS: u128 = 1_000_000_000;
    if info.wall_clock == 0 || info.tsc_hz == 0 {
        return 0;
    }
    let ticks = now.saturating_sub(info.wall_clock_tsc);
    let since = u128::from(ticks) * NS / u128::from(info.tsc_hz);
    (u128::from(info.wall_clock) * NS + since) as u64
}
