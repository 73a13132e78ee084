//! The VMM's role: an address space of its own, a guest, and the least that a VMM does for an exit.

use crate::device::{self, Device};
use crate::error::{Failure, Result};
use crate::guest::{self, Piece};
use crate::report::{self, Report};
use crate::system::{HEAP_PAGES, PROGRAM};
use alloc::vec::Vec;
use bench_protocol::{Samples, Summary};
use root_task::memory::Allocation;
use root_task::process::{Blueprint, Process};
use root_task::system::System;
use usys::abi::boot_info::{Machine, root};
use usys::abi::cap::MapFlags;
use usys::abi::doorbell::Doorbell;
use usys::abi::exit::{ExitKind, PortIo};
use usys::abi::vcpu::{Groups, Store, VcpuPage, gpr};
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, GuestSpace, Log, Memory, Narrow};
use usys::object::{FOREVER, Schedule};
use usys::process::{self, ProcessInfo};
use usys::vcpu::MappedVcpu;
use usys::{Window, memory, selector};

/// Selectors of what it gets besides what every process has.
mod given {
    use super::Selector;
    pub(super) const GUEST_MEMORY: Selector = Selector(16);
    pub(super) const VCPU_PAGE: Selector = Selector(17);
    pub(super) const DEMAND: Selector = Selector(18);
    pub(super) const APIC_PAGE: Selector = Selector(19);
    pub(super) const BELL: Selector = Selector(20);
    pub(super) const DEVICE: Selector = Selector(21);
}

/// What a VMM is asked for that measures nothing.
const IDLE: &str = "idle";
/// Bit of the parent's notification that says that it is done.
const DONE: u64 = 1;
/// Bit of the parent's notification that says that it crashed.
const CRASHED: u64 = 2;
/// Frames for guest space, vCPU, their page tables, and what they are told apart by.
const EXTRA_FRAMES: u64 = 96;
/// Pages that the guest can touch for the first time.
const DEMAND_PAGES: u64 = 512;
const PRIORITY: u8 = 20;

/// Starts the VMM, which measures what was asked for, and waits for its end.
pub fn measure(report: &Report, system: &mut System) {
    if !["exit", "fault", "doorbell", "ipi.self"].iter().any(|group| report.wants_some(group)) {
        return;
    }
    let run = |system: &mut System| -> Result<()> {
        let device = Device::start(system, PRIORITY)?;
        let running = start(system, report.request(), Some(&device))?;
        let result = wait_for(&running);
        running.process.destroy(&mut system.memory);
        running.memory.into_iter().for_each(|allocation| system.memory.free(allocation));
        device.end(system)?;
        result
    };
    if let Err(failure) = run(system) {
        report.say("exit.cpuid", Err(failure));
    }
}

/// A VMM, and the memory that it was given.
#[derive(Debug)]
pub struct Running {
    process: Process,
    memory: [Allocation; 4],
}

/// Starts `count` VMMs that run a guest for a moment and then wait for ever.
pub fn start_idle(system: &mut System, count: u64) -> Result<Vec<Running>> {
    (0..count)
        .map(|_| {
            let running = start(system, IDLE, None)?;
            wait_for(&running)?;
            Ok(running)
        })
        .collect()
}

fn start(system: &mut System, request: &str, device: Option<&Device>) -> Result<Running> {
    let plan = Blueprint {
        name: "vmm",
        program: PROGRAM,
        cpu: 0,
        schedule: Schedule::whole(PRIORITY),
        extra_frames: EXTRA_FRAMES,
        heap_pages: HEAP_PAGES,
        config: request.as_bytes(),
        events: process::events(),
        parent_badge: DONE,
        fault_badge: CRASHED,
        windows: &[],
    };
    let mut process = Process::create(system, &plan)?;
    let pd = process.pd();
    let guest = system.memory.allocate(guest::MEMORY / PAGE_SIZE, guest::MEMORY / PAGE_SIZE)?;
    let page = system.memory.allocate(1, 1)?;
    let apic = system.memory.allocate(1, 1)?;
    let demand = system.memory.allocate(DEMAND_PAGES, 1)?;
    guest.memory().delegate(pd, given::GUEST_MEMORY, Narrow::ALL)?;
    page.memory().delegate(pd, given::VCPU_PAGE, Narrow::ALL)?;
    apic.memory().delegate(pd, given::APIC_PAGE, Narrow::ALL)?;
    if let Some(device) = device {
        device.connect(pd, given::BELL, given::DEVICE)?;
    }
    demand.memory().delegate(pd, given::DEMAND, Narrow::ALL)?;
    let log: Cap<Log> = Cap::new(root::LOG);
    log.delegate(pd, process::selector::LOG, Narrow::ALL)?;
    process.start()?;
    Ok(Running { process, memory: [guest, page, apic, demand] })
}

