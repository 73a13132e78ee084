//! Measures exits from inside a VM of the real VMM, with all that it does: fetching and decoding instructions, device models,
//! the local APIC.
#![no_std]
// On a host there is nothing to measure.
#![cfg(target_os = "none")]

mod net;
mod pv;

use bench_protocol::{Line, Samples};
use core::arch::asm;
use trt::lapic::{Lapic, Mode, has_x2apic};
use trt::{cpu, println, pvh};

core::arch::global_asm!(
    include_str!("interrupt.S"),
    include_str!("ops.S"),
    total = const Samples::TOTAL,
);

/// A loop of `ops.S`.
type Loop = unsafe extern "C" fn(results: *mut u32, count: u32, argument: u64);

unsafe extern "C" {
    fn bench_empty(results: *mut u32, count: u32, argument: u64);
    fn bench_cpuid(results: *mut u32, count: u32, argument: u64);
    fn bench_pio_out(results: *mut u32, count: u32, argument: u64);
    fn bench_mmio_write(results: *mut u32, count: u32, argument: u64);
    fn bench_mmio_read(results: *mut u32, count: u32, argument: u64);
    fn bench_mmio_write_first(results: *mut u32, count: u32, argument: u64);
    fn bench_mmio_read_first(results: *mut u32, count: u32, argument: u64);
    fn bench_self_ipi(results: *mut u32, count: u32, argument: u64);
    fn bench_self_ipi_handler();
}

/// The register that selects a register of the I/O APIC: a device that does nothing else.
const IOAPIC: u64 = 0xfec0_0000;
const SELF_IPI_VECTOR: u8 = 0x45;

/// The guest: one that measures alone, or one of two on a network.
pub fn run() {
    let overhead = measure_overhead();
    match pvh::option("role") {
        Some("ask") => net::ask(overhead),
        Some("answer") => net::answer(),
        _ => measure_alone(overhead),
    }
}

fn measure_alone(overhead: u64) {
    for (op, body) in [
        ("exit.cpuid_vmm", bench_cpuid as Loop),
        ("exit.pio_out_vmm", bench_pio_out),
        ("exit.mmio_write", bench_mmio_write_first),
        ("exit.mmio_read", bench_mmio_read_first),
        ("exit.mmio_write_warm", bench_mmio_write),
        ("exit.mmio_read_warm", bench_mmio_read),
    ] {
        measure(op, body, IOAPIC, overhead);
    }
    if has_x2apic() {
        Lapic::enable(Mode::X2apic);
        set_gate(SELF_IPI_VECTOR, bench_self_ipi_handler as *const () as u64);
        measure("ipi.self", bench_self_ipi, SELF_IPI_VECTOR.into(), overhead);
    } else {
        let why = "the VM has no x2APIC";
        println!("{}", Line::Failed { op: "ipi.self", why });
    }
    pv::measure_block(overhead);
}

fn measure_overhead() -> u64 {
    time(bench_empty, 0).summary(0).map_or(0, |summary| summary.median)
}

fn time(body: Loop, argument: u64) -> Samples {
    let mut results = [0u32; Samples::TOTAL];
    // SAFETY: `ops.S` stores as many results, and saves the registers that a function must.
    unsafe { body(results.as_mut_ptr(), Samples::TOTAL as u32, argument) };
    let mut samples = Samples::new();
    results.into_iter().for_each(|ticks| samples.push(ticks));
    samples
}

fn measure(op: &str, body: Loop, argument: u64, overhead: u64) {
    println!("{}", Line::Window { op });
    if let Some(summary) = time(body, argument).summary(overhead) {
        println!("{}", Line::Result { op, summary });
    }
}

/// Makes an interrupt of `vector` come to `handler`, past the runtime.
fn set_gate(vector: u8, handler: u64) {
    #[repr(C, packed)]
    struct Pointer {
        limit: u16,
        base: u64,
    }
    let mut pointer = Pointer { limit: 0, base: 0 };
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00 << 32;
    const CODE: u64 = (trt::desc::KERNEL_CODE as u64) << 16;
    let low = handler & 0xffff | CODE | PRESENT_INTERRUPT_GATE | (handler >> 16 & 0xffff) << 48;
    // SAFETY: the runtime's interrupt descriptor table has 256 entries, and is writable; the handler saves what it changes, but
    // for RBX, on which `bench_self_ipi` waits.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut pointer, options(nostack, preserves_flags));
        let gate = (pointer.base as *mut u64).add(usize::from(vector) * 2);
        gate.write_volatile(low);
        gate.add(1).write_volatile(handler >> 32);
    }
}

/// Says what ticks of an operation came to, for each of the `parts` that it is made of.
fn say(op: &str, ticks: Option<[u32; Samples::TOTAL]>, overhead: u64, parts: u32) {
    let mut samples = Samples::new();
    let overhead_of_part = overhead / u64::from(parts);
    ticks.into_iter().flatten().for_each(|ticks| samples.push(ticks / parts));
    match samples.summary(overhead_of_part) {
        Some(summary) => println!("{}", Line::Result { op, summary }),
        None => println!("{}", Line::Failed { op, why: "the device failed" }),
    }
}

/// Ticks of an operation, again and again; none if it fails. The last time it is between marks, for whoever traces.
#[inline(always)]
fn sample(mut operation: impl FnMut() -> bool) -> Option<[u32; Samples::TOTAL]> {
    let mut results = [0; Samples::TOTAL];
    for (index, result) in results.iter_mut().enumerate() {
        let is_last = index == Samples::TOTAL - 1;
        if is_last {
            mark();
        }
        let start = cpu::rdtsc();
        let is_ok = operation();
        *result = (cpu::rdtsc() - start) as u32;
        if is_last {
            mark();
        }
        if !is_ok {
            return None;
        }
    }
    Some(results)
}

fn mark() {
    // SAFETY: exchanging a register with itself does nothing.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
}
