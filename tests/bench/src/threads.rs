//! What goes from one thread to another: by an interrupt, by the end of a time slice, from CPU to CPU.

use crate::error::{Failure, Result};
use crate::report::{self, Report};
use crate::stopwatch::{mark, now};
use bench_protocol::{Samples, Summary};
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use usys::abi::Rights;
use usys::abi::boot_info::{BootInfo, Machine, root};
use usys::cap::{Cap, Irqs, Narrow, Ntfn, Ports, Sm};
use usys::lock::Mutex;
use usys::object::{FOREVER, Schedule, Trigger};
use usys::port::PortRange;
use usys::{process, selector, thread};

/// Priority of the threads that are interrupted.
const LOW: u8 = 10;

/// Measures them all.
pub fn measure(report: &Report, info: &BootInfo) {
    // QEMU's gdb server holds interrupts back while it steps, and other CPUs: there nothing of this can be traced.
    let is_traceable = info.machine & Machine::VMX.bits() != 0;
    report.measure("irq.to_thread", || interrupt(is_traceable));
    report.measure("timer.preempt", || preempt(info.tsc_hz, is_traceable));
    if info.cpu_count > 1 {
        report.measure("signal.cross_cpu", signal_other_cpu);
    }
}

/// When the last thing happened that somebody waits for: the low half of the TSC.
static LAST: AtomicU32 = AtomicU32::new(0);
/// What happens next is between markers.
static IS_MARKED: AtomicBool = AtomicBool::new(false);

fn new_semaphore() -> Result<Cap<Sm>> {
    Ok(process::pool().create_sm(selector::allocate()?, 0)?)
}

/// Remembers the moment, or marks it.
fn begin() {
    if IS_MARKED.load(Ordering::Relaxed) {
        mark();
    }
    LAST.store(now() as u32, Ordering::Relaxed);
}

/// Ticks since [`begin`], in whatever thread.
fn end() -> u32 {
    let now = now() as u32;
    if IS_MARKED.swap(false, Ordering::Relaxed) {
        mark();
    }
    now.wrapping_sub(LAST.load(Ordering::Relaxed))
}

/// Samples of what [`begin`] to [`end`] took, then, if `op` is traceable, once more between markers.
fn sample(op: Option<&str>, mut once: impl FnMut() -> Result<u32>) -> Result<Summary> {
    let mut samples = Samples::new();
    while !samples.is_full() {
        samples.push(once()?);
    }
    if let Some(op) = op {
        Report::announce(op);
        IS_MARKED.store(true, Ordering::Relaxed);
        once()?;
    }
    report::summary(samples, 0)
}

/// From the instruction that makes a device interrupt, in a thread of low priority, to the first instruction of the
/// thread that waits for it. The device is COM1: it interrupts as soon as that is enabled while it has nothing to send.
fn interrupt(is_traceable: bool) -> Result<Summary> {
    const COM1: u16 = 0x3f8;
    const COM1_IRQ: u64 = 4;
    const ENABLE: u16 = 1;
    const IDENTIFICATION: u16 = 2;
    const MODEM: u16 = 4;
    const TRANSMITTER: u8 = 2;
    const OUT2_RTS_DTR: u8 = 0xb;

    let ports: Cap<Ports> = Cap::new(root::PORTS);
    ports.map(process::pd(), COM1.into(), 8)?;
    let com1 = PortRange::new(COM1, 8);
    com1.write(MODEM, OUT2_RTS_DTR);
    com1.write(ENABLE, 0);

    let events: Cap<Ntfn> = process::pool().create_ntfn(selector::allocate()?)?;
    let raised = events.derive(selector::allocate()?, Narrow::rights(Rights::SIGNAL).badge(1))?;
    let irqs: Cap<Irqs> = Cap::new(root::IRQS);
    irqs.bind(COM1_IRQ, raised, Trigger::Edge)?;

    let go = new_semaphore()?;
    let low = thread::spawn(0, Schedule::whole(LOW), move || -> Infallible {
        loop {
            if go.down(FOREVER).is_ok() {
                begin();
                com1.write(ENABLE, TRANSMITTER);
            }
        }
    })?;
    let summary = sample(is_traceable.then_some("irq.to_thread"), || {
        go.up()?;
        let bits = events.wait(FOREVER);
        let ticks = end();
        if bits? != 1 {
            return Err(Failure::new("another interrupt than that of COM1"));
        }
        com1.write(ENABLE, 0);
        com1.read(IDENTIFICATION);
        irqs.acknowledge(COM1_IRQ)?;
        Ok(ticks)
    });
    low.ec.delete()?;
    raised.delete()?;
    summary
}

