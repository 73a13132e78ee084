//! The balloon on a native ring.

use super::queue::{End, Queue, Turn};
use crate::balloon::{Balloon, NotRam, PAGE_BYTES};
use crate::guest_mem::{GuestMemory, OutOfRange};
use hypercall_abi::guest::device::Fault;
use hypercall_abi::guest::op::{self, Status};
use hypercall_abi::guest::ring::Request;

/// Carries out what a queue has.
pub(super) fn serve<M: GuestMemory>(
    balloon: &mut Balloon,
    memory: &mut M,
    queue: &mut Queue,
) -> Result<Turn, Fault> {
    queue.serve(memory, |memory, request, _| Ok(carry_out(balloon, memory, request)))
}

fn carry_out<M: GuestMemory>(balloon: &mut Balloon, memory: &mut M, request: &Request) -> End {
    let (first, count) = (request.offset / PAGE_BYTES, request.argument);
    if !request.offset.is_multiple_of(PAGE_BYTES) {
        return (Status::OutOfRange, 0);
    }
    let done = match request.op {
        op::GIVE => balloon.give(memory, first, count),
        op::TAKE => balloon.take(first, count).and_then(|()| zero(memory, first, count).map_err(|_| NotRam)),
        op::REPORT => balloon.report(memory, first, count),
        _ => return (Status::Unsupported, 0),
    };
    (if done.is_ok() { Status::Done } else { Status::OutOfRange }, 0)
}

/// Pages that come back are zero: those that were taken away are so by themselves.
fn zero(memory: &mut impl GuestMemory, first: u64, count: u64) -> Result<(), OutOfRange> {
    for page in first..first + count {
        let gpa = page * PAGE_BYTES;
        if memory.is_resident(gpa) {
            memory.write(gpa, &[0; PAGE_BYTES as usize])?;
        }
    }
    Ok(())
}
