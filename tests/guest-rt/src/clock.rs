//! Clocks: kvmclock where the board has it, the ACPI PM timer elsewhere.

use crate::{cpu, is_nacre, msr, port};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// `pvclock_vcpu_time_info` (Linux, Documentation/virt/kvm/x86/msr.rst).
#[repr(C, align(32))]
struct SystemTime {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time_ns: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

/// `pvclock_wall_clock`.
#[repr(C, align(16))]
struct WallClock {
    version: u32,
    seconds: u32,
    nanoseconds: u32,
}

struct Page<T>(UnsafeCell<T>);

// SAFETY: written by the VMM behind the guest's back and read by volatile accesses only.
unsafe impl<T> Sync for Page<T> {}

static SYSTEM_TIME: Page<SystemTime> = Page(UnsafeCell::new(SystemTime {
    version: 0,
    pad: 0,
    tsc_timestamp: 0,
    system_time_ns: 0,
    tsc_to_system_mul: 0,
    tsc_shift: 0,
    flags: 0,
    pad2: [0; 2],
}));
static WALL_CLOCK: Page<WallClock> =
    Page(UnsafeCell::new(WallClock { version: 0, seconds: 0, nanoseconds: 0 }));

/// Whether the hypervisor offers kvmclock through its current MSRs (CPUID 4000_0001H:EAX bit 3).
pub fn has_kvmclock() -> bool {
    is_nacre() && cpu::cpuid(0x4000_0001, 0).eax >> 3 & 1 != 0
}

/// Has the hypervisor keep the time in our page.
pub fn enable_kvmclock() {
    // SAFETY: the hypervisor writes 32 bytes at an address that is theirs alone; only called where it is offered.
    unsafe { cpu::wrmsr(msr::KVM_SYSTEM_TIME, SYSTEM_TIME.0.get() as u64 | 1) };
}

/// Has the hypervisor keep no time any more.
pub fn disable_kvmclock() {
    // SAFETY: stops writes, starts none.
    unsafe { cpu::wrmsr(msr::KVM_SYSTEM_TIME, 0) };
}

/// One consistent reading of the page.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Nanoseconds since boot.
    pub now_ns: u64,
    /// TSC ticks in a second, from the multiplier and the shift.
    pub tsc_hz: u64,
    /// Bit 0: stable across CPUs.
    pub flags: u8,
    /// Even; changes with every update.
    pub version: u32,
}

/// Reads kvmclock, which has been enabled.
pub fn kvmclock() -> Reading {
    let page = SYSTEM_TIME.0.get();
    loop {
        // SAFETY: the page is a static; every access is volatile, as the hypervisor may write in between.
        let (before, timestamp, system_time, mul, shift, flags, tsc, after) = unsafe {
            let before = (&raw const (*page).version).read_volatile();
            fence(Ordering::Acquire);
            (
                before,
                (&raw const (*page).tsc_timestamp).read_volatile(),
                (&raw const (*page).system_time_ns).read_volatile(),
                (&raw const (*page).tsc_to_system_mul).read_volatile(),
                (&raw const (*page).tsc_shift).read_volatile(),
                (&raw const (*page).flags).read_volatile(),
                cpu::rdtsc(),
                (&raw const (*page).version).read_volatile(),
            )
        };
        if before & 1 != 0 || before != after {
            continue;
        }
        let ticks = tsc.wrapping_sub(timestamp);
        let shifted =
            if shift >= 0 { ticks << (shift as u32 & 63) } else { ticks >> (-i32::from(shift) & 63) };
        let elapsed = ((u128::from(shifted) * u128::from(mul)) >> 32) as u64;
        // ns = (ticks << shift) * mul / 2^32, so that a second has 10^9 * 2^32 / mul / 2^shift ticks.
        let unshifted = (1_000_000_000_u128 << 32) / u128::from(mul.max(1));
        let hz =
            if shift >= 0 { unshifted >> (shift as u32 & 63) } else { unshifted << (-i32::from(shift) & 63) };
        return Reading {
            now_ns: system_time.wrapping_add(elapsed),
            tsc_hz: hz as u64,
            flags,
            version: after,
        };
    }
}

/// Asks for the time of boot: seconds and nanoseconds since 1970.
pub fn wall_clock() -> (u32, u32) {
    let page = WALL_CLOCK.0.get();
    // SAFETY: the hypervisor writes 12 bytes at an address that is theirs alone; reads are volatile.
    unsafe {
        cpu::wrmsr(msr::KVM_WALL_CLOCK, page as u64);
        ((&raw const (*page).seconds).read_volatile(), (&raw const (*page).nanoseconds).read_volatile())
    }
}

/// Rate of the ACPI PM timer.
const PM_TIMER_HZ: u64 = 3_579_545;
/// Where QEMU's q35 and Nacre's board have it.
const PM_TIMER: u16 = 0x608;

/// TSC ticks in a second, found once: from kvmclock, else by 10 ms of the PM timer.
pub fn tsc_hz() -> u64 {
    static HZ: AtomicU64 = AtomicU64::new(0);
    let known = HZ.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let hz = if has_kvmclock() {
        enable_kvmclock();
        kvmclock().tsc_hz
    } else {
        let wait = PM_TIMER_HZ / 100;
        let (start, tsc) = (port::inl(PM_TIMER), cpu::rdtsc());
        let mut passed = 0;
        while passed < wait {
            // 24 bits are there on every board.
            passed = u64::from(port::inl(PM_TIMER).wrapping_sub(start) & 0xff_ffff);
        }
        (cpu::rdtsc() - tsc) * PM_TIMER_HZ / passed
    };
    HZ.store(hz, Ordering::Relaxed);
    hz
}

/// Waits until `done` holds, for at most `ms` milliseconds of TSC time; whether it came to hold.
pub fn wait_until(ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = cpu::rdtsc() + tsc_hz() / 1000 * ms;
    while cpu::rdtsc() < end {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    done()
}

/// Waits for `ms` milliseconds of TSC time.
pub fn wait(ms: u64) {
    wait_until(ms, || false);
}
