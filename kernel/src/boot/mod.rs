//! From the first instruction to the root task, in reading order.

pub mod aps;
pub mod clock;
pub mod irqs;
pub mod memory;
pub mod root;
pub mod start;

use crate::cpu::{Attention, Local};
use crate::{epitaph, sched, trap};
use core::fmt::Write;
use hypercall_abi::boot_info::Machine;
use kcore::addr::PhysAddr;
use kcore::boot::acpi::{self, AcpiInfo};
use kcore::boot::cmdline::{self, LogLevel, Options, SelfTest};
use kcore::boot::iommu::IommuUnit;
use kcore::boot::multiboot::{self, BootData};
use khw::console::{self, Sink, Writer};
use khw::cpu::cpuid::{self, Features};
use khw::cpu::{control, fpu, mitigation, tsc};
use khw::desc::{self, CpuTables};
use khw::irq::{self, ioapic, lapic};
use khw::percpu::Block;
use khw::{entry, iommu, percpu, smp, virt};

/// What boot finds out, for the root task.
#[derive(Debug)]
pub struct System {
    /// What the loader said.
    pub loader: BootData,
    /// The kernel's command line.
    pub options: Options,
    /// What ACPI says; `None` without usable tables.
    pub acpi: Option<AcpiInfo>,
    /// Features of the boot CPU.
    pub features: Features,
    /// TSC at the kernel's first instruction.
    pub entry_tsc: u64,
}

impl System {
    /// The IOMMUs, if they are to be used.
    pub fn iommus(&self) -> &[IommuUnit] {
        match &self.acpi {
            Some(acpi) if self.options.iommu => &acpi.iommus,
            _ => &[],
        }
    }
}

/// The kernel, from the boot stack to the root task.
pub fn main(magic: u32, info: u32, entry_tsc: u64) -> ! {
    let mut system = read_loader(magic, info, entry_tsc);
    let mut frames = memory::take_over(&system);
    let local = start_cpu(0, &mut frames, &system);
    start_interrupts(&mut system);
    clock::wait_in(|| clock::calibrate(&system));
    start_virtualization(&system.options, &mut frames);
    start_iommus(&system);
    aps::start_all(&system, &mut frames);
    root::start(&system, frames);
    match system.options.self_test {
        Some(SelfTest::Panic) => panic!("asked for on the command line"),
        Some(SelfTest::Fault) => epitaph::fault_on_purpose(),
        None => {}
    }
    console::stop_waiting();
    let frame = sched::schedule(local);
    // SAFETY: `schedule` activated the context that the frame belongs to.
    unsafe { entry::leave(frame) }
}

fn read_loader(magic: u32, info: u32, entry_tsc: u64) -> System {
    // SAFETY: the boot CPU alone runs, once.
    unsafe {
        desc::build_idt();
        entry::install(trap::HANDLERS);
    }
    let reader = memory::BootMemory;
    let loader = match multiboot::parse(magic, PhysAddr(info as u64), &reader) {
        Ok(loader) => loader,
        Err(error) => refuse(format_args!("{error}")),
    };
    let options = cmdline::parse(&loader.command_line);
    start_log(&options, &loader);
    let acpi = loader
        .rsdp
        .or_else(|| acpi::find_rsdp(&reader))
        .and_then(|at| acpi::parse(&reader, at).inspect_err(|error| log::warn!("acpi: {error}")).ok());
    log::info!("cpu: against side channels: {}", mitigation::choose(options.mitigations));
    let mut features = cpuid::features();
    features.x2apic &= options.x2apic;
    features.tsc_deadline &= options.tsc_deadline;
    features.xsave &= options.xsave;
    System { loader, options, acpi, features, entry_tsc }
}

