//! Steal time: how long somebody else had the processor.

use core::cell::UnsafeCell;
use trt::cpu::{cpuid, rdtsc, wrmsr};
use trt::lapic::Lapic;
use trt::{check, clock, cpu, irq, msr, pvh, skip};

const VECTOR: u8 = 0x51;
/// How much is to be stolen, and how long that may take, in ms.
const ENOUGH_MS: u64 = 30;
const PATIENCE_MS: u64 = 10_000;
/// For how long a guest looks that is alone, in ms.
const ALONE_MS: u64 = 100;

/// `kvm_steal_time` (Linux, Documentation/virt/kvm/x86/msr.rst).
#[repr(C, align(64))]
struct Area(UnsafeCell<[u64; 8]>);

// SAFETY: written by the VMM behind the guest's back and read by volatile accesses only.
unsafe impl Sync for Area {}

static AREA: Area = Area(UnsafeCell::new([0; 8]));

/// The guest: another one has the processor for half of the time, or nobody has with `alone=yes`.
pub fn run() {
    if cpuid(0x4000_0001, 0).eax >> 5 & 1 == 0 {
        return skip!("steal time is not offered");
    }
    // SAFETY: the hypervisor writes 64 bytes at an address that is theirs alone.
    unsafe { wrmsr(msr::KVM_STEAL_TIME, AREA.0.get() as u64 | 1) };
    check!(version() != 0 && version() & 1 == 0, "the area is written when it is registered");
    let apic = Lapic::enable_best();
    let ticks = apic.ticks_per_ms();
    irq::count(VECTOR);
    let is_alone = pvh::option("alone") == Some("yes");
    let patience = clock::tsc_hz() / 1000 * if is_alone { ALONE_MS } else { PATIENCE_MS };
    let (start, before) = (rdtsc(), steal_ns());
    let ms = || (steal_ns() - before) / 1_000_000;
    while ms() < ENOUGH_MS && rdtsc() - start < patience {
        apic.start_timer(VECTOR, 0, ticks);
        cpu::sti();
        clock::wait(2);
        cpu::cli();
    }
    let (stolen, passed) = (ms(), (rdtsc() - start) / (clock::tsc_hz() / 1000));
    if is_alone {
        check!(stolen < ENOUGH_MS, "nobody takes a lone guest's time: {stolen} of {passed} ms");
    } else {
        check!(stolen >= ENOUGH_MS, "time that another guest takes is steal time: {stolen} of {passed} ms");
    }
    check!(stolen <= passed, "no more is stolen than passes");
    check!(version() & 1 == 0, "the area is whole");
    // SAFETY: stops writes, starts none.
    unsafe { wrmsr(msr::KVM_STEAL_TIME, 0) };
    let last = version();
    apic.start_timer(VECTOR, 0, ticks);
    cpu::sti();
    clock::wait(30);
    cpu::cli();
    check!(eq version(), last, "who is not registered is told nothing");
}

fn word(index: usize) -> u64 {
    // SAFETY: one of the eight words; volatile, since the hypervisor writes there.
    unsafe { (&raw const (*AREA.0.get())[index & 7]).read_volatile() }
}

fn steal_ns() -> u64 {
    word(0)
}

fn version() -> u32 {
    word(1) as u32
}
