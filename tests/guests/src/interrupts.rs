//! Interrupts: priorities, windows, shadows, the I/O APIC, NMIs; in xAPIC and in x2APIC mode.
//!
//! `nmi=exits` on the command line is for a machine on which the guest keeps its CPU while interrupts are off: it exits while it
//! waits for an NMI.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use trt::lapic::{self, Lapic, Mode, reg};
use trt::serial::{COM1, IER, IIR_FCR};
use trt::trap::{self, Frame, NMI};
use trt::{check, clock, cpu, debug, ioapic, irq, port, pvh, skip};

const LOW: u8 = 0x41;
const MIDDLE: u8 = 0x61;
const HIGH: u8 = 0x91;

/// The guest.
pub fn run() {
    for mode in [Mode::Xapic, Mode::X2apic] {
        if mode == Mode::X2apic && !lapic::has_x2apic() {
            skip!("x2APIC mode is not offered");
            continue;
        }
        let apic = Lapic::enable(mode);
        self_ipis(&apic);
        destinations(&apic);
        priorities(&apic);
        task_priority(&apic);
        windows(&apic);
        nested(&apic);
        io_apic(&apic);
        nmis(&apic);
    }
    software();
}

/// Lets what is pending arrive.
fn open_window() {
    cpu::sti_nop_cli();
}

fn count_all() {
    for vector in [LOW, MIDDLE, HIGH] {
        irq::count(vector);
    }
    irq::reset_order();
}

fn self_ipis(apic: &Lapic) {
    let mode = apic.mode();
    count_all();
    apic.send_self(LOW);
    check!(apic.vector_bit(reg::IRR, LOW), "{mode:?}: an IPI to self is requested");
    check!(eq irq::seen(LOW), 0, "{mode:?}: it does not arrive with interrupts off");
    open_window();
    check!(eq irq::seen(LOW), 1, "{mode:?}: it arrives when interrupts are switched on");
    let left = apic.vector_bit(reg::IRR, LOW) || apic.vector_bit(reg::ISR, LOW);
    check!(!left, "{mode:?}: after its end it is neither requested nor in service");
    cpu::sti();
    apic.send_self(LOW);
    let arrived = clock::wait_until(100, || irq::seen(LOW) == 2);
    cpu::cli();
    check!(arrived, "{mode:?}: an IPI to self arrives with interrupts on");
    if mode == Mode::X2apic {
        apic.write(reg::SELF_IPI, MIDDLE.into());
        open_window();
        check!(eq irq::seen(MIDDLE), 1, "{mode:?}: the self IPI register sends one");
    }
    apic.send_self(LOW);
    apic.send_self(LOW);
    irq::reset(LOW);
    open_window();
    open_window();
    check!(eq irq::seen(LOW), 1, "{mode:?}: two requests of one vector are one interrupt");
}

fn destinations(apic: &Lapic) {
    let mode = apic.mode();
    count_all();
    apic.send(apic.id(), LOW.into());
    open_window();
    check!(eq irq::seen(LOW), 1, "{mode:?}: an IPI to our own APIC ID arrives");
    let logical = match mode {
        Mode::Xapic => {
            apic.write(reg::LDR, 0x0400_0000);
            0x04
        }
        Mode::X2apic => apic.read(reg::LDR),
    };
    apic.send(logical, lapic::LOGICAL | u32::from(MIDDLE));
    open_window();
    check!(eq irq::seen(MIDDLE), 1, "{mode:?}: an IPI to our logical destination {logical:#x} arrives");
    apic.send(0, lapic::TO_ALL | u32::from(HIGH));
    open_window();
    check!(eq irq::seen(HIGH), 1, "{mode:?}: an IPI to all including self arrives");
    apic.send(apic.id() + 1, LOW.into());
    open_window();
    check!(eq irq::seen(LOW), 1, "{mode:?}: an IPI to another APIC ID does not");
}

fn priorities(apic: &Lapic) {
    count_all();
    for vector in [LOW, HIGH, MIDDLE] {
        apic.send_self(vector);
    }
    cpu::sti();
    let all = clock::wait_until(100, || irq::order(2).is_some());
    cpu::cli();
    check!(all, "{:?}: three pending interrupts arrive", apic.mode());
    check!(
        eq [0, 1, 2].map(irq::order), [Some(HIGH), Some(MIDDLE), Some(LOW)],
        "{:?}: the highest vector comes first", apic.mode(),
    );
}

