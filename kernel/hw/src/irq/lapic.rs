//! The local APIC, in xAPIC or x2APIC mode (SDM 3A 11).

use super::vector;
use crate::cpu::{msr, tsc};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kcore::addr::PhysAddr;

static IS_X2APIC: AtomicBool = AtomicBool::new(false);
static HAS_DEADLINE: AtomicBool = AtomicBool::new(false);
/// APIC timer ticks in a TSC tick, as a 32.32 fixed-point number.
static RATIO: AtomicU64 = AtomicU64::new(0);

/// Where the xAPIC's registers are.
pub const MMIO_BASE: PhysAddr = PhysAddr(0xfee0_0000);

const ID: u32 = 0x20;
const TPR: u32 = 0x80;
const EOI: u32 = 0xb0;
const SVR: u32 = 0xf0;
const ISR: u32 = 0x100;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;

/// Priority that keeps out vectors below 20H (SDM 3A 11.8.3.1): APICs accept those from 10H on, whose exceptions may have error codes
/// that no interrupt has.
const EXCEPTIONS: u32 = 0x10;
const MASKED: u32 = 1 << 16;
const DEADLINE_MODE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0xb;

fn read(register: u32) -> u32 {
    if IS_X2APIC.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on: the MSRs exist.
        unsafe { msr::read(0x800 + (register >> 4)) as u32 }
    } else {
        // SAFETY: the kernel maps the page uncached in the direct map before `init_cpu`.
        unsafe { crate::mem::phys_to_virt(MMIO_BASE).add(register as usize).cast::<u32>().read_volatile() }
    }
}

fn write(register: u32, value: u32) {
    if IS_X2APIC.load(Ordering::Relaxed) {
        // SAFETY: as in `read`; the callers write valid values.
        unsafe { msr::write(0x800 + (register >> 4), value as u64) }
    } else {
        // SAFETY: as in `read`.
        unsafe {
            crate::mem::phys_to_virt(MMIO_BASE).add(register as usize).cast::<u32>().write_volatile(value)
        }
    }
}

/// Chooses the mode for all CPUs.
pub fn configure(use_x2apic: bool, use_deadline: bool) {
    IS_X2APIC.store(use_x2apic, Ordering::Relaxed);
    HAS_DEADLINE.store(use_deadline, Ordering::Relaxed);
}

/// Whether the APICs are in x2APIC mode.
pub fn is_x2apic() -> bool {
    IS_X2APIC.load(Ordering::Relaxed)
}

/// Enables this CPU's APIC: all local sources masked but NMI at LINT1, the timer stopped.
///
/// # Safety
/// [`configure`] was called with what this CPU has; the register page is mapped uncached in the direct map.
pub unsafe fn init_cpu() {
    // SAFETY: every 64-bit CPU has IA32_APIC_BASE; bit 11 enables, bit 10 selects x2APIC (after enabling, as SDM 3A 11.12.5
    // wants it).
    unsafe {
        let base = msr::read(msr::APIC_BASE) | 1 << 11;
        msr::write(msr::APIC_BASE, base);
        if is_x2apic() {
            msr::write(msr::APIC_BASE, base | 1 << 10);
        }
    }
    write(TPR, EXCEPTIONS);
    // Masks of a disabled APIC, which it is after INIT, cannot be cleared (SDM 3A 11.4.7.2).
    write(SVR, 1 << 8 | vector::SPURIOUS as u32);
    write(LVT_LINT0, MASKED);
    write(LVT_LINT1, 4 << 8);
    write(LVT_ERROR, MASKED);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    let mode = if HAS_DEADLINE.load(Ordering::Relaxed) { DEADLINE_MODE } else { 0 };
    write(LVT_TIMER, mode | vector::TIMER as u32);
    if mode == 0 {
        write(TIMER_INITIAL, 0);
    }
    // Before the first deadline, which is no store (SDM 3A 11.5.4.1).
    // SAFETY: a fence.
    unsafe { core::arch::x86_64::_mm_mfence() };
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    if is_x2apic() { read(ID) } else { read(ID) >> 24 }
}

/// Ends the interrupt in service.
#[inline]
pub fn eoi() {
    write(EOI, 0);
}

/// Ends interrupt `vector`, which just came, unless it came past the APIC: then an EOI would end another one.
pub fn end(vector: u8) {
    if read(ISR + (vector as u32 >> 5) * 0x10) >> (vector & 31) & 1 != 0 {
        eoi();
    }
}

/// Sends an interrupt to a CPU.
pub fn send_ipi(apic_id: u32, vector: u8) {
    send(apic_id, 1 << 14 | vector as u32);
}

/// Sends an NMI to a CPU.
pub fn send_nmi(apic_id: u32) {
    send(apic_id, 1 << 14 | 4 << 8);
}

/// Sends INIT to a CPU.
pub fn send_init(apic_id: u32) {
    send(apic_id, 1 << 15 | 1 << 14 | 5 << 8);
    send(apic_id, 1 << 15 | 5 << 8);
}

/// Sends a start-up IPI: the CPU starts at physical address `page << 12` in real mode.
pub fn send_sipi(apic_id: u32, page: u8) {
    send(apic_id, 1 << 14 | 6 << 8 | page as u32);
}

fn send(apic_id: u32, low: u32) {
    if is_x2apic() {
        // Earlier stores must be visible before the interrupt; WRMSR to the ICR does not serialize (SDM 3A 11.12.3).
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: x2APIC mode is on; the value has no reserved bits.
        unsafe { msr::write(0x830, (apic_id as u64) << 32 | low as u64) }
        return;
    }
    write(ICR_HIGH, apic_id << 24);
    write(ICR_LOW, low);
    // Delivery status: a few hundred cycles at most on hardware; the bound keeps a broken APIC from hanging the kernel.
    for _ in 0..100_000 {
        if read(ICR_LOW) & 1 << 12 == 0 {
            break;
        }
        core::hint::spin_loop();
    }
}

/// Measures the timer against the TSC for `ticks` TSC ticks. Without TSC-deadline the kernel needs it.
pub fn calibrate(ticks: u64) {
    if HAS_DEADLINE.load(Ordering::Relaxed) {
        return;
    }
    write(LVT_TIMER, MASKED);
    write(TIMER_INITIAL, u32::MAX);
    let start = tsc::read();
    while tsc::read() - start < ticks {
        core::hint::spin_loop();
    }
    let elapsed = (u32::MAX - read(TIMER_CURRENT)) as u64;
    let passed = tsc::read() - start;
    write(TIMER_INITIAL, 0);
    write(LVT_TIMER, vector::TIMER as u32);
    RATIO.store((((elapsed as u128) << 32) / passed as u128) as u64, Ordering::Relaxed);
}

/// Arms the timer for TSC `deadline`; it may fire early, never much late. `u64::MAX` stops it.
pub fn arm(deadline: u64) {
    if HAS_DEADLINE.load(Ordering::Relaxed) {
        // SAFETY: the MSR exists where `configure` was told so. 0 disarms.
        unsafe { msr::write(msr::TSC_DEADLINE, if deadline == u64::MAX { 0 } else { deadline.max(1) }) }
        return;
    }
    if deadline == u64::MAX {
        write(TIMER_INITIAL, 0);
        return;
    }
    let ticks = deadline.saturating_sub(tsc::read());
    let count = (ticks as u128 * RATIO.load(Ordering::Relaxed) as u128) >> 32;
    write(TIMER_INITIAL, (count as u64).clamp(1, u32::MAX as u64) as u32);
}
