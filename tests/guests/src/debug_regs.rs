//! Hardware breakpoints, single step, INT3 and INT1.

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use trt::debug::{self, Watch};
use trt::trap::{self, BREAKPOINT, DEBUG, Frame};
use trt::{check, cpu, irq, port, skip};

static HITS: AtomicU32 = AtomicU32::new(0);
static LAST_RIP: AtomicU64 = AtomicU64::new(0);
static LAST_DR6: AtomicU64 = AtomicU64::new(0);

static WATCHED: AtomicU32 = AtomicU32::new(0);
static WATCHED_LONG: AtomicU64 = AtomicU64::new(0);

fn on_debug(frame: &mut Frame) {
    HITS.fetch_add(1, Relaxed);
    LAST_RIP.store(frame.rip, Relaxed);
    LAST_DR6.store(debug::dr6(), Relaxed);
    debug::set_dr6(0xffff_0ff0);
    // An instruction breakpoint is a fault: let the instruction run this time.
    frame.rflags |= debug::RFLAGS_RF;
}

fn hits(body: impl FnOnce()) -> u32 {
    HITS.store(0, Relaxed);
    body();
    HITS.load(Relaxed)
}

/// The guest.
pub fn run() {
    trap::set_handler(DEBUG, Some(on_debug));
    registers_hold();
    execution();
    data();
    stepping();
    breakpoints();
}

/// Exits, after which the processor may have had other debug registers in between.
fn exits() {
    for round in 0..20 {
        cpu::cpuid(0, 0);
        port::outb(0x80, round);
    }
}

fn registers_hold() {
    debug::set_dr0(0x1111_0000);
    debug::set_dr1(0x2222_0000);
    debug::set_dr2(0x3333_0000);
    debug::set_dr3(0x4444_0000);
    exits();
    let seen = (debug::dr0(), debug::dr1(), debug::dr2(), debug::dr3());
    check!(eq seen, (0x1111_0000, 0x2222_0000, 0x3333_0000, 0x4444_0000), "DR0 to DR3 survive exits");
    debug::set_dr6(0xffff_0ff0 | 0b0101);
    exits();
    check!(eq debug::dr6() & debug::DR6_HIT, 0b0101, "DR6 survives exits");
    let dr7 = debug::dr7_enable(3, Watch::Write4);
    debug::set_dr7(dr7);
    exits();
    check!(eq debug::dr7(), dr7, "DR7 survives exits");
    debug::set_dr7(0x400);
}

fn execution() {
    let target = debug::target as *const () as u64;
    debug::set_dr1(target);
    debug::set_dr7(debug::dr7_enable(1, Watch::Execute));
    let mut result = 0;
    let call = black_box(debug::target as extern "C" fn(u64) -> u64);
    let count = hits(|| {
        exits();
        result = call(41);
        exits();
        result += call(0);
    });
    debug::set_dr7(0x400);
    check!(eq count, 2, "a breakpoint on an instruction stops at it each time, across exits");
    check!(eq LAST_RIP.load(Relaxed), target, "it stops before the instruction");
    check!(eq LAST_DR6.load(Relaxed) & debug::DR6_HIT, 0b0010, "DR6 names the breakpoint");
    check!(eq result, 43, "the instruction runs afterwards");
    check!(eq hits(|| result = call(1)), 0, "a disabled breakpoint does not stop");
}

fn data() {
    debug::set_dr2(WATCHED.as_ptr() as u64);
    debug::set_dr7(debug::dr7_enable(2, Watch::Write4));
    let writes = hits(|| {
        exits();
        WATCHED.store(1, Relaxed);
    });
    check!(eq writes, 1, "a breakpoint on writes stops after one, across exits");
    check!(eq LAST_DR6.load(Relaxed) & debug::DR6_HIT, 0b0100, "DR6 names the breakpoint on writes");
    let mut seen = 0;
    let reads = hits(|| seen = WATCHED.load(Relaxed));
    check!(eq(reads, seen), (0, 1), "a breakpoint on writes lets reads pass");

    debug::set_dr0(WATCHED_LONG.as_ptr() as u64);
    debug::set_dr7(debug::dr7_enable(0, Watch::Access8));
    let reads = hits(|| {
        black_box(WATCHED_LONG.load(Relaxed));
    });
    debug::set_dr7(0x400);
    check!(eq reads, 1, "a breakpoint on accesses stops after a read");
}

fn stepping() {
    let mut expected = 0;
    let steps = hits(|| expected = debug::single_step());
    check!(eq u64::from(steps), expected, "single step stops after each instruction, exits among them");
    check!(LAST_DR6.load(Relaxed) & debug::DR6_SINGLE_STEP != 0, "DR6 names the single step");
}

fn breakpoints() {
    irq::count_only(BREAKPOINT);
    debug::int3();
    check!(eq irq::seen(BREAKPOINT), 1, "INT3 raises #BP");
    let mut known = true;
    let hit = hits(|| known = trap::catch(debug::int1).is_ok());
    if known {
        check!(eq hit, 1, "INT1 raises #DB");
    } else {
        skip!("this processor does not know INT1, as QEMU's does not");
    }
}
