//! Paravirtual devices by their drivers: found, started, used, abused and started again.
//!
//! The disk has 64 sectors; each 64-bit word of it says where it is. With `exit=N` on the command line the guest ends with N by
//! the control device.

use core::cell::UnsafeCell;
use core::fmt::Write;
use guest_pv_driver::abi::device::{Fault, Interrupt, Kind};
use guest_pv_driver::abi::op::{self, Status};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{
    Block, BlockDevice, Clock, Console, ConsoleMemory, Control, Entropy, Error, Machine, OneToOne,
    QueueMemory,
};
use tproto::{line, pv};
use trt::lapic::Lapic;
use trt::{check, clock, cpu, irq, pvh};

const VECTOR: u8 = 0x46;
const SECTOR: usize = 512;
/// An address without memory.
const NOWHERE: *mut u8 = core::ptr::without_provenance_mut(0xfd00_0000);

/// Memory for a driver, given away once.
struct Shared<T>(UnsafeCell<T>);

// SAFETY: one CPU, and each is taken once.
unsafe impl<T> Sync for Shared<T> {}

static CONSOLE: Shared<ConsoleMemory> = Shared(UnsafeCell::new(ConsoleMemory::new()));
static DISK: Shared<QueueMemory> = Shared(UnsafeCell::new(QueueMemory::new()));
static ENTROPY: Shared<QueueMemory> = Shared(UnsafeCell::new(QueueMemory::new()));
static CONTROL: Shared<QueueMemory> = Shared(UnsafeCell::new(QueueMemory::new()));

