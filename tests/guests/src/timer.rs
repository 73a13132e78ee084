//! The APIC timer in its three modes, kvmclock, and what the clocks say of each other.

use trt::cpu::{cpuid, rdmsr, rdtsc, wrmsr};
use trt::lapic::{self, Lapic, reg};
use trt::{check, clock, cpu, gprs, irq, msr, port, skip};

const VECTOR: u8 = 0x51;

/// The guest.
pub fn run() {
    let apic = Lapic::enable_best();
    let ticks = apic.ticks_per_ms();
    one_shot(&apic, ticks);
    periodic(&apic, ticks);
    registers_survive(&apic, ticks);
    if lapic::has_tsc_deadline() {
        tsc_deadline(&apic)
    } else {
        skip!("the TSC-deadline mode is not offered")
    }
    if clock::has_kvmclock() {
        rate(ticks);
        kvmclock(&apic, ticks);
        wall_clock();
    } else {
        skip!("kvmclock is not offered");
    }
}

/// Whether a timer shows what it should while it runs. Another VM may have the CPU until it has ended: then it is started again.
fn shows(mut start: impl FnMut() -> bool) -> bool {
    (0..5).any(|_| {
        let is_right = start();
        if !is_right {
            cpu::sti();
            clock::wait(1);
            cpu::cli();
            irq::reset(VECTOR);
        }
        is_right
    })
}

fn one_shot(apic: &Lapic, ticks: u32) {
    irq::count(VECTOR);
    let mut start = 0;
    let falls = shows(|| {
        start = rdtsc();
        apic.start_timer(VECTOR, 0, ticks * 5);
        let first = apic.read(reg::CURRENT_COUNT);
        apic.read(reg::CURRENT_COUNT) < first && first <= ticks * 5
    });
    check!(falls, "the timer's current count falls");
    while irq::seen(VECTOR) == 0 {
        cpu::sti_hlt_cli();
    }
    let passed_us = (rdtsc() - start) / (clock::tsc_hz() / 1_000_000);
    check!(passed_us >= 4_900, "a one-shot of 5 ms takes at least that: {passed_us} us");
    check!(eq apic.read(reg::CURRENT_COUNT), 0, "a one-shot ends at 0");
    cpu::sti();
    clock::wait(10);
    cpu::cli();
    check!(eq irq::seen(VECTOR), 1, "a one-shot interrupts once");

    irq::reset(VECTOR);
    apic.start_timer(VECTOR, lapic::LVT_MASKED, ticks);
    cpu::sti();
    let ended = clock::wait_until(100, || apic.read(reg::CURRENT_COUNT) == 0);
    cpu::cli();
    check!(ended && irq::seen(VECTOR) == 0, "a masked timer counts and does not interrupt");

    apic.start_timer(VECTOR, 0, ticks * 5);
    apic.write(reg::INITIAL_COUNT, 0);
    cpu::sti();
    clock::wait(10);
    cpu::cli();
    check!(eq irq::seen(VECTOR), 0, "an initial count of 0 stops the timer");
}

fn periodic(apic: &Lapic, ticks: u32) {
    irq::count(VECTOR);
    let start = rdtsc();
    apic.start_timer(VECTOR, lapic::LVT_PERIODIC, ticks * 2);
    while irq::seen(VECTOR) < 10 {
        cpu::sti_hlt_cli();
    }
    let passed_us = (rdtsc() - start) / (clock::tsc_hz() / 1_000_000);
    check!(passed_us >= 18_000, "ten periods of 2 ms take at least 18 ms: {passed_us} us");
    apic.stop_timer();
    cpu::sti();
    clock::wait(5);
    let seen = irq::seen(VECTOR);
    clock::wait(5);
    cpu::cli();
    check!(eq irq::seen(VECTOR), seen, "a stopped timer is silent");
}

fn registers_survive(apic: &Lapic, ticks: u32) {
    irq::count(VECTOR);
    // Longer than the exits of an interrupt take where the kernel checks every entry: else the loop would never get anywhere.
    apic.start_timer(VECTOR, lapic::LVT_PERIODIC, ticks * 2);
    cpu::sti();
    let mut wrong = 0;
    let end = rdtsc() + clock::tsc_hz() / 1000 * 500;
    while irq::seen(VECTOR) < 10 && rdtsc() < end {
        wrong |= gprs::hold(0x0123_4567_89ab_cdef, 200);
    }
    cpu::cli();
    apic.stop_timer();
    check!(irq::seen(VECTOR) >= 10, "a periodic timer interrupts a loop of exits");
    check!(eq wrong, 0, "all general registers survive exits and interrupts");
}

