//! The other CPUs.

use super::memory::BootFrames;
use super::{System, clock, run_on_cpu, start};
use crate::cpu::Local;
use crate::sched;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;
use khw::cpu::cpuid::Features;
use khw::desc::{self, CpuTables};
use khw::irq::lapic;
use khw::mem::phys_to_virt;
use khw::percpu::Block;
use khw::{entry, smp, virt};

unsafe extern "C" {
    static nacre_trampoline: u8;
    static nacre_trampoline_end: u8;
    static mut nacre_ap_stack: u64;
    static mut nacre_ap_main: u64;
}

/// What the CPU that is being started needs: CPUs are started one at a time.
static TABLES: AtomicPtr<CpuTables> = AtomicPtr::new(core::ptr::null_mut());
static BLOCK: AtomicPtr<Block> = AtomicPtr::new(core::ptr::null_mut());
static FEATURES: AtomicPtr<Features> = AtomicPtr::new(core::ptr::null_mut());
static VIRT_FRAME: AtomicU64 = AtomicU64::new(0);

/// Starts every CPU that ACPI lists.
pub fn start_all(system: &System, frames: &mut BootFrames) {
    let Some(acpi) = &system.acpi else { return };
    let own = lapic::id();
    let backup = frames.take_frame();
    let page = PhysAddr(start::TRAMPOLINE);
    copy_page(page, backup);
    FEATURES.store((&raw const system.features).cast_mut(), Ordering::Release);
    for &apic_id in acpi.cpus.iter().filter(|&&id| id != own) {
        let id = smp::cpu_count();
        if id == MAX_CPUS || (apic_id > 254 && !lapic::is_x2apic()) {
            log::warn!("cpu: APIC id {apic_id} stays off: {id} CPUs are all that this kernel uses here");
            continue;
        }
        prepare(id, apic_id, frames);
        if !clock::wait_in(|| wake(apic_id, id)) {
            // It must not come up later, with what the next one is given.
            lapic::send_init(apic_id);
            log::warn!("cpu: APIC id {apic_id} did not start");
        }
    }
    // A boot module may lie there.
    copy_page(backup, page);
    log::info!("cpu: {} running", smp::cpu_count());
}

fn copy_page(from: PhysAddr, to: PhysAddr) {
    // SAFETY: one is the trampoline's page, which is mapped, the other a frame of the kernel's; no other CPU runs code there
    // before the first start or after the last.
    unsafe { core::ptr::copy_nonoverlapping(phys_to_virt(from), phys_to_virt(to), 4096) };
}

fn prepare(id: usize, apic_id: u32, frames: &mut BootFrames) {
    let tables = frames.take_bytes(desc::CPU_TABLES_BYTES).cast::<CpuTables>();
    let block = frames.take_bytes(size_of::<Block>() + size_of::<Local>()).cast::<Block>();
    // SAFETY: both are zeroed, exclusive and permanent; the trampoline's page is in low memory that nobody is given; the
    // variables of the start code are in the boot section, which stays mapped by the boot tables it runs on.
    unsafe {
        let local = block.add(1).cast::<Local>();
        local.write(Local::new(id, tables));
        (*block).id = id as u32;
        (*block).apic_id = apic_id;
        (*block).stack_top = CpuTables::stack_top(tables);
        (*block).local = local as u64;
        let code = &raw const nacre_trampoline;
        let bytes = (&raw const nacre_trampoline_end) as usize - code as usize;
        let boot = |addr: u64| phys_to_virt(PhysAddr(addr));
        core::ptr::copy_nonoverlapping(boot(code as u64), boot(start::TRAMPOLINE), bytes);
        boot((&raw const nacre_ap_stack) as u64).cast::<u64>().write_volatile((*block).stack_top);
        boot((&raw const nacre_ap_main) as u64).cast::<u64>().write_volatile(ap_main as *const () as u64);
    }
    TABLES.store(tables, Ordering::Release);
    BLOCK.store(block, Ordering::Release);
    VIRT_FRAME.store(frames.take_frame().0, Ordering::Release);
}

/// INIT, SIPI, SIPI (SDM 3A 9.4.4.1); true once the CPU is up.
fn wake(apic_id: u32, id: usize) -> bool {
    const PAGE: u8 = (start::TRAMPOLINE >> 12) as u8;
    lapic::send_init(apic_id);
    clock::delay_us(10_000);
    for wait_us in [1_000, 200_000] {
        lapic::send_sipi(apic_id, PAGE);
        for _ in 0..wait_us / 100 {
            clock::delay_us(100);
            if smp::cpu_count() > id {
                return true;
            }
        }
    }
    false
}

extern "C" fn ap_main() -> ! {
    // SAFETY: `prepare` set these up for this CPU; the boot CPU waits meanwhile.
    let local = unsafe {
        let block = BLOCK.load(Ordering::Acquire);
        let features = *FEATURES.load(Ordering::Acquire);
        run_on_cpu(TABLES.load(Ordering::Acquire), block, &features);
        lapic::init_cpu();
        &*((*block).local as *const Local)
    };
    // SAFETY: detected on the boot CPU; the frame is this CPU's for ever.
    if let Err(why) = unsafe { virt::enable_cpu(PhysAddr(VIRT_FRAME.load(Ordering::Acquire))) } {
        super::refuse(format_args!("CPU {}: {why}", local.id));
    }
    smp::announce();
    let frame = sched::schedule(local);
    // SAFETY: `schedule` activated the context that the frame belongs to.
    unsafe { entry::leave(frame) }
}