fn task_priority(apic: &Lapic) {
    let mode = apic.mode();
    count_all();
    apic.write(reg::TPR, 0x60);
    check!(eq cpu::cr8(), 6, "{mode:?}: CR8 shows the task priority");
    check!(
        eq apic.read(reg::PPR), 0x60,
        "{mode:?}: with nothing in service the processor priority is the task priority",
    );
    for vector in [LOW, MIDDLE, HIGH] {
        apic.send_self(vector);
    }
    open_window();
    open_window();
    check!(
        eq(irq::seen(LOW), irq::seen(MIDDLE), irq::seen(HIGH)),
        (0, 0, 1),
        "{mode:?}: the task priority holds back its class and those below"
    );
    cpu::set_cr8(5);
    check!(eq apic.read(reg::TPR), 0x50, "{mode:?}: a write to CR8 changes the task priority");
    open_window();
    open_window();
    check!(eq(irq::seen(LOW), irq::seen(MIDDLE)), (0, 1), "{mode:?}: CR8 lets the next class in");
    cpu::sti();
    cpu::set_cr8(0);
    let arrived = clock::wait_until(100, || irq::seen(LOW) == 1);
    cpu::cli();
    check!(arrived, "{mode:?}: CR8 lets the last one in with interrupts on");
}

fn windows(apic: &Lapic) {
    let mode = apic.mode();
    count_all();
    // What the VMM still has to do for the lines before, as showing them, is over by then. An entry while the interrupt is pending would be
    // one more thing that is tested here, and Bochs 2.7 fails that with APIC virtualization.
    clock::wait(50);
    apic.send_self(LOW);
    for _ in 0..100 {
        cpu::sti_cli();
    }
    check!(eq irq::seen(LOW), 0, "{mode:?}: no interrupt arrives between STI and CLI");
    let expected = cpu::sti_nop_cli();
    check!(eq irq::seen(LOW), 1, "{mode:?}: one instruction after STI it does");
    check!(eq irq::last_rip(), expected, "{mode:?}: it arrives behind that instruction");

    apic.send_self(LOW);
    cpu::sti_hlt_cli();
    check!(eq irq::seen(LOW), 2, "{mode:?}: STI; HLT wakes for an interrupt that is pending already");
    let ticks = apic.ticks_per_ms();
    irq::count(MIDDLE);
    for _ in 0..20 {
        apic.start_timer(MIDDLE, 0, ticks / 10);
        cpu::sti_hlt_cli();
    }
    check!(eq irq::seen(MIDDLE), 20, "{mode:?}: STI; HLT wakes for each of 20 timer interrupts");
    apic.stop_timer();
}

static NESTED_PPR: AtomicU32 = AtomicU32::new(0);
static NESTED_BY_HIGH: AtomicBool = AtomicBool::new(false);
static NESTED_BY_LOW: AtomicBool = AtomicBool::new(false);

/// In service with interrupts on: a higher vector comes in, a lower one does not.
fn interruptible(_: &mut Frame) {
    let apic = Lapic::current();
    NESTED_PPR.store(apic.read(reg::PPR), Relaxed);
    apic.send_self(LOW);
    apic.send_self(HIGH);
    open_window();
    open_window();
    NESTED_BY_HIGH.store(irq::seen(HIGH) == 1, Relaxed);
    NESTED_BY_LOW.store(irq::seen(LOW) != 0, Relaxed);
    apic.eoi();
}

fn nested(apic: &Lapic) {
    let mode = apic.mode();
    count_all();
    trap::set_handler(MIDDLE, Some(interruptible));
    apic.send_self(MIDDLE);
    open_window();
    open_window();
    check!(
        eq NESTED_PPR.load(Relaxed), u32::from(MIDDLE & 0xf0),
        "{mode:?}: in service, the processor priority is the vector's class",
    );
    check!(NESTED_BY_HIGH.load(Relaxed), "{mode:?}: a higher vector interrupts a handler");
    check!(!NESTED_BY_LOW.load(Relaxed), "{mode:?}: a lower vector does not");
    check!(eq irq::seen(LOW), 1, "{mode:?}: the lower vector arrives after the end of the handler's");
    trap::set_handler(MIDDLE, None);
}

const UART_LINE: u32 = 4;
const THR_EMPTY: u8 = 2;
static UART_INTERRUPTS: AtomicU32 = AtomicU32::new(0);
static UART_REASON: AtomicU32 = AtomicU32::new(0);
static UART_ENTRY: AtomicU32 = AtomicU32::new(0);

