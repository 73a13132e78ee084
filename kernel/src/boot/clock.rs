//! The rate of the TSC, against a clock whose rate is known: the ACPI PM timer, otherwise the PIT.

use super::System;
use core::sync::atomic::{AtomicU64, Ordering};
use kcore::boot::acpi::PmTimer;
use khw::cpu::{port, tsc};
use khw::irq::lapic;

/// Ticks of the PM timer in a second (ACPI 6.5 4.8.2.1).
const PM_HZ: u64 = 3_579_545;
/// Ticks of the PIT in a second.
const PIT_HZ: u64 = 1_193_182;
/// A measurement takes this share of a second.
const SHARE: u64 = 200;

static TSC_HZ: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);

/// TSC ticks in a second.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// TSC ticks in so many microseconds.
pub fn ticks_from_us(us: u64) -> u64 {
    (us as u128 * tsc_hz() as u128 / 1_000_000).min(u64::MAX as u128) as u64
}

/// TSC ticks that boot spent waiting for timers and other CPUs.
pub fn waited() -> u64 {
    WAITED.load(Ordering::Relaxed)
}

/// Does what is mostly waiting, and counts it as such.
pub fn wait_in<T>(work: impl FnOnce() -> T) -> T {
    let start = tsc::read();
    let result = work();
    WAITED.fetch_add(tsc::read() - start, Ordering::Relaxed);
    result
}

/// Waits.
pub fn delay_us(us: u64) {
    let start = tsc::read();
    let ticks = ticks_from_us(us);
    while tsc::read() - start < ticks {
        core::hint::spin_loop();
    }
}

/// Measures the TSC and, where it is used, the APIC timer. CPUID leaf 15H is not asked: emulators lie there.
pub fn calibrate(system: &System) {
    let timer = system.acpi.as_ref().and_then(|acpi| acpi.pm_timer);
    let hz = timer.and_then(measure_by_pm_timer).unwrap_or_else(measure_by_pit);
    if hz == 0 {
        super::refuse(format_args!(
            "neither the ACPI PM timer nor the PIT runs, so the TSC cannot be measured"
        ));
    }
    TSC_HZ.store(hz, Ordering::Relaxed);
    lapic::calibrate(hz / SHARE);
    log::info!("clock: TSC {}.{:03} MHz", hz / 1_000_000, hz / 1000 % 1000);
}

fn measure_by_pm_timer(timer: PmTimer) -> Option<u64> {
    let mask = if timer.wide { u32::MAX } else { 0xff_ffff };
    let read = || port::read32(timer.port) & mask;
    let (start, start_tsc) = (read(), tsc::read());
    let wanted = (PM_HZ / SHARE) as u32;
    // A timer that stands still is given up after far more reads than any real one takes.
    for _ in 0..10_000_000u32 {
        let ticks = read().wrapping_sub(start) & mask;
        if ticks >= wanted {
            return Some((tsc::read() - start_tsc) * PM_HZ / ticks as u64);
        }
    }
    None
}

/// Channel 2 in mode 0, gated by port 61H: its output goes high when the count is over.
fn measure_by_pit() -> u64 {
    let count = PIT_HZ / SHARE;
    port::write8(0x61, port::read8(0x61) & !3 | 1);
    port::write8(0x43, 0xb0);
    port::write8(0x42, count as u8);
    port::write8(0x42, (count >> 8) as u8);
    let start = tsc::read();
    for _ in 0..10_000_000u32 {
        if port::read8(0x61) & 0x20 != 0 {
            return (tsc::read() - start) * SHARE;
        }
    }
    0
}
