//! Runs beside `poison` and looks for its pattern: in the registers and the memory it starts with, and in its
//! registers ever after.
//!
//! `ms=N` on the command line says for how long, 2500 without it.

use tproto::poison::{is_low_half, is_pattern};
use trt::cpu::{self, rdmsr};
use trt::fpu::{self, Area, XCR0_AVX};
use trt::lapic::Lapic;
use trt::pvh::{self, Region};
use trt::{boot, check, clock, debug, gprs, irq, msr, trap};

const VECTOR: u8 = 0x51;
/// What the witness itself keeps in its general registers.
const OWN_PATTERN: u64 = 0x0f1e_2d3c_4b5a_6978;

/// The guest.
pub fn run() {
    // Before anything of the runtime's changes them. Setting XCR0 does not clear what it makes reachable.
    let has_avx = fpu::enable_xsave().is_some_and(|xcr0| xcr0 & XCR0_AVX != 0);
    check!(eq vector_registers(has_avx), 0, "no vector register begins with the pattern");
    check!(eq x87_registers(), 0, "no x87 register begins with the pattern");
    check!(eq general_registers(), 0, "no general register begins with the pattern");
    check!(eq system_registers(), 0, "no system register begins with the pattern");
    check!(eq memory(), 0, "no word of memory begins with the pattern");
    watch(has_avx);
    check!(eq memory(), 0, "no word of memory has the pattern in the end");
}

fn count(words: impl IntoIterator<Item = u64>) -> usize {
    words.into_iter().filter(|word| is_pattern(*word)).count()
}

fn vector_registers(has_avx: bool) -> usize {
    let lanes = if has_avx { fpu::store_ymm() } else { fpu::store_xmm() };
    count(lanes.into_iter().flatten())
}

fn x87_registers() -> usize {
    let mut area = Area::ZERO;
    fpu::fxsave(&mut area);
    let words = area.x87_registers().chunks_exact(8);
    count(words.map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))))
}

fn general_registers() -> usize {
    let gprs = boot::initial_gprs();
    gprs.low.iter().filter(|word| is_low_half(**word)).count() + count(gprs.high)
}

fn system_registers() -> usize {
    let msrs = [msr::STAR, msr::LSTAR, msr::CSTAR, msr::KERNEL_GS_BASE, msr::FS_BASE, msr::GS_BASE];
    let has_rdtscp = cpu::cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0;
    let aux = if has_rdtscp { trt::user::rdtscp().1 } else { 0 };
    count(msrs.map(rdmsr))
        + count([debug::dr0(), debug::dr1(), debug::dr2(), debug::dr3(), trap::cr2()])
        + [rdmsr(msr::SFMASK) as u32, aux].into_iter().filter(|word| is_low_half(*word)).count()
}

/// Looks through all of RAM below 4 GiB.
fn memory() -> usize {
    let ram = pvh::memory_map().iter().filter(|region| region.is_ram() && region.end() <= 1 << 32);
    ram.map(|region: &Region| {
        let (first, last) = (region.start.next_multiple_of(8).max(8), region.end() & !7);
        // SAFETY: RAM, mapped, aligned; whatever changes it meanwhile, any word is a word.
        count((first..last).step_by(8).map(|address| unsafe { (address as *const u64).read_volatile() }))
    })
    .sum()
}

/// Looks at the registers again and again, with sleeps in between in which the other guest runs.
fn watch(has_avx: bool) {
    let ms = pvh::option("ms").and_then(|ms| ms.parse().ok()).unwrap_or(2500);
    let apic = Lapic::enable_best();
    let ticks = apic.ticks_per_ms();
    irq::count(VECTOR);
    let end = cpu::rdtsc() + clock::tsc_hz() / 1000 * ms;
    let (mut rounds, mut seen, mut lost) = (0_u32, 0, 0_u32);
    while cpu::rdtsc() < end {
        apic.start_timer(VECTOR, 0, ticks / 2);
        cpu::sti_hlt_cli();
        seen += vector_registers(has_avx) + x87_registers() + system_registers();
        lost += u32::from(gprs::hold(OWN_PATTERN, 16) != 0);
        rounds += 1;
    }
    check!(rounds > 1, "{rounds} rounds in {ms} ms");
    check!(eq seen, 0, "no register ever has the pattern");
    check!(eq lost, 0, "the witness's own general registers are never changed");
}