impl<T> Shared<T> {
    #[expect(clippy::mut_from_ref, reason = "each is taken by one driver at a time")]
    fn take(&'static self) -> &'static mut T {
        // SAFETY: each static is taken by one driver; where another is started on it, the one before is gone.
        unsafe { &mut *self.0.get() }
    }
}

/// The guest.
pub fn run() {
    let leaf = |leaf| {
        let regs = cpu::cpuid(leaf, 0);
        [regs.eax, regs.ebx, regs.ecx, regs.edx]
    };
    let Some(machine) = Machine::detect(leaf) else {
        check!(false, "CPUID tells of paravirtual devices");
        return;
    };
    // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
    let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
    let find = |kind| machine.find(&hal, kind, 0);
    if let Some(mut control) = find(Kind::Control).and_then(|at| Control::new(hal, at, CONTROL.take()).ok()) {
        check!(eq control.log(pv::LOGGED), Ok(()), "a line goes to the log");
        if let Some(code) = pvh::option("exit").and_then(|code| code.parse().ok()) {
            let _ = control.exit(code);
            check!(false, "the control device ends the VM");
        }
    } else {
        check!(false, "there is a control device");
    }
    Lapic::enable_best();
    irq::count(VECTOR);
    time(find(Kind::Clock).map(|at| Clock::new(hal, at)));
    match find(Kind::Entropy) {
        Some(at) => random(Entropy::new(hal, at, ENTROPY.take())),
        None => trt::skip!("the CPU has no random numbers"),
    }
    match find(Kind::Block) {
        Some(at) => disk(hal, at),
        None => check!(false, "there is a disk"),
    }
    match find(Kind::Console).map(|at| Console::new(hal, at, CONSOLE.take())) {
        Some(Ok(console)) => talk(console),
        other => check!(false, "there is a console: {other:?}"),
    }
}

fn time(found: Option<guest_pv_driver::Result<Clock>>) {
    let Some(Ok(time)) = found else {
        check!(false, "there is a clock");
        return;
    };
    let hz = clock::tsc_hz();
    check!(time.tsc_hz().abs_diff(hz) <= hz / 100, "the clock has the TSC's rate of {hz} Hz");
    clock::enable_kvmclock();
    let (seconds, _) = clock::wall_clock();
    let since_boot = time.nanoseconds(cpu::rdtsc()) / 1_000_000_000;
    match time.unix_nanoseconds(cpu::rdtsc()) {
        Some(unix) => {
            let ours = unix / 1_000_000_000;
            check!(
                ours.abs_diff(u64::from(seconds) + since_boot) <= 2,
                "it is {ours} s after 1970, as KVM's clock says"
            );
        }
        None => {
            check!(eq seconds, 0, "without a clock of the host, KVM's clock does not know the time either")
        }
    }
    clock::disable_kvmclock();
}

fn random(device: guest_pv_driver::Result<Entropy<OneToOne>>) {
    let Ok(mut device) = device else {
        check!(false, "the random number generator starts");
        return;
    };
    let mut bytes = [[0; 64]; 2];
    check!(eq device.fill(bytes.as_flattened_mut()), Ok(()), "random bytes fill a buffer");
    check!(bytes[0] != bytes[1] && bytes[0][..32] != bytes[0][32..], "they are not always the same");
}

/// What the disk holds in a word of a sector.
fn expected(sector: usize, word: usize) -> u64 {
    (sector * SECTOR + word * 8) as u64
}

fn holds(buffer: &[u64], sector: usize) -> bool {
    buffer.iter().enumerate().all(|(word, value)| *value == expected(sector, word))
}

fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: any bytes are words, and words are bytes.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

fn disk(hal: OneToOne, at: u64) {
    let Ok(mut disk) = Block::new(hal, at, DISK.take()) else {
        check!(false, "the disk starts");
        return;
    };
    check!(eq disk.sectors(), pv::SECTORS, "the disk has its size");
    let mut buffer = [0u64; 512];
    check!(eq disk.read(3, bytes_of(&mut buffer)), Ok(()), "eight sectors are read at once");
    check!(holds(&buffer, 3), "they hold what the host put there");
    buffer.fill(0x0123_4567_89ab_cdef);
    check!(eq disk.write(60, &bytes_of(&mut buffer)[..SECTOR]), Ok(()), "a sector is written");
    check!(eq disk.flush(), Ok(()), "the disk is flushed");
    buffer.fill(0);
    check!(eq disk.read(60, &mut bytes_of(&mut buffer)[..2 * SECTOR]), Ok(()), "it is read back");
    check!(buffer[63] == 0x0123_4567_89ab_cdef && buffer[64] == expected(61, 0), "nothing else was written");
    let end = disk.read(64, &mut bytes_of(&mut buffer)[..SECTOR]);
    check!(eq end, Err(Error::Failed(Status::OutOfRange)), "behind the end there is nothing");
    many(&mut disk);
    // SAFETY: there is no memory that the device could write.
    let submitted = unsafe { disk.submit(op::READ, 0, NOWHERE, SECTOR) };
    check!(submitted.is_ok(), "a buffer that is no memory can be submitted");
    disk.publish();
    check!(eq disk.collect(), Err(Error::Stopped(Some(Fault::Address))), "but it stops the device");
    drop(disk);
    let again = Block::new(hal, at, DISK.take()).map(|mut disk| disk.read(5, bytes_of(&mut buffer)));
    check!(eq again, Ok(Ok(())), "which works again after a reset");
    check!(holds(&buffer[..64], 5), "and has kept its content");
}

/// Requests in flight together, whose end an interrupt tells.
fn many(disk: &mut Block<OneToOne>) {
    let mut buffers = [[0u64; 64]; 40];
    let interrupt = Interrupt { vector: VECTOR, apic_id: Lapic::current().id() };
    disk.device().set_queue_interrupt(0, Some(interrupt));
    check!(eq disk.queue().request_interrupt(), Ok(true), "nothing has ended yet");
    for (sector, buffer) in buffers.iter_mut().enumerate() {
        // SAFETY: the buffers live until all requests have ended, below.
        let submitted = unsafe { disk.submit(op::READ, sector as u64, buffer.as_mut_ptr().cast(), SECTOR) };
        if submitted.is_err() {
            check!(false, "40 requests fit the queue");
        }
    }
    disk.publish();
    check!(
        clock::wait_until(1000, || {
            cpu::sti_nop_cli();
            irq::seen(VECTOR) > 0
        }),
        "an interrupt tells of the end of 40 requests"
    );
    let mut ended = 0;
    while let Ok(Some(completion)) = disk.collect() {
        ended += u32::from(completion.status == 0 && completion.len as usize == SECTOR);
    }
    check!(eq(ended, irq::seen(VECTOR)), (40, 1), "all have ended, with one interrupt");
    let sectors = buffers.iter().enumerate();
    check!(sectors.clone().all(|(sector, buffer)| holds(buffer, sector)), "each has its sector");
    disk.queue().refuse_interrupts();
}

/// Sends back what is typed, up to a `q`, asleep in between.
fn talk(mut console: Console<OneToOne>) {
    check!(writeln!(console, "{}", pv::SHOWN).is_ok(), "the console shows a line");
    console.set_interrupt(Some(Interrupt { vector: VECTOR, apic_id: Lapic::current().id() }));
    irq::reset(VECTOR);
    let (mut typed, mut len, mut naps) = ([0u8; 64], 0, 0);
    let _ = writeln!(console, "{}", line::READY);
    while !typed[..len].contains(&b'q') && len < typed.len() {
        match console.read(&mut typed[len..]) {
            Ok(0) => match console.sleep_is_safe() {
                Ok(true) => {
                    naps += 1;
                    cpu::sti_hlt_cli();
                }
                Ok(false) => {}
                Err(_) => break,
            },
            Ok(count) => len += count,
            Err(_) => break,
        }
    }
    let sent = console.write(&typed[..len]).and_then(|()| console.write(b"\n"));
    check!(sent.is_ok() && len > 0, "what is typed comes back, {len} bytes");
    // One that came while the guest was awake ends its next sleep, so there may be more of them.
    check!(irq::seen(VECTOR) >= naps, "each sleep was ended by an interrupt");
}
