//! A balloon by its driver: gives the pages that it is asked for while a VM beside it needs memory, takes them back when nobody does
//! any more, and finds them zero. With `mode=greedy` on the command line it takes them back, and uses them, while they are another's:
//! that ends this VM.

use core::cell::UnsafeCell;
use guest_pv_driver::abi::device::{Interrupt, Kind};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{Balloon, Machine, OneToOne, QueueMemory};
use tproto::balloon;
use trt::lapic::Lapic;
use trt::pvh::Region;
use trt::{check, clock, cpu, irq, pvh};

const VECTOR: u8 = 0x48;
const PAGE: u64 = 4096;
/// What is given at once.
const PIECE_PAGES: u64 = 512;
const PIECE_BYTES: u64 = PIECE_PAGES * PAGE;
/// How long the other VM may take to start, in ms.
const WAIT_MS: u64 = 200;

struct Memory(UnsafeCell<QueueMemory>);

// SAFETY: one CPU, and it is taken once.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(QueueMemory::new()));

/// The guest.
pub fn run() {
    let leaf = |leaf| {
        let regs = cpu::cpuid(leaf, 0);
        [regs.eax, regs.ebx, regs.ecx, regs.edx]
    };
    // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
    let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
    // SAFETY: this is the only place that uses the memory, once.
    let memory = unsafe { &mut *MEMORY.0.get() };
    let at = Machine::detect(leaf).and_then(|machine| machine.find(&hal, Kind::Balloon, 0));
    let Some(Ok(mut balloon)) = at.map(|at| Balloon::new(hal, at, memory)) else {
        check!(false, "there is a balloon");
        return;
    };
    let ram = pvh::memory_map().iter().filter(|region| region.is_ram());
    let top = ram.map(Region::end).max().unwrap_or(0) & !(PIECE_BYTES - 1);
    Lapic::enable_best();
    irq::count(VECTOR);
    let interrupt = Interrupt { vector: VECTOR, apic_id: Lapic::current().id() };
    balloon.device().set_interrupt(Some(interrupt));
    let target = wait_for(&balloon, |target| target > 0);
    check!(target > 0, "the host asks for {target} pages, and says so by an interrupt");
    // The last pieces of RAM, where this guest has nothing.
    let start = (top - target * PAGE) & !(PIECE_BYTES - 1);
    fill(start, top);
    let pieces = || (start..top).step_by(PIECE_BYTES as usize);
    // SAFETY: nothing but what was filled is there.
    let given = pieces().all(|piece| unsafe { balloon.give(piece, PIECE_PAGES) }.is_ok());
    check!(given, "the host gets them");
    if pvh::option("mode") == Some(balloon::GREEDY) {
        // The other VM starts meanwhile.
        clock::wait(WAIT_MS);
    } else {
        check!(eq wait_for(&balloon, |target| target == 0), 0, "it needs them no more");
    }
    check!(pieces().all(|piece| balloon.take(piece, PIECE_PAGES).is_ok()), "{}", balloon::BACK);
    // SAFETY: RAM, this guest's again.
    let nonzero = words(start, top).filter(|word| unsafe { word.read_volatile() != 0 });
    check!(eq nonzero.count(), 0, "they are zero");
    fill(start, top);
}

/// The first word of every page.
fn words(start: u64, end: u64) -> impl Iterator<Item = *mut u64> {
    (start..end).step_by(PAGE as usize).map(|page| page as *mut u64)
}

/// Writes to every page.
fn fill(start: u64, end: u64) {
    for word in words(start, end) {
        // SAFETY: RAM that this guest does not use otherwise.
        unsafe { word.write_volatile(u64::MAX) };
    }
}

/// Sleeps until the host wants as many pages as is right; returns how many.
fn wait_for(balloon: &Balloon<OneToOne>, is_right: impl Fn(u64) -> bool) -> u64 {
    loop {
        // An interrupt that comes from here on ends the sleep below: they are off in between.
        let target = balloon.target();
        if is_right(target) {
            return target;
        }
        cpu::sti_hlt_cli();
    }
}
