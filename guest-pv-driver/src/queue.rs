//! The driver's side of a queue (SPEC.md 11.3).
//!
//! The driver keeps its own counts and never reads back what it wrote; of what the device writes it believes only what can be:
//! counts that do not run ahead, names of requests that are in flight.

use crate::error::{Error, Result};
use crate::hal::Hal;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use hypercall_abi::guest::ring::{self, Completion, Request, Word, is_due};

/// The memory of one queue: a page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct QueueMemory([u8; 4096]);

impl QueueMemory {
    /// Memory of a queue that is not used yet.
    pub const fn new() -> Self {
        QueueMemory([0; 4096])
    }
}

impl Default for QueueMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// A queue of a device that runs.
#[derive(Debug)]
pub struct Queue<H> {
    hal: H,
    memory: NonNull<u8>,
    size: u32,
    /// RAX of the doorbell call.
    call: u64,
    /// Requests written, and those that the device was told of.
    submitted: u32,
    published: u32,
    /// Completions taken, and those that the device has told of.
    collected: u32,
    completed: u32,
    /// The completion behind which the device is to interrupt.
    threshold: u32,
    /// Bit *n*: no request in flight is named *n*.
    free: u64,
}

// SAFETY: the queue's memory was given to it for ever and is reached through it alone.
unsafe impl<H: Send> Send for Queue<H> {}

impl<H: Hal> Queue<H> {
    /// A queue of `size` places, a power of two up to [`ring::PAGE_SIZE_MAX`], in zeroed memory, with this RAX for its
    /// doorbell call.
    pub(crate) fn new(hal: H, memory: NonNull<u8>, size: u32, call: u64) -> Self {
        let free = u64::MAX >> (64 - size.clamp(1, 64));
        // Behind everything that will be completed for a long time: no interrupts until somebody asks.
        let threshold = u32::MAX;
        let mut queue = Queue {
            hal,
            memory,
            size,
            call,
            submitted: 0,
            published: 0,
            collected: 0,
            completed: 0,
            threshold,
            free,
        };
        queue.tell();
        queue
    }

    /// What the kernel gave the driver.
    pub fn hal(&self) -> &H {
        &self.hal
    }

    /// Requests whose completions were not collected.
    pub fn in_flight(&self) -> u32 {
        self.submitted.wrapping_sub(self.collected)
    }

    /// Whether there is no place for a request.
    pub fn is_full(&self) -> bool {
        self.free == 0
    }

    /// The name that [`Self::submit`] gives next; `None` if the queue is full.
    pub fn next_name(&self) -> Option<u16> {
        (self.free != 0).then(|| self.free.trailing_zeros() as u16)
    }

    /// Writes a request into the queue and returns its name; the device sees it with the next [`Self::publish`].
    /// `request.id` is ignored.
    ///
    /// # Safety
    /// Until its completion is collected or the device is reset, the buffer that the request names by guest-physical
    /// address (and the table, if it is indirect) stays memory that the device may read, and, for what fills a buffer, write.
    #[inline]
    pub unsafe fn submit(&mut self, request: Request) -> Result<u16> {
        let name = self.next_name().ok_or(Error::Full)?;
        self.write(name, request);
        Ok(name)
    }

    /// As [`Self::submit`], with a name below the queue's size that no request in flight has.
    ///
    /// # Safety
    /// As for [`Self::submit`].
    #[inline]
    pub unsafe fn submit_as(&mut self, name: u16, request: Request) -> Result<()> {
        if u32::from(name) >= self.size || self.free >> name & 1 == 0 {
            return Err(Error::Full);
        }
        self.write(name, request);
        Ok(())
    }

    #[inline]
    fn write(&mut self, name: u16, request: Request) {
        self.free &= !(1 << name);
        let at = ring::REQUESTS + (self.submitted & (self.size - 1)) as usize * ring::REQUEST_BYTES;
        let words = Request { id: name, ..request }.encode();
        for (index, word) in words.into_iter().enumerate() {
            self.word(at + index * 8).store(word, Ordering::Relaxed);
        }
        self.submitted = self.submitted.wrapping_add(1);
    }