/// Waits until a VMM says that it is done, or crashes.
fn wait_for(running: &Running) -> Result<()> {
    let bits = process::events().wait(FOREVER)?;
    match running.process.fault() {
        Some(fault) if bits & CRASHED != 0 => Err(Failure::new(format_args!("the VMM crashed: {fault:x?}"))),
        _ => Ok(()),
    }
}

/// The VMM.
pub fn main(info: &'static ProcessInfo) -> ! {
    let request = core::str::from_utf8(info.config()).unwrap_or_default();
    let report = Report::new(request);
    let run = |mut vmm: Vmm| match request {
        IDLE => vmm.run_for_a_moment(),
        _ => vmm.measure_all(&report),
    };
    if let Err(failure) = Vmm::new(info).and_then(run) {
        report.say("exit.cpuid", Err(failure));
    }
    let _ = process::parent().signal();
    // The parent ends this process, or leaves it waiting.
    let forever = selector::allocate().and_then(|to| process::pool().create_sm(to, 0));
    loop {
        let _ = forever.and_then(|semaphore| semaphore.down(FOREVER));
    }
}

struct Vmm {
    machine: Machine,
    guest_xcr0: u64,
    space: Cap<GuestSpace>,
    memory: Window,
    demand: Cap<Memory>,
    vcpu: MappedVcpu,
}

impl Vmm {
    fn new(info: &ProcessInfo) -> Result<Self> {
        let space = process::pool().create_guest_space(selector::allocate()?)?;
        let source: Cap<Memory> = Cap::new(given::GUEST_MEMORY);
        let pages = guest::MEMORY / PAGE_SIZE;
        let all = MapFlags::READ | MapFlags::WRITE | MapFlags::EXECUTE;
        let for_guest = source.derive(selector::allocate()?, Narrow::ALL)?;
        for_guest.map(space, 0, 0, pages, all)?;
        let rights = Rights::READ | Rights::WRITE;
        let own = source.derive(selector::allocate()?, Narrow::rights(rights))?;
        memory::map_guest_memory(own, 0, pages)?;
        let memory = memory::guest_memory(pages);
        memory.write(guest::CODE as usize, guest::code())?;
        for (at, entry) in guest::page_tables().into_iter().chain(guest::descriptors()) {
            memory.write(at as usize, &entry.to_le_bytes())?;
        }
        let vcpu = MappedVcpu::create(space, info.header.cpu as u16, Cap::new(given::VCPU_PAGE))?;
        Ok(Vmm {
            machine: Machine::from_bits_retain(info.header.machine),
            guest_xcr0: info.header.guest_xcr0,
            space,
            memory,
            demand: Cap::new(given::DEMAND),
            vcpu,
        })
    }

    fn run_for_a_moment(&mut self) -> Result<()> {
        guest::enter_long_mode(self.vcpu.page(), self.machine, self.guest_xcr0);
        self.run(Piece::Cpuid, 0, 0).map(drop)
    }

