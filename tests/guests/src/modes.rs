//! The same exits in every mode a processor has.

use trt::lapic::Lapic;
use trt::modes::{self, Mode, Outcome, SOFTWARE_VECTOR, TIMER_VECTOR};
use trt::{check, cpu, irq, is_nacre};

/// The guest.
pub fn run() {
    let apic = Lapic::enable_best();
    let ticks = apic.ticks_per_ms();
    let ebx = cpu::cpuid(0, 0).ebx;
    let port = if is_nacre() { 0xe9 } else { trt::port::inb(0xe9).into() };
    for mode in [Mode::Compatibility, Mode::Pae, Mode::Protected32, Mode::Protected16, Mode::Real] {
        irq::count_only(SOFTWARE_VECTOR);
        irq::count(TIMER_VECTOR);
        apic.start_timer(TIMER_VECTOR, 0, ticks * 2);
        let Outcome { cpuid_ebx, port_value, mut software_interrupts, mut timer_interrupts, done } =
            modes::run(mode);
        if mode == Mode::Compatibility {
            software_interrupts = irq::seen(SOFTWARE_VECTOR);
            timer_interrupts = irq::seen(TIMER_VECTOR);
        } else {
            apic.eoi();
        }
        check!(eq done, 1, "{mode:?}: the code came to its end");
        check!(eq cpuid_ebx, ebx, "{mode:?}: CPUID gives what it gives in 64-bit mode");
        check!(eq port_value, port, "{mode:?}: IN gives what it gives in 64-bit mode");
        check!(eq software_interrupts, 1, "{mode:?}: INT 42H reaches its handler once");
        check!(eq timer_interrupts, 1, "{mode:?}: a timer interrupt ends HLT once");
    }
}