    /// Shows the device what was submitted, and rings its doorbell if it wants that.
    #[inline]
    pub fn publish(&mut self) {
        let old = core::mem::replace(&mut self.published, self.submitted);
        self.tell();
        // The threshold must be read behind the store of the count: a device that goes to sleep stores its threshold and then
        // looks at the count once more, and one of the two sees the other.
        fence(Ordering::SeqCst);
        if is_due(self.device_word().threshold, old, self.submitted) {
            self.hal.ring(self.call);
        }
    }

    /// Takes a completion, in the order in which the device completed.
    #[inline]
    pub fn collect(&mut self) -> Result<Option<Completion>> {
        if self.completed == self.collected && !self.look()? {
            return Ok(None);
        }
        let place = (self.collected & (self.size - 1)) as usize;
        let at = ring::completions(self.size) + place * ring::COMPLETION_BYTES;
        let completion = Completion::decode(self.word(at).load(Ordering::Relaxed));
        let name = 1u64.checked_shl(completion.id.into()).unwrap_or(0);
        if name == 0 || self.free & name != 0 {
            return Err(Error::Broken);
        }
        self.free |= name;
        self.collected = self.collected.wrapping_add(1);
        Ok(Some(completion))
    }

    /// Asks for an interrupt with the next completion. Returns whether it will come: if not, there is a completion to
    /// collect already. Whoever sleeps until the interrupt must ask anew each time.
    pub fn request_interrupt(&mut self) -> Result<bool> {
        self.threshold = self.collected;
        self.tell();
        // As in `publish`, the other way round.
        fence(Ordering::SeqCst);
        Ok(self.completed == self.collected && !self.look()?)
    }

    /// Wants no more interrupts. One may still come.
    pub fn refuse_interrupts(&mut self) {
        self.threshold = self.collected.wrapping_sub(1);
        self.tell();
    }

    /// Waits for the completion of the only request.
    #[inline]
    pub(crate) fn wait(&mut self) -> Result<Completion> {
        loop {
            if let Some(completion) = self.collect()? {
                return Ok(completion);
            }
            if !self.hal.keep_waiting() {
                return Err(Error::TimedOut);
            }
        }
    }

    /// Publishes a request that was submitted as the only one, and waits for it.
    #[inline]
    pub(crate) fn finish(&mut self) -> Result<Completion> {
        self.publish();
        self.wait()
    }

    /// Reads how far the device is; whether there is something to collect.
    #[inline]
    fn look(&mut self) -> Result<bool> {
        self.completed = Word::decode(self.word(ring::DEVICE_WORD).load(Ordering::Acquire)).produced;
        let news = self.completed.wrapping_sub(self.collected);
        if news > self.in_flight() {
            self.completed = self.collected;
            return Err(Error::Broken);
        }
        if news == 0 {
            self.check_fault()?;
        }
        Ok(news != 0)
    }

    #[inline]
    fn check_fault(&self) -> Result<()> {
        // SAFETY: the offset is inside the queue's memory and a multiple of 4; the device changes it, which an atomic allows.
        let fault = unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(ring::FAULT).cast()) };
        match fault.load(Ordering::Relaxed) {
            0 => Ok(()),
            raw => Err(Error::Stopped(hypercall_abi::guest::device::Fault::from_raw(raw))),
        }
    }

    #[inline]
    fn tell(&mut self) {
        let word = Word { produced: self.published, threshold: self.threshold };
        self.word(ring::DRIVER_WORD).store(word.encode(), Ordering::Release);
    }

    #[inline]
    fn device_word(&self) -> Word {
        Word::decode(self.word(ring::DEVICE_WORD).load(Ordering::Relaxed))
    }

    /// The 64-bit word at an offset of the queue's memory.
    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8) && offset + 8 <= ring::bytes(self.size));
        // SAFETY: callers pass offsets of the layout, which are inside the queue's memory and multiples of 8. The device changes
        // the word, which an atomic allows.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(offset).cast()) }
    }
}
