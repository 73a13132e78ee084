//! Requests to a paravirtual disk in the VMM's memory: from the guest's call to its data, the copy apart.

use crate::{sample, say};
use bench_protocol::Line;
use core::cell::UnsafeCell;
use guest_pv_driver::abi::device::Kind;
use guest_pv_driver::abi::op;
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{Block, BlockDevice, Machine, OneToOne, QueueMemory};
use trt::{cpu, println};

const READ: &str = "pv.block_4k_read";
const READ_MANY: &str = "pv.block_4k_read_qd32";
/// Requests in flight.
const DEPTH: usize = 32;
const BYTES: usize = 4096;
/// Ticks of the copy: each iteration of REP MOVSQ is one.
const COPY: u64 = BYTES as u64 / 8;
const SECTORS: u64 = BYTES as u64 / 512;

#[repr(align(4096))]
struct Memory(UnsafeCell<(QueueMemory, [u8; BYTES])>);

// SAFETY: one CPU; taken once.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new((QueueMemory::new(), [0; BYTES])));

type Disk = Block<OneToOne>;

/// Measures both depths.
pub(crate) fn measure_block(overhead: u64) {
    // SAFETY: called once.
    let (queue, buffer) = unsafe { &mut *MEMORY.0.get() };
    let Some(mut disk) = open(queue) else {
        for op in [READ, READ_MANY] {
            println!("{}", Line::Failed { op, why: "the VM has no paravirtual disk" });
        }
        return;
    };
    println!("{}", Line::Window { op: READ });
    let one = sample(|| disk.read(8, buffer).is_ok());
    say(READ, one, overhead + COPY, 1);
    println!("{}", Line::Window { op: READ_MANY });
    let many = sample(|| read_many(&mut disk, buffer));
    say(READ_MANY, many, overhead + COPY * DEPTH as u64, DEPTH as u32);
}

fn open(queue: &'static mut QueueMemory) -> Option<Disk> {
    let leaf = |leaf| {
        let regs = cpu::cpuid(leaf, 0);
        [regs.eax, regs.ebx, regs.ecx, regs.edx]
    };
    // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
    let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
    let page = Machine::detect(leaf)?.find(&hal, Kind::Block, 0)?;
    Block::new(hal, page, queue).ok()
}

/// All of the disk, 4 KiB for each request, to the same memory.
fn read_many(disk: &mut Disk, buffer: &mut [u8; BYTES]) -> bool {
    for index in 0..DEPTH as u64 {
        // SAFETY: the buffer is there until all requests have ended, below; what is in it does not matter.
        if unsafe { disk.submit(op::READ, index * SECTORS, buffer.as_mut_ptr(), BYTES) }.is_err() {
            return false;
        }
    }
    disk.publish();
    let mut ended = 0;
    while ended < DEPTH {
        match disk.collect() {
            Ok(Some(completion)) => ended += usize::from(completion.status == 0),
            Ok(None) => core::hint::spin_loop(),
            Err(_) => return false,
        }
    }
    true
}
