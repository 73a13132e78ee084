//! The root task's role: it has everything, and measures in order.

use crate::error::{Failure, Result};
use crate::report::Report;
use crate::{hypercalls, ipc, stopwatch, threads, vmm, vms};
use alloc::string::String;
use alloc::vec;
use bench_protocol::{REQUEST_MODULE, Summary, USER_BYTES};
use root_task::loader::{HEADER_BYTES, Program};
use root_task::memory::FreeMemory;
use root_task::process::{Blueprint, Process};
use root_task::system::System;
use root_task::wall_clock::WallClock;
use usys::abi::PAGE_SIZE;
use usys::abi::boot_info::{BootInfo, MAX_REGIONS, MemoryRegion, RegionKind};
use usys::memory::Mapping;
use usys::object::Schedule;
use usys::power::{self, Ending};
use usys::trace::Ring;
use usys::{layout, process};

/// Name of the boot module with this program: it is where the root task is otherwise.
pub const PROGRAM: &str = "root";
/// Pages for records: four million.
const RING_PAGES: u64 = 16_384;
/// Pages of heap of a copy.
pub const HEAP_PAGES: u64 = 64;

/// Measures everything. `started` is the TSC at the first instruction of user code.
pub fn main(info: core::result::Result<&'static BootInfo, &'static str>, started: u64) -> ! {
    let info = match info {
        Ok(info) => info,
        Err(why) => {
            log::error!("{why}");
            power::off(Ending::Failed)
        }
    };
    if let Err(failure) = run(info, started) {
        log::error!("{failure}");
        power::off(Ending::Failed);
    }
    power::off(Ending::Done)
}

fn run(info: &'static BootInfo, started: u64) -> Result<()> {
    process::pool().create_ntfn(process::selector::EVENTS)?;
    let mut system =
        System { info, memory: FreeMemory::new(info), wall_clock: WallClock::default(), recorder: None };
    let report = Report::new(&request(&system)?);
    report.measure("boot.kernel_to_user", || Ok(Summary::single(started - info.entry_tsc - info.boot_wait)));
    report.measure(USER_BYTES, || user_bytes(&system).map(Summary::single));
    let ring = if report.wants_stretches() { Some(record(&mut system)?) } else { None };
    // As many VMs as are asked for, the one that measures included, wait in the background.
    let _background = vmm::start_idle(&mut system, report.other_vms())?;
    let overhead = stopwatch::overhead()?;
    hypercalls::measure(&report, &mut system.memory, overhead);
    if report.wants_some("ipc") {
        let server = copy(&mut system, "server").map(|process| process.pd());
        ipc::measure(&report, server, overhead);
    }
    threads::measure(&report, info);
    vmm::measure(&report, &mut system);
    vms::measure(&report, &mut system);
    if let Some(ring) = ring {
        Report::say_stretches(&ring)?;
    }
    report.end();
    Ok(())
}

/// Has the first CPU record what it does from here on.
fn record(system: &mut System) -> Result<Ring> {
    let ring = Ring::new(system.memory.allocate(RING_PAGES, 1)?.memory(), RING_PAGES)?;
    ring.start(0)?;
    Ok(ring)
}

/// Bytes of memory that the root task has: what is free, the boot modules, and itself.
fn user_bytes(system: &System) -> Result<u64> {
    let info = system.info;
    let regions = &info.regions[..(info.region_count as usize).min(MAX_REGIONS)];
    let is_ram = |region: &&MemoryRegion| region.kind != RegionKind::Device as u32;
    let pages: u64 = regions.iter().filter(is_ram).map(|region| region.pages).sum();

    let module = system.module(PROGRAM)?;
    let mut start = vec![0; HEADER_BYTES.min(module.bytes as usize)];
    Mapping::new(module.memory, 0, module.pages(), false)?.window().read(0, &mut start)?;
    let image = Program::parse(&start, module.bytes).map_err(Failure::new)?;
    let own: u64 = image.segments.iter().map(|segment| segment.pages).sum();
    // Message area and boot information.
    const OTHER_PAGES: u64 = 2;
    Ok((pages + own + layout::STACK_PAGES + OTHER_PAGES) * PAGE_SIZE)
}

/// The words of the request module; nothing if it has none.
fn request(system: &System) -> Result<String> {
    let Ok(module) = system.module(REQUEST_MODULE) else {
        return Ok(String::new());
    };
    let mapping = Mapping::new(module.memory, 0, module.pages(), false)?;
    let mut bytes = vec![0; module.bytes as usize];
    mapping.window().read(0, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().into())
}

/// A process with this program, which does not run.
pub fn copy(system: &mut System, name: &str) -> Result<Process> {
    let plan = Blueprint {
        name,
        program: PROGRAM,
        cpu: 0,
        schedule: Schedule::whole(1),
        extra_frames: 0,
        heap_pages: HEAP_PAGES,
        config: &[],
        events: process::events(),
        parent_badge: 0,
        fault_badge: 0,
        windows: &[],
    };
    Ok(Process::create(system, &plan)?)
}
