//! A queue whose buffers wait at the device until there is something to put into them.

use crate::error::{Error, Result};
use crate::hal::Hal;
use crate::queue::Queue;
use core::ptr::NonNull;
use hypercall_abi::guest::op;
use hypercall_abi::guest::ring::Request;

/// A buffer that came back filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    name: u16,
    len: usize,
}

/// `N` buffers of `BYTES` bytes, at most as many as the queue has room for. Buffer *n* goes out as request *n*.
#[derive(Debug)]
pub(crate) struct Inbox<H, const N: usize, const BYTES: usize> {
    queue: Queue<H>,
    buffers: NonNull<[[u8; BYTES]; N]>,
}

// SAFETY: the buffers were given to the inbox for ever and are reached through it alone.
unsafe impl<H: Send, const N: usize, const BYTES: usize> Send for Inbox<H, N, BYTES> {}

impl<H: Hal, const N: usize, const BYTES: usize> Inbox<H, N, BYTES> {
    /// Takes the buffers. The device gets them with [`Self::fill`].
    pub(crate) fn new(queue: Queue<H>, buffers: &'static mut [[u8; BYTES]; N]) -> Self {
        Inbox { queue, buffers: NonNull::from(buffers) }
    }

    /// Gives every buffer to the device, once it runs.
    pub(crate) fn fill(&mut self) -> Result<()> {
        for name in 0..N {
            self.post(name as u16)?;
        }
        self.queue.publish();
        Ok(())
    }

    pub(crate) fn queue(&mut self) -> &mut Queue<H> {
        &mut self.queue
    }

    /// The next buffer that came back.
    pub(crate) fn take(&mut self) -> Result<Option<Filled>> {
        let Some(completion) = self.queue.collect()? else {
            return Ok(None);
        };
        let len = (completion.len as usize).min(BYTES);
        Ok(Some(Filled { name: completion.id, len }))
    }

    /// What is in a buffer that came back.
    pub(crate) fn bytes(&self, filled: &Filled) -> &[u8] {
        let buffer = self.buffer(filled.name);
        // SAFETY: the buffer exists for ever; since its completion was collected the device does not touch it, and
        // `give_back`, after which it does, needs the inbox borrowed for itself.
        unsafe { core::slice::from_raw_parts(buffer, filled.len) }
    }

    /// Gives a buffer back to the device; it sees it with the next [`Queue::publish`].
    pub(crate) fn give_back(&mut self, filled: Filled) -> Result<()> {
        self.post(filled.name)
    }

    fn post(&mut self, name: u16) -> Result<()> {
        let buffer = self.buffer(name);
        let (address, contiguous) = self.queue.hal().translate(buffer, BYTES);
        if contiguous < BYTES {
            return Err(Error::BadMemory);
        }
        let request = Request { address, len: BYTES as u32, op: op::READ, ..Request::default() };
        // SAFETY: the buffer exists for ever, and nothing here reads it while it is out.
        unsafe { self.queue.submit_as(name, request) }
    }

    /// Names are below `N`: only those were submitted.
    fn buffer(&self, name: u16) -> *const u8 {
        self.buffers.as_ptr().cast::<[u8; BYTES]>().wrapping_add(usize::from(name) % N).cast()
    }
}
