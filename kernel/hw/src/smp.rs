//! Requests between CPUs: grace periods, which are TLB shootdowns at the same time.
//!
//! Protocol (`doc/implementation.md`): the requester bumps its target's `requested` counter and sends an interrupt. The
//! target, at a point where it holds no reference to kernel objects, switches to the kernel's own page table, which
//! flushes its TLB, and publishes the counter it saw. The requester waits for that.

use crate::cpu::control;
use crate::flush_checker;
use crate::irq::{lapic, vector};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;
use kcore::sync::grace::Request;

static REQUESTS: [Request; MAX_CPUS] = [const { Request::new() }; MAX_CPUS];
/// Times a CPU left whatever address space it was in.
static EPOCHS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static CPU_COUNT: AtomicUsize = AtomicUsize::new(1);
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);

/// Says which page table maps the kernel and nothing else.
///
/// # Safety
/// The table stays for ever and maps the kernel as every other one does.
pub unsafe fn set_kernel_root(root: PhysAddr) {
    KERNEL_ROOT.store(root.0, Ordering::Release);
}

/// The kernel's own page table.
pub fn kernel_root() -> PhysAddr {
    PhysAddr(KERNEL_ROOT.load(Ordering::Acquire))
}

/// CPUs that are up.
#[inline]
pub fn cpu_count() -> usize {
    CPU_COUNT.load(Ordering::Acquire)
}

/// Says that one more CPU is up, as number `cpu_count()`.
pub fn announce() {
    CPU_COUNT.fetch_add(1, Ordering::AcqRel);
}

/// Whether somebody waits for this CPU.
#[inline]
pub fn has_request() -> bool {
    REQUESTS[crate::percpu::id()].is_open()
}

/// Serves this CPU's outstanding request after `work`, which lets go of what is going away.
///
/// Only to be called where no reference to kernel objects is held, but for those `work` looks up itself.
pub fn serve(work: impl FnOnce()) {
    REQUESTS[crate::percpu::id()].serve(|| {
        work();
        leave_address_space();
    });
}

/// Waits until every other CPU has served a request made now, and lets interrupts in meanwhile; leaves this CPU's address space too.
///
/// At most one CPU may be in here at a time: callers hold the kernel's tree lock, and no other.
pub fn synchronize() {
    leave_address_space();
    let me = crate::percpu::id();
    let count = cpu_count();
    for cpu in (0..count).filter(|&cpu| cpu != me) {
        REQUESTS[cpu].ask();
        interrupt(cpu);
    }
    for request in
        REQUESTS.iter().take(count).enumerate().filter(|&(cpu, _)| cpu != me).map(|(_, request)| request)
    {
        while !request.is_served() {
            core::hint::spin_loop();
            // The others take as long as their longest stretch: this CPU's interrupts need not wait for it.
            crate::cpu::interrupt_window();
        }
    }
    flush_checker::shootdown_done(count);
}

/// Interrupts a CPU, so that it looks at its requests and queues.
pub fn interrupt(cpu: usize) {
    if let Some(block) = crate::percpu::block(cpu) {
        lapic::send_ipi(block.apic_id, vector::REQUEST);
    }
}

/// Makes every other CPU take an NMI: the kernel ends.
pub fn stop_others() {
    for cpu in 0..cpu_count() {
        if cpu_count() > 1
            && cpu != crate::percpu::id()
            && let Some(block) = crate::percpu::block(cpu)
        {
            lapic::send_nmi(block.apic_id);
        }
    }
}

/// Times this CPU left its address space: whoever remembers being in one compares.
#[inline]
pub fn epoch() -> u32 {
    EPOCHS[crate::percpu::id()].load(Ordering::Relaxed)
}

/// Switches to the kernel's own page table, flushing the TLB.
pub fn leave_address_space() {
    EPOCHS[crate::percpu::id()].fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's own table maps everything the kernel uses.
    unsafe { control::write_cr3(kernel_root().0) }
    flush_checker::cr3_loaded();
}
