//! Runs the tests on a thread of their own, and watches it.

use crate::call::{Sel, call};
use crate::check::{Check, Failure};
use crate::layout::{DONE, LOG, PD, ROOT_POOL, RUNNER_EC, RUNNER_SC, STACK_COUNT};
use crate::prelude::{CreateEc, CreateSc, CreateSm, LogWrite, Wait};
use crate::stretches::Recorder;
use crate::tests::{Group, Needs, Test};
use crate::threads;
use crate::world::World;
use alloc::format;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use hypercall_abi::regs::pack_ec_place;
use usys::abi::boot_info::{BootInfo, Machine};
use usys::cpu;
use usys::power::{self, Ending};

/// Priority of the thread that runs the tests.
pub const PRIORITY: u64 = 20;

/// How long a test may take, in seconds. The slowest takes a few on the slowest emulator.
const TIME_LIMIT: u64 = 120;

static INFO: AtomicPtr<BootInfo> = AtomicPtr::new(core::ptr::null_mut());
/// Tests begun so far, and which one runs: group and index.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static CURRENT: AtomicU64 = AtomicU64::new(0);
static PASSED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// One line of the log, of limited length.
struct Line {
    bytes: [u8; 400],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len + 1 < self.bytes.len() {
                self.bytes[self.len] = if byte == b'\n' { b' ' } else { byte };
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Writes a line to the kernel's log.
pub fn say(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 400], len: 0 };
    // A line that is too long is cut.
    let _ = line.write_fmt(text);
    line.bytes[line.len] = b'\n';
    line.len += 1;
    for chunk in line.bytes[..line.len].chunks(40) {
        let mut words = [chunk.len() as u64, 0, 0, 0, 0, 0];
        for (index, &byte) in chunk.iter().enumerate() {
            words[1 + index / 8] |= u64::from(byte) << (index % 8 * 8);
        }
        call(LogWrite, LOG, words);
    }
}

/// Runs everything and ends the machine.
pub fn run(info: &'static BootInfo) -> ! {
    INFO.store((info as *const BootInfo).cast_mut(), Ordering::Relaxed);
    let ending = match start() {
        Ok(()) => watch(info),
        Err(Failure(why)) => {
            say(format_args!("FAIL: the conformance task begins: {why}"));
            Ending::Failed
        }
    };
    power::off(ending)
}

fn start() -> Check {
    World::prepare(info())?;
    call(CreateSm, DONE, [ROOT_POOL, 0]).ok()?;
    let stack = threads::stack_top(STACK_COUNT - 1);
    let place = pack_ec_place(0, false);
    call(CreateEc, RUNNER_EC, [ROOT_POOL, PD, place, run_all as *const () as u64, stack - 8, 0]).ok()?;
    call(CreateSc, RUNNER_SC, [ROOT_POOL, RUNNER_EC, PRIORITY, 10_000, 10_000]).ok()?;
    Ok(())
}

/// Waits until the runner is through, or a test takes too long.
fn watch(info: &BootInfo) -> Ending {
    let second = info.tsc_hz;
    let (mut begun, mut seconds) = (0, 0);
    loop {
        if call(Wait, DONE, [cpu::now() + second]).ok().is_ok() {
            break;
        }
        let now = BEGUN.load(Ordering::Relaxed);
        seconds = if now == begun { seconds + 1 } else { 0 };
        begun = now;
        if seconds > TIME_LIMIT || threads::fault_of(RUNNER_EC).is_ok_and(|fault| fault.is_some()) {
            let test = test_at(CURRENT.load(Ordering::Relaxed));
            let why = match threads::fault_of(RUNNER_EC) {
                Ok(Some(fault)) => format!("it died: {fault:x?}"),
                _ => format!("got no end in {TIME_LIMIT} s expected one"),
            };
            say(format_args!("FAIL: {}: {why}", test.map_or("?".into(), Test::sentence)));
            FAILED.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    let (passed, failed) = (PASSED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed));
    say(format_args!("conformance: {passed} passed, {failed} failed"));
    if failed == 0 { Ending::Done } else { Ending::Failed }
}

fn info() -> &'static BootInfo {
    // SAFETY: the kernel's boot information stays mapped and does not change; `run` stored the pointer first.
    unsafe { &*INFO.load(Ordering::Relaxed) }
}

fn test_at(packed: u64) -> Option<&'static Test> {
    let group: &Group = crate::tests::ALL.get((packed >> 32) as usize)?;
    group.tests.get(packed as u32 as usize)
}

extern "C" fn run_all(_: u64) -> ! {
    let mut recorder = Recorder::new(info());
    for (number, group) in crate::tests::ALL.iter().enumerate() {
        for (index, test) in group.tests.iter().enumerate() {
            CURRENT.store((number as u64) << 32 | index as u64, Ordering::Relaxed);
            BEGUN.fetch_add(1, Ordering::Relaxed);
            match &mut recorder {
                // The trace is taken.
                Some(_) if group.name == crate::tests::trace::GROUP.name => {}
                Some(recorder) => recorder.record(test.name, || run_one(group, test)),
                None => run_one(group, test),
            }
        }
    }
    if let Some(recorder) = recorder {
        recorder.say();
    }
    call(hypercall_abi::Hypercall::Signal, DONE as Sel, []);
    threads::park()
}

fn run_one(group: &Group, test: &Test) {
    let info = info();
    let sentence = test.sentence();
    let machine = Machine::from_bits_truncate(info.machine);
    let why_not = match test.needs {
        Needs::Cpus(count) if info.cpu_count < count => Some("more CPUs"),
        Needs::Guests if !machine.intersects(Machine::VMX | Machine::SVM) => Some("virtualization"),
        Needs::GuestsOnTwoCpus if info.cpu_count < 2 => Some("more CPUs"),
        Needs::DmaSpaces if !machine.contains(Machine::DMA_SPACES) => Some("an IOMMU"),
        Needs::NoDmaSpaces if machine.contains(Machine::DMA_SPACES) => Some("a machine without an IOMMU"),
        _ => None,
    };
    if let Some(why_not) = why_not {
        say(format_args!("skipped: {sentence}: needs {why_not}"));
        return;
    }
    let begin = cpu::now();
    let result = World::open(info).and_then(|mut world| {
        let result = (test.run)(&mut world);
        let closed = world.close();
        result.and(closed)
    });
    let milliseconds = (cpu::now() - begin) / (info.tsc_hz / 1000).max(1);
    match result {
        Ok(()) => {
            PASSED.fetch_add(1, Ordering::Relaxed);
            say(format_args!("ok: {sentence} ({}, {milliseconds} ms)", group.name));
        }
        Err(Failure(why)) => {
            FAILED.fetch_add(1, Ordering::Relaxed);
            say(format_args!("FAIL: {sentence}: {why}"));
        }
    }
}