    fn measure_all(&mut self, report: &Report) -> Result<()> {
        if report.wants("exit.cpuid_real") {
            Report::begin("exit.cpuid_real");
            let result = self.measure_real_mode();
            report.say("exit.cpuid_real", result);
        }
        guest::enter_long_mode(self.vcpu.page(), self.machine, self.guest_xcr0);
        self.vcpu.page().gpr[gpr::RDI] = self.guest_xcr0 >> 2 & 1;
        self.run(Piece::Prepare, 0, 0)?;
        let overhead = self.run(Piece::Empty, 0, 0)?.summary(0).map_or(0, |summary| summary.median);
        let is_vmx = self.machine.contains(Machine::VMX);
        let hypercall = if is_vmx { Piece::Vmcall } else { Piece::Vmmcall };
        for (op, piece, rsi, step) in [
            ("exit.cpuid", Piece::Cpuid, 0, 0),
            ("exit.pio_out", Piece::PioOut, 0, 0),
            ("exit.pio_in", Piece::PioIn, 0, 0),
            ("exit.hypercall", hypercall, 0, 0),
            ("fault.guest_4k", Piece::Touch, guest::DEMAND, PAGE_SIZE),
        ] {
            report.measure(op, || {
                Report::announce(op);
                report::summary(self.run(piece, rsi, step)?, overhead)
            });
        }
        self.measure_doorbells(report, overhead);
        self.measure_interrupts(report, overhead)
    }

    /// Interrupts from the virtual APIC.
    fn measure_interrupts(&mut self, report: &Report, overhead: u64) -> Result<()> {
        let is_vmx = self.machine.contains(Machine::VMX);
        let vcpu = self.vcpu.cap();
        vcpu.bind_virtual_apic(Cap::new(given::APIC_PAGE))?;
        guest::take_interrupts(self.vcpu.page());
        report.measure("ipi.self_vapic", || {
            Report::announce("ipi.self_vapic");
            report::summary(self.run(Piece::SelfIpi, 0, 0)?, overhead)
        });
        let roundtrip = if is_vmx { Piece::RoundtripVmcall } else { Piece::RoundtripVmmcall };
        report.measure("doorbell.roundtrip", || {
            device::give_line(Cap::new(given::DEVICE), vcpu, guest::VECTOR)?;
            self.space.bind_doorbell(Doorbell::Call(1), given::BELL)?;
            Report::announce("doorbell.roundtrip");
            report::summary(self.run(roundtrip, 0, 0)?, overhead)
        });
        Ok(())
    }

    /// Doorbells that signal a semaphore on which nobody waits.
    fn measure_doorbells(&mut self, report: &Report, overhead: u64) {
        let is_vmx = self.machine.contains(Machine::VMX);
        let call = if is_vmx { Piece::BellVmcall } else { Piece::BellVmmcall };
        let out = Doorbell::Port { port: guest::BELL_PORT, size: 2, data: None };
        let page = Doorbell::Page(guest::BELL_PAGE / PAGE_SIZE);
        for (op, piece, rsi, trigger) in [
            ("doorbell.vmcall", call, 0, Doorbell::Call(0)),
            ("doorbell.pio", Piece::BellPort, 0, out),
            ("doorbell.mmio", Piece::BellPage, guest::BELL_PAGE, page),
        ] {
            report.measure(op, || {
                let bell = process::pool().create_sm(selector::allocate()?, 0)?;
                self.space.bind_doorbell(trigger, bell.selector())?;
                // A store in a page exits once for each place where it is: what was announced first does not count.
                Report::announce(op);
                self.run(piece, rsi, 0)?;
                Report::announce(op);
                let summary = report::summary(self.run(piece, rsi, 0)?, overhead)?;
                if bell.down(0)? { Ok(summary) } else { Err(Failure::new("the doorbell did not ring")) }
            });
        }
    }

    fn measure_real_mode(&mut self) -> Result<Summary> {
        guest::enter_real_mode(self.vcpu.page(), Piece::RealEmpty);
        let overhead = self.run_on()?.summary(0).map_or(0, |summary| summary.median);
        Report::announce("exit.cpuid_real");
        guest::enter_real_mode(self.vcpu.page(), Piece::RealCpuid);
        report::summary(self.run_on()?, overhead)
    }

    /// Runs a piece in 64-bit mode to its HLT, and returns its samples.
    fn run(&mut self, piece: Piece, rsi: u64, step: u64) -> Result<Samples> {
        guest::jump(self.vcpu.page(), piece, rsi, step);
        self.run_on()
    }

    fn run_on(&mut self) -> Result<Samples> {
        while self.step()? {}
        let mut samples = Samples::new();
        let mut at = guest::RESULTS as usize;
        while !samples.is_full() {
            let mut bytes = [0; 4];
            self.memory.read(at, &mut bytes)?;
            samples.push(u32::from_le_bytes(bytes));
            at += 4;
        }
        Ok(samples)
    }

