//! Devices that move bytes: console, random numbers, the log.

use super::queue::{End, Queue, Turn};
use crate::Request as MachineRequest;
use crate::console::{Console, OUTPUT_BYTES};
use crate::entropy::Entropy;
use crate::guest_mem::GuestMemory;
use crate::segment::{Cursor, Segment, total_bytes};
use alloc::string::String;
use alloc::vec::Vec;
use hypercall_abi::guest::device::Fault;
use hypercall_abi::guest::op::{self, Status};
use hypercall_abi::guest::ring::Request;

/// Bytes that one request may show, log or fill with random numbers at most.
const MAX_BYTES: u64 = op::MAX_WRITE as u64;
/// Lines of the log that wait for the host at most; more are lost.
const MAX_LINES: usize = 32;
/// Bytes of a line at most; the rest is lost.
const MAX_LINE: usize = 512;
const CHUNK: usize = 512;

const UNSUPPORTED: End = (Status::Unsupported, 0);
const TOO_LONG: End = (Status::OutOfRange, 0);

/// Moves what was typed into buffers that wait for it.
pub(super) fn serve_input<M: GuestMemory>(
    console: &mut Console,
    memory: &mut M,
    queue: &mut Queue,
) -> Result<Turn, Fault> {
    queue.look(memory)?;
    while console.has_input() {
        let Some(request) = queue.take(memory)? else {
            // Somebody typed and there is no buffer: the next one is worth a doorbell.
            return queue.settle(memory);
        };
        let count = queue.load_segments(memory, &request)?;
        let end = type_into(console, memory, &request, queue.segments(count))?;
        queue.complete(memory, request.id, end)?;
    }
    queue.settle_silently(memory)
}

fn type_into(
    console: &mut Console,
    memory: &mut impl GuestMemory,
    request: &Request,
    segments: &[Segment],
) -> Result<End, Fault> {
    if request.op != op::READ {
        return Ok(UNSUPPORTED);
    }
    let (mut cursor, mut done, mut bytes) = (Cursor::new(segments), 0, [0; CHUNK]);
    loop {
        let room = cursor.remaining().min(CHUNK as u64) as usize;
        let len = console.take_input(&mut bytes[..room]);
        if len == 0 {
            return Ok((Status::Done, done));
        }
        cursor.write(memory, &bytes[..len]).map_err(|_| Fault::Address)?;
        done += len as u32;
    }
}

/// Takes output, as long as the host takes it from us: `waiting` is how many bytes it has not taken.
pub(super) fn serve_output<M: GuestMemory>(
    console: &mut Console,
    waiting: &mut usize,
    memory: &mut M,
    queue: &mut Queue,
) -> Result<Turn, Fault> {
    if !console.has_output() {
        *waiting = 0;
    }
    queue.look(memory)?;
    while *waiting < OUTPUT_BYTES {
        let Some(request) = queue.take(memory)? else {
            return queue.settle(memory);
        };
        let count = queue.load_segments(memory, &request)?;
        let segments = queue.segments(count);
        let end = show(console, memory, &request, segments)?;
        *waiting += end.1 as usize;
        queue.complete(memory, request.id, end)?;
    }
    let turn = queue.settle_silently(memory)?;
    Ok(Turn { has_more: true, ..turn })
}

fn show(
    console: &mut Console,
    memory: &impl GuestMemory,
    request: &Request,
    segments: &[Segment],
) -> Result<End, Fault> {
    if request.op != op::WRITE {
        return Ok(UNSUPPORTED);
    }
    let total = total_bytes(segments);
    if total > MAX_BYTES {
        return Ok(TOO_LONG);
    }
    let (mut cursor, mut bytes) = (Cursor::new(segments), [0; CHUNK]);
    loop {
        let len = cursor.read(memory, &mut bytes).map_err(|_| Fault::Address)?;
        if len == 0 {
            return Ok((Status::Done, total as u32));
        }
        console.put_output(&bytes[..len]);
    }
}

/// Fills buffers with random bytes.
pub(super) fn serve_entropy<M: GuestMemory>(
    source: &mut dyn Entropy,
    memory: &mut M,
    queue: &mut Queue,
) -> Result<Turn, Fault> {
    queue.serve(memory, |memory, request, segments| {
        if request.op != op::READ {
            return Ok(UNSUPPORTED);
        }
        let (mut cursor, mut bytes) = (Cursor::new(segments), [0; CHUNK]);
        let wanted = cursor.remaining().min(MAX_BYTES);
        let mut done = 0;
        while done < wanted {
            let room = (wanted - done).min(CHUNK as u64) as usize;
            let len = source.fill(&mut bytes[..room]);
            if len == 0 {
                break;
            }
            cursor.write(memory, &bytes[..len]).map_err(|_| Fault::Address)?;
            done += len as u64;
        }
        let status = if done == 0 && wanted > 0 { Status::Io } else { Status::Done };
        Ok((status, done as u32))
    })
}

/// What the control device was told.
#[derive(Debug, Default)]
pub struct Control {
    lines: Vec<String>,
    request: Option<MachineRequest>,
}

impl Control {
    /// Takes what the guest said to the log.
    pub fn take_lines(&mut self) -> Vec<String> {
        core::mem::take(&mut self.lines)
    }

    /// Whether the guest said something to the log.
    pub fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }

    pub(super) fn take_request(&mut self) -> Option<MachineRequest> {
        self.request.take()
    }

    pub(super) fn serve<M: GuestMemory>(&mut self, memory: &mut M, queue: &mut Queue) -> Result<Turn, Fault> {
        queue.serve(memory, |memory, request, segments| {
            let asked = match request.op {
                op::WRITE => return self.log(memory, segments),
                op::POWER_OFF => MachineRequest::PowerOff,
                op::RESET => MachineRequest::Reset,
                op::EXIT => MachineRequest::Exit(request.argument as u32),
                _ => return Ok(UNSUPPORTED),
            };
            self.request = self.request.or(Some(asked));
            Ok((Status::Done, 0))
        })
    }

    fn log(&mut self, memory: &impl GuestMemory, segments: &[Segment]) -> Result<End, Fault> {
        if total_bytes(segments) > MAX_BYTES {
            return Ok(TOO_LONG);
        }
        let mut bytes = [0; MAX_LINE];
        let len = Cursor::new(segments).read(memory, &mut bytes).map_err(|_| Fault::Address)?;
        if self.lines.len() < MAX_LINES {
            let text = String::from_utf8_lossy(&bytes[..len]);
            let is_text = |character: &char| !character.is_control();
            self.lines.push(text.chars().filter(is_text).collect());
        }
        Ok((Status::Done, len as u32))
    }
}
