//! Fills every register it can with a pattern and exits again and again; nobody else may ever see the pattern.
//!
//! `ms=N` on the command line says for how long, 2000 without it.

use tproto::poison::{CANONICAL, pattern};
use trt::cpu::{self, rdmsr, wrmsr};
use trt::fpu::{self, XCR0_AVX};
use trt::lapic::Lapic;
use trt::{check, clock, debug, gprs, irq, msr, pvh};

const VECTOR: u8 = 0x51;

/// IA32_STAR, IA32_LSTAR and so on with what each is filled with.
fn msrs() -> [(u32, u64); 7] {
    let (pattern, address) = (pattern(), pattern() & CANONICAL);
    [
        (msr::STAR, pattern),
        (msr::LSTAR, address),
        (msr::CSTAR, address),
        (msr::SFMASK, pattern & 0xffff_ffff),
        (msr::KERNEL_GS_BASE, address),
        (msr::FS_BASE, address),
        (msr::GS_BASE, address),
    ]
}

/// The guest.
pub fn run() {
    let ms = pvh::option("ms").and_then(|ms| ms.parse().ok()).unwrap_or(2000);
    let has_avx = fpu::enable_xsave().is_some_and(|xcr0| xcr0 & XCR0_AVX != 0);
    let has_rdtscp = cpu::cpuid(0x8000_0001, 0).edx >> 27 & 1 != 0;
    let apic = Lapic::enable_best();
    let ticks = apic.ticks_per_ms();
    irq::count(VECTOR);

    let end = cpu::rdtsc() + clock::tsc_hz() / 1000 * ms;
    let (mut rounds, mut lost) = (0_u32, 0_u32);
    while cpu::rdtsc() < end {
        fill(has_avx, has_rdtscp);
        lost += u32::from(gprs::hold(pattern(), 64) != 0);
        // Asleep, so that others run on this CPU while our registers are full.
        apic.start_timer(VECTOR, 0, ticks);
        cpu::sti_hlt_cli();
        lost += u32::from(!is_filled(has_avx, has_rdtscp));
        rounds += 1;
    }
    check!(rounds > 1, "{rounds} rounds in {ms} ms");
    check!(eq lost, 0, "the pattern stays in every register");
}

fn fill(has_avx: bool, has_rdtscp: bool) {
    let pattern = pattern();
    let lanes = [[pattern; 4]; 16];
    if has_avx {
        fpu::load_ymm(&lanes)
    } else {
        fpu::load_xmm(&lanes)
    }
    for (number, value) in msrs() {
        // SAFETY: the runtime uses none of them: no system calls, no FS, no GS.
        unsafe { wrmsr(number, value) };
    }
    if has_rdtscp {
        // SAFETY: only RDTSCP reads it.
        unsafe { wrmsr(msr::TSC_AUX, pattern & 0xffff_ffff) };
    }
    debug::set_dr0(pattern);
    debug::set_dr1(pattern);
    debug::set_dr2(pattern);
    debug::set_dr3(pattern);
    cpu::set_cr2(pattern);
}

fn is_filled(has_avx: bool, has_rdtscp: bool) -> bool {
    let pattern = pattern();
    let (lanes, used) = if has_avx { (fpu::store_ymm(), 4) } else { (fpu::store_xmm(), 2) };
    lanes.iter().all(|lanes| lanes[..used].iter().all(|lane| *lane == pattern))
        && msrs().iter().all(|(number, value)| rdmsr(*number) == *value)
        && (!has_rdtscp || trt::user::rdtscp().1 == pattern as u32)
        && [debug::dr0(), debug::dr1(), debug::dr2(), debug::dr3(), trt::trap::cr2()] == [pattern; 5]
}