    /// One entry, and what its exit asks for; `false` at HLT.
    #[inline]
    fn step(&mut self) -> Result<bool> {
        match self.vcpu.run()? {
            Some(ExitKind::Cpuid) => {
                let length = self.length(&[0x0f, 0xa2])?;
                let page = self.vcpu.page();
                page.gpr[gpr::RAX] = 0xd;
                page.gpr[gpr::RBX] = 0x7263_614e;
                page.gpr[gpr::RCX] = 0x2020_2020;
                page.gpr[gpr::RDX] = 0x2020_2065;
                advance(page, length);
            }
            Some(ExitKind::PortIo) => {
                let page = self.vcpu.page();
                let access = PortIo::decode(page.exit_info[0]);
                if access.is_in {
                    page.gpr[gpr::RAX] |= 0xff;
                }
                let length = page.exit_length;
                advance(page, length);
            }
            Some(ExitKind::Hypercall) => {
                let is_vmx = self.machine.contains(Machine::VMX);
                let length = self.length(&[0x0f, 0x01, if is_vmx { 0xc1 } else { 0xd9 }])?;
                advance(self.vcpu.page(), length);
            }
            Some(ExitKind::NestedFault) if self.is_bell() => self.teach_store()?,
            Some(ExitKind::NestedFault) => self.map()?,
            Some(ExitKind::Hlt) => return Ok(false),
            Some(ExitKind::Deadline | ExitKind::Poked | ExitKind::Notified) => {}
            other => {
                let page = self.vcpu.page();
                return Err(Failure::new(format_args!(
                    "unexpected exit {other:?} at {:#x}: {:x?}",
                    page.rip, page.exit_info
                )));
            }
        }
        Ok(true)
    }

    /// The length of the instruction that exited. Where the hardware does not say it, the bytes are looked at: all of the
    /// guest's memory is where its linear addresses say.
    #[inline(always)]
    fn length<const N: usize>(&mut self, expected: &[u8; N]) -> Result<u32> {
        match self.vcpu.page().exit_length {
            0 => self.compare(expected),
            length => Ok(length),
        }
    }

    #[inline]
    fn compare<const N: usize>(&mut self, expected: &[u8; N]) -> Result<u32> {
        let mut bytes = [0; N];
        let rip = self.vcpu.page().rip as usize;
        self.memory.read(rip, &mut bytes)?;
        if bytes == *expected {
            Ok(N as u32)
        } else {
            Err(Failure::new(format_args!("another instruction at {rip:#x}")))
        }
    }

    fn is_bell(&mut self) -> bool {
        self.vcpu.page().exit_info[0] / PAGE_SIZE * PAGE_SIZE == guest::BELL_PAGE
    }

    /// Tells the kernel about the store that the guest rings a doorbell with, so that it rings from now on.
    fn teach_store(&mut self) -> Result<()> {
        const STORE: [u8; 2] = [0x89, 0x06];
        let length = self.length(&STORE)?;
        let page = self.vcpu.page();
        // Also where it is between the markers.
        let mut code = [0; 64];
        self.memory.read(page.rip as usize, &mut code)?;
        for (rip, bytes) in (page.rip..).zip(code.windows(STORE.len())) {
            if bytes == STORE {
                page.stores[Store::place(rip)] = Store::new(rip, &STORE);
            }
        }
        advance(page, length);
        Ok(())
    }

    /// Maps the page that the guest touched.
    fn map(&mut self) -> Result<()> {
        let address = self.vcpu.page().exit_info[0];
        let page = address
            .checked_sub(guest::DEMAND)
            .map(|offset| offset / PAGE_SIZE)
            .filter(|&page| page < DEMAND_PAGES)
            .ok_or_else(|| Failure::new(format_args!("no memory at {address:#x}")))?;
        let flags = MapFlags::READ | MapFlags::WRITE;
        Ok(self.demand.map(self.space, guest::DEMAND + page * PAGE_SIZE, page, 1, flags)?)
    }
}

#[inline]
fn advance(page: &mut VcpuPage, length: u32) {
    page.rip += u64::from(length);
    page.dirty |= Groups::RIP.bits();
}
