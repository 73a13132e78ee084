//! Whole VMs with the real VMM, as the root task makes them.

use crate::error::{Failure, Result};
use crate::networks;
use crate::report::Report;
use crate::stopwatch::now;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use bench_protocol::{DISK_MODULE, FIRST_MODULE, GUEST_MODULE, Line, Summary};
use root_task::console::Console;
use root_task::system::System;
use root_task::vm::Vm;
use usys::abi::PAGE_SIZE;
use usys::memory::Mapping;
use usys::object::FOREVER;
use usys::process;
use usys::ring::Consumer;
use vmm_protocol::link::Stream;
use vmm_protocol::manifest::{
    ConsoleMode, DEFAULT_TIMEOUT_MS, DiskConfig, DiskDriver, DiskInterface, MONITOR_MODULE, OnCrash, OnReset,
    VmConfig,
};

/// Memory of the guests.
const MEMORY_MIB: u32 = 64;
/// Operations of the guest that measures.
const GUEST_OPS: [&str; 9] = [
    "exit.cpuid_vmm",
    "exit.pio_out_vmm",
    "exit.mmio_write",
    "exit.mmio_read",
    "exit.mmio_write_warm",
    "exit.mmio_read_warm",
    "ipi.self",
    "pv.block_4k_read",
    "pv.block_4k_read_qd32",
];
const CREATE: &str = "vm.create_to_first_insn";
const ZEROED: &str = "vm.create_zeroed";
const BYTES: &str = "mem.per_vm_bytes";

/// Measures them all.
pub fn measure(report: &Report, system: &mut System) {
    let wants_any = |ops: &[&str]| ops.iter().any(|op| report.wants(op));
    let (wants_guest, wants_network) = (wants_any(&GUEST_OPS), wants_any(&networks::OPS));
    if !(wants_guest || wants_network || wants_any(&[CREATE, ZEROED, BYTES])) {
        return;
    }
    // It has the doorbells that VMMs ring; the server behind it is not started.
    let console = match Console::new(system, ConsoleMode::Framed, &[]) {
        Ok(console) => console,
        Err(error) => return report.say(CREATE, Err(error.into())),
    };
    Report::begin(CREATE);
    match create(system, &console) {
        Ok(created) => {
            report.say(CREATE, Ok(Summary::single(created.ticks)));
            report.say(ZEROED, Ok(Summary::single(created.zeroed)));
            report.say(BYTES, Ok(Summary::single(created.bytes)));
        }
        Err(failure) => [CREATE, ZEROED, BYTES].iter().for_each(|op| report.say(op, Err(failure.clone()))),
    }
    if wants_guest {
        Report::begin(GUEST_OPS[0]);
    }
    if wants_guest && let Err(failure) = run_guest(report, system, &console) {
        report.say(GUEST_OPS[0], Err(failure));
    }
    if wants_network {
        Report::begin(networks::OPS[0]);
    }
    if wants_network && let Err(failure) = networks::run(report, system, &console) {
        networks::OPS.iter().for_each(|op| report.say(op, Err(failure.clone())));
    }
}

/// A VM with this kernel, and nothing that not every VM has.
pub fn config(kernel: &str) -> VmConfig {
    VmConfig {
        name: kernel.into(),
        kernel: kernel.into(),
        initrd: Vec::new(),
        cmdline: String::new(),
        memory_mib: MEMORY_MIB,
        balloon: None,
        console: Default::default(),
        packed_queues: false,
        cpu: 0,
        priority: 16,
        on_reset: OnReset::End,
        on_crash: OnCrash::Report,
        vmm: MONITOR_MODULE.into(),
        hide_features: Vec::new(),
        statistics: false,
        disks: Vec::new(),
        cards: Vec::new(),
        vsock: None,
        debug: false,
    }
}

/// What a VM costs.
struct Created {
    ticks: u64,
    zeroed: u64,
    bytes: u64,
}

/// From the beginning of a VM to what its first instruction leads to: the report that it ended. What it takes to zero the
/// pages that the VM is made of is not counted; bytes are those beyond the guest's memory.
fn create(system: &mut System, console: &Console) -> Result<Created> {
    /// Bytes that one tick zeroes: each iteration of REP STOSQ is one.
    const ZEROED_IN_A_TICK: u64 = 8;
    let mut vm = Vm::new(system, 0, config(FIRST_MODULE))?;
    let (pages, frames) = (system.memory.free_pages(), process::pool().free_frames()?);
    let start = now();
    vm.start(system, console, &[], &[])?;
    let pages = pages - system.memory.free_pages();
    let frames = frames - process::pool().free_frames()?;
    wait_for(&vm)?;
    let ticks = now() - start;
    vm.stop(&mut system.memory);
    let zeroed = pages * PAGE_SIZE;
    let own = vm.output().pages() + vm.input().pages() + 1;
    Ok(Created {
        ticks: ticks.saturating_sub(zeroed / ZEROED_IN_A_TICK),
        zeroed,
        bytes: (pages + own + frames) * PAGE_SIZE - (u64::from(MEMORY_MIB) << 20),
    })
}

/// Waits until a VM ended.
pub fn wait_for(vm: &Vm) -> Result<()> {
    while vm.report().is_none() {
        if let Some(fault) = vm.fault() {
            return Err(Failure::new(format_args!("the VMM crashed: {fault:x?}")));
        }
        let _bits = process::events().wait(FOREVER)?;
    }
    Ok(())
}

/// Runs the guest that measures, and passes on what it says.
fn run_guest(report: &Report, system: &mut System, console: &Console) -> Result<()> {
    let disk = DiskConfig {
        image: DISK_MODULE.into(),
        read_only: true,
        driver: DiskDriver::Memory,
        on_crash: OnCrash::Report,
        timeout_ms: DEFAULT_TIMEOUT_MS,
        interface: DiskInterface::Pv,
        queues: 1,
    };
    let mut vm = Vm::new(system, 0, VmConfig { disks: [disk].into(), ..config(GUEST_MODULE) })?;
    let mut output = listen(&vm)?;
    vm.start(system, console, &[], &[])?;
    wait_for(&vm)?;
    vm.stop(&mut system.memory);
    relay(report, &mut output);
    Ok(())
}

/// What a VM is going to say. All of it is less than a ring, so that nobody need read meanwhile.
pub fn listen(vm: &Vm) -> Result<Consumer> {
    let ring = Mapping::new(vm.output().memory(), 0, vm.output().pages(), true)?;
    Ok(Consumer::attach(Box::leak(Box::new(ring)).window())?)
}

/// Passes on what a VM said.
pub fn relay(report: &Report, output: &mut Consumer) {
    let mut text = Vec::new();
    while let Some(record) = output.pop() {
        if record.stream == Stream::Console as u8 {
            text.extend_from_slice(record.bytes());
        }
    }
    for line in String::from_utf8_lossy(&text).lines() {
        match Line::parse(line) {
            Some(Line::Result { op, summary }) => report.say(op, Ok(summary)),
            Some(Line::Failed { op, why }) => report.say(op, Err(Failure::new(why))),
            Some(Line::Window { op }) => Report::announce(op),
            Some(Line::Begin { .. } | Line::Stretch { .. } | Line::End) | None => {}
        }
    }
}