/// From a signal on one CPU to the first instruction of the thread that waits for it on another, idle one.
fn signal_other_cpu() -> Result<Summary> {
    let (go, done) = (new_semaphore()?, new_semaphore()?);
    static TICKS: AtomicU32 = AtomicU32::new(0);
    let other = thread::spawn(1, Schedule::whole(LOW), move || -> Infallible {
        loop {
            if go.down(FOREVER).is_ok() {
                TICKS.store(end(), Ordering::Relaxed);
                let _ = done.up();
            }
        }
    })?;
    let summary = sample(None, || {
        // Until the other CPU is idle again.
        let until = now() + 20_000;
        while now() < until {}
        begin();
        go.up()?;
        done.down(FOREVER)?;
        Ok(TICKS.load(Ordering::Relaxed))
    });
    other.ec.delete()?;
    summary
}

/// More than a look at the time takes, less than any way through the kernel.
const GAP: u32 = 60;
/// When the running thread's slice began: the low half of the TSC.
static SLICE_BEGAN: AtomicU32 = AtomicU32::new(0);
static GAPS: Mutex<Samples> = Mutex::new(Samples::new());

/// Looks at the time until the last look is long ago: another thread ran. Towards the end of a slice, `late` ticks after its
/// beginning, comes the first marker if one is wanted. Returns how long ago, and what one look takes.
#[inline(never)]
fn spin(late: u32) -> (u32, u32) {
    let mut shortest = GAP;
    loop {
        let now = now() as u32;
        let ticks = now.wrapping_sub(LAST.load(Ordering::Relaxed));
        LAST.store(now, Ordering::Relaxed);
        if ticks >= GAP {
            SLICE_BEGAN.store(now, Ordering::Relaxed);
            return (ticks, shortest);
        }
        shortest = shortest.min(ticks);
        if late != 0
            && now.wrapping_sub(SLICE_BEGAN.load(Ordering::Relaxed)) > late
            && IS_MARKED.load(Ordering::Relaxed)
        {
            IS_MARKED.store(false, Ordering::Relaxed);
            IS_OPEN.store(true, Ordering::Relaxed);
            mark();
        }
    }
}

/// The first marker was passed, the second one was not.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// From the last instruction of a thread to the first one of its equal, at the end of a time slice.
fn preempt(tsc_hz: u64, is_traceable: bool) -> Result<Summary> {
    const SLICE_US: u64 = 100;
    const SLICE: Schedule = Schedule { priority: LOW, budget_us: SLICE_US, period_us: SLICE_US };
    static LOOK: AtomicU32 = AtomicU32::new(0);
    // The first marker comes in the last twentieth of a slice.
    let late = (tsc_hz * SLICE_US / 1_000_000 * 19 / 20) as u32;
    let done = new_semaphore()?;
    let body = move || -> Infallible {
        let mut round = 0u32;
        loop {
            round = round.wrapping_add(1);
            let (ticks, look) = spin(late);
            if IS_OPEN.load(Ordering::Relaxed) {
                mark();
                IS_OPEN.store(false, Ordering::Relaxed);
                let _ = done.up();
            }
            // A whole slice: the thread was interrupted between looking and saying so.
            if ticks < late && take_gap(ticks) {
                LOOK.store(look, Ordering::Relaxed);
                let _ = done.up();
            }
            // The next slice is to end at another instruction of the loop: always the same may be one at which no gap is seen.
            (0..(ticks ^ round) % 13).for_each(|_| core::hint::spin_loop());
            // What was done here is no gap.
            LAST.store(now() as u32, Ordering::Relaxed);
        }
    };
    let threads = [thread::spawn(0, SLICE, body)?, thread::spawn(0, SLICE, body)?];
    let mut is_done = done.down(FOREVER)?;
    if is_traceable {
        Report::announce("timer.preempt");
        IS_MARKED.store(true, Ordering::Relaxed);
        is_done &= done.down(FOREVER)?;
    }
    for own in threads {
        own.ec.delete()?;
    }
    if !is_done {
        return Err(Failure::new("no end"));
    }
    let gaps = GAPS.lock().clone();
    report::summary(gaps, LOOK.load(Ordering::Relaxed).into())
}

/// Takes a sample; says whether it was the last one.
fn take_gap(ticks: u32) -> bool {
    match GAPS.try_lock() {
        Some(mut gaps) if !gaps.is_full() => {
            gaps.push(ticks);
            gaps.is_full()
        }
        _ => false,
    }
}
