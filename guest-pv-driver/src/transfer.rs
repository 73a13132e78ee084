//! One request at a time: a buffer goes out, the call returns when it is done.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::hal::Hal;
use crate::queue::Queue;
use hypercall_abi::guest::op::Status;
use hypercall_abi::guest::ring::{INDIRECT, MAX_SEGMENTS, Request, SEGMENT_BYTES, Segment};

/// An indirect table. Aligned to its size, so that it is contiguous wherever pages are.
#[repr(C, align(1024))]
struct Table([[u64; 2]; MAX_SEGMENTS]);

const _: () = assert!(size_of::<Table>() == MAX_SEGMENTS * SEGMENT_BYTES);

/// Carries out a request on a buffer and waits for its end. Returns the bytes that were moved.
///
/// However it ends, the device is done with the buffer: where a request may still be in flight, the device is reset.
///
/// # Safety
/// `len` bytes at `pointer` may be read, and written if the request fills its buffer, until the call returns.
#[inline]
pub(crate) unsafe fn transfer<H: Hal>(
    device: &Device<H>,
    queue: &mut Queue<H>,
    request: Request,
    pointer: *const u8,
    len: usize,
) -> Result<usize> {
    if queue.in_flight() != 0 {
        return Err(Error::Busy);
    }
    let bytes = u32::try_from(len).map_err(|_| Error::TooScattered)?;
    let (address, contiguous) = queue.hal().translate(pointer, len);
    if contiguous < len {
        // SAFETY: the caller's promise.
        return unsafe { transfer_scattered(device, queue, request, pointer, len) };
    }
    // SAFETY: the buffer is the caller's until this returns, and `wait` does not return before its request has ended.
    unsafe { queue.submit(Request { address, len: bytes, ..request })? };
    wait(device, queue)
}

/// As [`transfer`], for a buffer that is not contiguous.
///
/// # Safety
/// As for [`transfer`].
#[cold]
unsafe fn transfer_scattered<H: Hal>(
    device: &Device<H>,
    queue: &mut Queue<H>,
    request: Request,
    pointer: *const u8,
    len: usize,
) -> Result<usize> {
    let mut table = Table([[0; 2]; MAX_SEGMENTS]);
    let (mut used, mut done) = (0, 0);
    while done < len {
        let entry = table.0.get_mut(used).ok_or(Error::TooScattered)?;
        let (address, contiguous) = queue.hal().translate(pointer.wrapping_add(done), len - done);
        let bytes = contiguous.clamp(1, len - done);
        *entry = Segment { address, len: bytes as u32 }.encode();
        (used, done) = (used + 1, done + bytes);
    }
    let bytes = used * SEGMENT_BYTES;
    let (address, contiguous) = queue.hal().translate(table.0.as_ptr().cast(), bytes);
    if contiguous < bytes {
        return Err(Error::TooScattered);
    }
    // SAFETY: buffer and table stay until `wait` returns.
    unsafe { queue.submit(Request { address, len: bytes as u32, flags: INDIRECT, ..request })? };
    wait(device, queue)
}

#[inline]
fn wait<H: Hal>(device: &Device<H>, queue: &mut Queue<H>) -> Result<usize> {
    match queue.finish() {
        Ok(completion) => match Status::from_raw(completion.status) {
            Status::Done => Ok(completion.len as usize),
            status => Err(Error::Failed(status)),
        },
        Err(error) => {
            // The request may be in flight: without this, the device could still touch the buffer.
            device.reset();
            Err(error)
        }
    }
}