fn tsc_deadline(apic: &Lapic) {
    irq::count(VECTOR);
    apic.write(reg::LVT_TIMER, lapic::LVT_TSC_DEADLINE | u32::from(VECTOR));
    let arm = |deadline| {
        // SAFETY: the runtime counts the vector.
        unsafe { wrmsr(msr::TSC_DEADLINE, deadline) };
    };
    let mut deadline = 0;
    let holds = shows(|| {
        deadline = rdtsc() + clock::tsc_hz() / 1000 * 3;
        arm(deadline);
        rdmsr(msr::TSC_DEADLINE) == deadline
    });
    check!(holds, "IA32_TSC_DEADLINE holds what was written while it is ahead");
    while irq::seen(VECTOR) == 0 {
        cpu::sti_hlt_cli();
    }
    check!(rdtsc() >= deadline, "a deadline is not early");
    check!(eq rdmsr(msr::TSC_DEADLINE), 0, "IA32_TSC_DEADLINE is 0 once it is reached");

    irq::reset(VECTOR);
    arm(1);
    cpu::sti();
    let at_once = clock::wait_until(100, || irq::seen(VECTOR) == 1);
    cpu::cli();
    check!(at_once, "a deadline in the past interrupts at once");

    irq::reset(VECTOR);
    arm(rdtsc() + clock::tsc_hz() / 1000 * 3);
    arm(0);
    cpu::sti();
    clock::wait(6);
    cpu::cli();
    check!(eq irq::seen(VECTOR), 0, "a deadline of 0 disarms the timer");
    apic.stop_timer();
}

/// Whether two values differ by at most `percent` of the second.
fn within(percent: u64, a: u64, b: u64) -> bool {
    a.abs_diff(b) <= b / 100 * percent
}

fn rate(ticks_per_ms: u32) {
    if cpuid(0, 0).eax < 0x15 || cpuid(0x15, 0).ecx == 0 {
        skip!("leaf 15H is not offered");
        return;
    }
    let crystal_per_ms = cpuid(0x15, 0).ecx / 1000;
    check!(
        within(5, ticks_per_ms.into(), crystal_per_ms.into()),
        "the APIC timer's {ticks_per_ms} ticks in a ms are leaf 15H's crystal clock of {crystal_per_ms}"
    );
}

fn kvmclock(apic: &Lapic, ticks_per_ms: u32) {
    clock::enable_kvmclock();
    let first = clock::kvmclock();
    check!(first.version.is_multiple_of(2) && first.version != 0, "kvmclock's page has been written");
    let mut last = first.now_ns;
    let mut falls = 0;
    for round in 0..1000 {
        if round % 100 == 0 {
            apic.start_timer(VECTOR, 0, ticks_per_ms / 4);
            cpu::sti_hlt_cli();
        }
        let now = clock::kvmclock().now_ns;
        falls += u32::from(now < last);
        last = now;
    }
    check!(eq falls, 0, "kvmclock never goes back, across HLT either");

    let (tsc, ns) = (rdtsc(), clock::kvmclock().now_ns);
    clock::wait(50);
    let (ticks, passed) = (rdtsc() - tsc, clock::kvmclock().now_ns - ns);
    let expected = (u128::from(ticks) * 1_000_000_000 / u128::from(first.tsc_hz)) as u64;
    check!(within(1, passed, expected), "kvmclock's {passed} ns are the TSC's {expected} ns");

    let second = |_| {
        let now = rtc_second();
        apic.doze_until(VECTOR, ticks_per_ms, 1500, || rtc_second() != now);
        clock::kvmclock().now_ns
    };
    let [begin, end] = [0, 1].map(second);
    check!(within(5, end - begin, 1_000_000_000), "a second of the RTC is {} ns of kvmclock", end - begin);
    clock::disable_kvmclock();
}

fn rtc_register(index: u8) -> u8 {
    port::outb(0x70, index);
    port::inb(0x71)
}

fn rtc_second() -> u8 {
    rtc_register(0)
}

/// Seconds since midnight by the RTC.
fn rtc_time_of_day() -> u64 {
    let binary = rtc_register(0x0b) & 4 != 0;
    [4, 2, 0].into_iter().fold(0, |seconds, index| {
        let value = u64::from(rtc_register(index) & 0x7f);
        seconds * 60 + if binary { value } else { (value >> 4) * 10 + (value & 15) }
    })
}

fn wall_clock() {
    /// 1 January 1999: emulators start their clocks about a year later when they repeat a run exactly.
    const YEAR_1999: u32 = 915_148_800;
    clock::enable_kvmclock();
    let (boot, nanoseconds) = clock::wall_clock();
    check!(
        boot > YEAR_1999 && nanoseconds < 1_000_000_000,
        "the wall clock says that boot was {boot} s after 1970"
    );
    let now = u64::from(boot) + (u64::from(nanoseconds) + clock::kvmclock().now_ns) / 1_000_000_000;
    let apart = (now % 86_400).abs_diff(rtc_time_of_day());
    check!(apart.min(86_400 - apart) <= 2, "wall clock and RTC are at most 2 s apart: {apart}");
}