/// Takes a UART interrupt whose reason is gone once it was read.
fn uart(_: &mut Frame) {
    UART_INTERRUPTS.fetch_add(1, Relaxed);
    UART_ENTRY.store(ioapic::entry(UART_LINE) as u32, Relaxed);
    UART_REASON.store(u32::from(port::inb(COM1 + IIR_FCR)) & 0xf, Relaxed);
    Lapic::current().eoi();
}

fn io_apic(apic: &Lapic) {
    let mode = apic.mode();
    trap::set_handler(MIDDLE, Some(uart));
    let destination = u64::from(apic.id()) << 56;
    for (trigger, flags) in [("edge", 0), ("level", ioapic::LEVEL)] {
        UART_INTERRUPTS.store(0, Relaxed);
        let entry = destination | flags | u64::from(MIDDLE);
        ioapic::set_entry(UART_LINE, entry | ioapic::MASKED);
        port::outb(COM1 + IER, THR_EMPTY);
        clock::wait(2);
        open_window();
        port::outb(COM1 + IER, 0);
        check!(eq UART_INTERRUPTS.load(Relaxed), 0, "{mode:?}, {trigger}: a masked line interrupts nobody");
        clock::wait(2);

        ioapic::set_entry(UART_LINE, entry);
        port::outb(COM1 + IER, THR_EMPTY);
        cpu::sti();
        let arrived = clock::wait_until(100, || UART_INTERRUPTS.load(Relaxed) != 0);
        clock::wait(2);
        cpu::cli();
        let ended = ioapic::entry(UART_LINE) & ioapic::REMOTE_IRR == 0;
        // Before anything is printed: that would be the next interrupt.
        port::outb(COM1 + IER, 0);
        ioapic::set_entry(UART_LINE, ioapic::MASKED);

        check!(arrived, "{mode:?}, {trigger}: an empty transmitter interrupts");
        check!(eq UART_INTERRUPTS.load(Relaxed), 1, "{mode:?}, {trigger}: it does so once");
        check!(eq UART_REASON.load(Relaxed), 2, "{mode:?}, {trigger}: the UART names the reason");
        let remote_irr = u64::from(UART_ENTRY.load(Relaxed)) & ioapic::REMOTE_IRR != 0;
        check!(
            eq remote_irr, flags != 0,
            "{mode:?}, {trigger}: only a level-triggered interrupt shows in its entry as accepted",
        );
        check!(ended, "{mode:?}, {trigger}: it no longer does after its end");
    }
    trap::set_handler(MIDDLE, None);
}

static NMIS: AtomicU32 = AtomicU32::new(0);
static NMI_DEPTH: AtomicU32 = AtomicU32::new(0);
static NMI_NESTED: AtomicBool = AtomicBool::new(false);

/// The first NMI sends a second one, which has to wait for the first one's IRET.
fn on_nmi(_: &mut Frame) {
    if NMI_DEPTH.fetch_add(1, Relaxed) != 0 {
        NMI_NESTED.store(true, Relaxed);
    }
    if NMIS.fetch_add(1, Relaxed) == 0 {
        send_nmi(&Lapic::current());
        for _ in 0..10 {
            cpu::cpuid(0, 0);
        }
    }
    NMI_DEPTH.fetch_sub(1, Relaxed);
}

fn send_nmi(apic: &Lapic) {
    apic.send(apic.id(), lapic::DELIVER_NMI);
}

fn nmis(apic: &Lapic) {
    let mode = apic.mode();
    NMIS.store(0, Relaxed);
    NMI_NESTED.store(false, Relaxed);
    trap::set_handler(NMI, Some(on_nmi));
    send_nmi(apic);
    let must_exit = pvh::option("nmi") == Some("exits");
    let both = clock::wait_until(100, || {
        // SVM without virtual NMIs lets the second one in at the first exit after the handler's IRET, whatever it is.
        if must_exit {
            port::outb(0x80, 0);
        }
        NMIS.load(Relaxed) == 2
    });
    check!(both, "{mode:?}: an NMI arrives with interrupts off, and one sent meanwhile after it");
    check!(!NMI_NESTED.load(Relaxed), "{mode:?}: an NMI does not interrupt the handler of another");
}

fn software() {
    irq::count_only(0x42);
    debug::int_0x42();
    check!(eq irq::seen(0x42), 1, "INT 42H goes through the gate with interrupts off");
}