fn start_log(options: &Options, loader: &BootData) {
    console::select(match (options.console.serial, options.console.e9) {
        (true, _) => Sink::Serial,
        (false, true) => Sink::E9,
        (false, false) => Sink::None,
    });
    static LOGGER: Logger = Logger;
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(match options.log_level {
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    });
    epitaph::set_reboot(options.panic == cmdline::PanicAction::Reboot);
    log::info!("Nacre {}", env!("CARGO_PKG_VERSION"));
    for word in cmdline::unknown_words(&loader.command_line) {
        log::warn!("command line: unknown word \"{}\" is ignored", word.escape_ascii());
    }
    if loader.dropped > 0 {
        log::warn!("loader: {} memory map entries or modules were dropped", loader.dropped);
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = writeln!(Writer, "[kernel {}] {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Stops with a line that says why Nacre cannot run here.
pub fn refuse(why: core::fmt::Arguments<'_>) -> ! {
    let _ = writeln!(Writer, "nacre: {why}: Nacre cannot run here");
    epitaph::end_with_failure()
}

/// Brings the current CPU, number `id`, to its final state: tables, protections, per-CPU data, FPU, SYSCALL, local APIC.
fn start_cpu(id: usize, frames: &mut memory::BootFrames, system: &System) -> &'static Local {
    let tables = frames.take_bytes(desc::CPU_TABLES_BYTES).cast::<CpuTables>();
    let block = frames.take_bytes(size_of::<Block>() + size_of::<Local>()).cast::<Block>();
    // SAFETY: both are zeroed, exclusive and permanent; `Local` is aligned behind the 64-byte block.
    unsafe {
        let local = block.add(1).cast::<Local>();
        local.write(Local::new(id, tables));
        (*block).id = id as u32;
        (*block).stack_top = CpuTables::stack_top(tables);
        (*block).local = local as u64;
        run_on_cpu(tables, block, &system.features);
        &*local
    }
}

/// The part of [`start_cpu`] that runs on the CPU itself.
///
/// # Safety
/// As [`start_cpu`] prepares the arguments; once for each CPU, interrupts off.
unsafe fn run_on_cpu(tables: *mut CpuTables, block: *mut Block, features: &Features) {
    // SAFETY: by the contract of this function.
    unsafe {
        control::write_cr3(smp::kernel_root().0);
        CpuTables::load(tables);
        percpu::install(block);
        control::enable_protections(features);
        mitigation::init_cpu();
        tsc::init_cpu(features.rdtscp);
        fpu::init_cpu(features.xsave);
        entry::enable_syscall(crate::fast::entry());
        let local = &*((*block).local as *const Local);
        local.crossing.set(Attention::BARRIERS, mitigation::has_barriers());
        crate::cpu::register(local);
    }
}

fn start_interrupts(system: &mut System) {
    irq::disable_pics();
    // Without ACPI there is no I/O APIC to be found and no other CPU; the local APIC is where it always is.
    let features = system.features;
    lapic::configure(features.x2apic, features.tsc_deadline);
    // SAFETY: the mode is what CPUID announces; `memory::take_over` mapped the registers.
    unsafe { lapic::init_cpu() };
    set_apic_id();
    match &system.acpi {
        Some(acpi) => {
            for ioapic in acpi.ioapics.iter() {
                // SAFETY: ACPI says that it is an I/O APIC; `memory::take_over` mapped it uncached.
                unsafe { ioapic::add(PhysAddr(ioapic.address as u64), ioapic.gsi_base) };
            }
            irqs::set_overrides(acpi);
        }
        None => log::warn!("acpi: no tables: one CPU, and no device interrupts"),
    }
}

fn set_apic_id() {
    let block =
        percpu::block(percpu::id()).map_or(core::ptr::null_mut(), |block| (block as *const Block).cast_mut());
    // SAFETY: this CPU's own block, before any other CPU looks at it.
    unsafe { (*block).apic_id = lapic::id() };
}

fn start_virtualization(options: &Options, frames: &mut memory::BootFrames) {
    if !options.apic_virtualization {
        virt::leave_apic_alone();
    }
    let enabled = virt::detect().and_then(|features| {
        // SAFETY: detected; the frame is this CPU's for ever.
        unsafe { virt::enable_cpu(frames.take_frame())? };
        Ok(features)
    });
    match enabled {
        Ok(features) => log::info!("virtualization: {features}"),
        Err(why) => refuse(format_args!("{why}")),
    }
}

fn start_iommus(system: &System) {
    let dropped = system.acpi.as_ref().map_or(0, |acpi| acpi.dropped_iommus);
    // SAFETY: `memory::take_over` mapped the registers, and gives nobody else pages that it gave here. Only this CPU runs.
    let started = unsafe { iommu::start(system.iommus(), dropped, lapic::id(), memory::take_user_pages) };
    match started {
        Ok(remaps_interrupts) => {
            log::info!("iommu: devices reach the memory of their DMA spaces, and no other");
            if !remaps_interrupts {
                log::warn!("iommu: it does not remap interrupts: devices raise whatever they like");
            }
        }
        Err(why) => log::warn!("iommu: not used, {why}: devices reach all memory"),
    }
}

/// What the root task is told about the machine.
fn machine_bits(system: &System) -> Machine {
    let mut bits = Machine::UNRESTRICTED;
    let features = &system.features;
    let virt = virt::features();
    for (present, bit) in [
        (virt.is_ok_and(|virt| virt.is_vmx), Machine::VMX),
        (virt.is_ok_and(|virt| !virt.is_vmx), Machine::SVM),
        (virt.is_ok_and(|virt| virt.has_instruction_length), Machine::INSTRUCTION_LENGTH),
        (virt.is_ok_and(|virt| virt.has_rdtscp), Machine::RDTSCP),
        (virt.is_ok_and(|virt| virt.has_invpcid), Machine::INVPCID),
        (virt.is_ok_and(|virt| virt.has_xsaves), Machine::XSAVES),
        (virt.is_ok_and(|virt| virt.virtualizes_apic), Machine::APIC_VIRTUALIZATION),
        (iommu::end() != 0, Machine::DMA_SPACES),
        (features.tsc_deadline, Machine::TSC_DEADLINE),
        (features.xsave, Machine::XSAVE),
        (features.invariant_tsc, Machine::INVARIANT_TSC),
        (features.x2apic, Machine::X2APIC),
    ] {
        bits.set(bit, present);
    }
    bits
}
