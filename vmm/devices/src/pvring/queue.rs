//! The device's side of a queue (SPEC.md 11.3).
//!
//! The driver may change its memory at any moment. Every word of it is copied once and the copy used; what the device itself
//! wrote is never read back. Whatever the words say, the worst is a [`Fault`].

use crate::guest_mem::GuestMemory;
use crate::segment::Segment;
use core::fmt;
use core::sync::atomic::{Ordering, fence};
use hypercall_abi::guest::device::Fault;
use hypercall_abi::guest::op::Status;
use hypercall_abi::guest::ring::{
    self, COMPLETION_BYTES, Completion, INDIRECT, MAX_SEGMENTS, REQUEST_BYTES, Request, SEGMENT_BYTES, Word,
    is_due,
};

/// Entries that are copied together.
const BATCH: usize = 16;
/// How often [`Queue::serve`] looks for more before it lets others have the processor.
const ROUNDS: u32 = 4;

/// How a request ended, and the bytes it moved.
pub type End = (Status, u32);

/// What is to be done after a queue was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The driver wants to be interrupted.
    pub interrupts: bool,
    /// There are requests that were not looked at: look again soon.
    pub has_more: bool,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It ended.
    Ended(End),
    /// It will end later.
    Pending,
    /// It will end later, and until one has ended there is no room for another one.
    Full,
}

/// A queue in use.
pub struct Queue {
    address: u64,
    size: u32,
    /// Requests that the driver said it has submitted, that were copied, and that were taken.
    submitted: u32,
    copied: u32,
    taken: u32,
    /// Completions that there are, that are in guest memory, and of which the driver was told by interrupt.
    completed: u32,
    written: u32,
    signalled: u32,
    /// Copies of the requests up to `copied`.
    requests: [u8; BATCH * REQUEST_BYTES],
    /// The completions from `written` on.
    completions: [u8; BATCH * COMPLETION_BYTES],
    table: [u8; MAX_SEGMENTS * SEGMENT_BYTES],
    segments: [Segment; MAX_SEGMENTS],
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("address", &format_args!("{:#x}", self.address))
            .field("size", &self.size)
            .field("taken", &self.taken)
            .field("completed", &self.completed)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// The queue of `size` places at `address`, if a queue can be so. Whether memory is there shows when it is used.
    pub fn new(address: u64, size: u32, largest: u32) -> Result<Self, Fault> {
        let is_inside = address.checked_add(ring::bytes(size.min(ring::MAX_SIZE)) as u64).is_some();
        if !size.is_power_of_two()
            || size > largest.min(ring::MAX_SIZE)
            || !address.is_multiple_of(ring::ALIGNMENT)
            || !is_inside
        {
            return Err(Fault::Queue);
        }
        Ok(Queue {
            address,
            size,
            submitted: 0,
            copied: 0,
            taken: 0,
            completed: 0,
            written: 0,
            signalled: 0,
            requests: [0; BATCH * REQUEST_BYTES],
            completions: [0; BATCH * COMPLETION_BYTES],
            table: [0; MAX_SEGMENTS * SEGMENT_BYTES],
            segments: [Segment { gpa: 0, len: 0 }; MAX_SEGMENTS],
        })
    }

    /// Carries out everything that was submitted: `carry_out` gets each request with its buffer and says how it ended.
    #[inline]
    pub fn serve<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        mut carry_out: impl FnMut(&mut M, &Request, &[Segment]) -> Result<End, Fault>,
    ) -> Result<Turn, Fault> {
        self.serve_some(memory, |memory, request, segments| {
            carry_out(memory, request, segments).map(Step::Ended)
        })
    }

    /// As [`Self::serve`], but some requests end later ([`Self::complete`]), and after some no other is taken.
    #[inline]
    pub fn serve_some<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        mut carry_out: impl FnMut(&mut M, &Request, &[Segment]) -> Result<Step, Fault>,
    ) -> Result<Turn, Fault> {
        self.look(memory)?;
        for _ in 0..ROUNDS {
            while let Some(request) = self.take(memory)? {
                let segments = self.load_segments(memory, &request)?;
                match carry_out(memory, &request, &self.segments[..segments])? {
                    Step::Ended(end) => self.complete(memory, request.id, end)?,
                    Step::Pending => {}
                    Step::Full => return self.settle_silently(memory),
                }
            }
            let turn = self.settle(memory)?;
            if !turn.has_more {
                return Ok(turn);
            }
        }
        // The driver is told of what was done at the latest now.
        let interrupts = self.interrupts(memory)?;
        Ok(Turn { interrupts, has_more: true })
    }

    /// Learns what the driver has submitted.
    #[inline]
    pub fn look(&mut self, memory: &impl GuestMemory) -> Result<Word, Fault> {
        let word = Word::decode(memory.read_u64(self.address).map_err(|_| Fault::Queue)?);
        // Requests must not be read before the word: rule 1 of SPEC.md 11.3.
        fence(Ordering::Acquire);
        let in_flight = self.taken.wrapping_sub(self.completed);
        if word.produced.wrapping_sub(self.taken) > self.size.saturating_sub(in_flight) {
            return Err(Fault::Index);
        }
        self.submitted = word.produced;
        Ok(word)
    }

    /// The next request of those that [`Self::look`] saw.
    #[inline]
    pub fn take(&mut self, memory: &impl GuestMemory) -> Result<Option<Request>, Fault> {
        if self.taken == self.submitted {
            return Ok(None);
        }
        if self.taken == self.copied {
            self.copy_requests(memory)?;
        }
        // The copies end at `copied`, and begin where the last of `copy_requests` put them.
        let left = self.copied.wrapping_sub(self.taken) as usize;
        let start = (BATCH - left.min(BATCH)) * REQUEST_BYTES;
        let mut words = [0; 4];
        let bytes = self.requests[start..start + REQUEST_BYTES].as_chunks().0;
        for (word, bytes) in words.iter_mut().zip(bytes) {
            *word = u64::from_le_bytes(*bytes);
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Request::decode(words)))
    }

    /// Copies requests into the end of the buffer.
    #[inline]
    fn copy_requests(&mut self, memory: &impl GuestMemory) -> Result<(), Fault> {
        let place = self.taken & (self.size - 1);
        let count = self.submitted.wrapping_sub(self.taken).min(self.size - place).min(BATCH as u32);
        let bytes = count as usize * REQUEST_BYTES;
        let from = self.address + (ring::REQUESTS + place as usize * REQUEST_BYTES) as u64;
        let into = &mut self.requests[BATCH * REQUEST_BYTES - bytes..];
        memory.read(from, into).map_err(|_| Fault::Queue)?;
        self.copied = self.taken.wrapping_add(count);
        Ok(())
    }

    /// Finds the buffer of a request; returns how many of `segments` it is.
    #[inline]
    pub fn load_segments(&mut self, memory: &impl GuestMemory, request: &Request) -> Result<usize, Fault> {
        if request.flags & INDIRECT != 0 {
            return self.load_table(memory, request);
        }
        self.segments[0] = Segment { gpa: request.address, len: request.len };
        Ok(1)
    }

    #[cold]
    fn load_table(&mut self, memory: &impl GuestMemory, request: &Request) -> Result<usize, Fault> {
        let bytes = request.len as usize;
        if bytes == 0 || bytes > self.table.len() || !bytes.is_multiple_of(SEGMENT_BYTES) {
            return Err(Fault::Segments);
        }
        let table = &mut self.table[..bytes];
        memory.read(request.address, table).map_err(|_| Fault::Address)?;
        let words = table.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut pairs = words.clone().step_by(2).zip(words.skip(1).step_by(2));
        for segment in &mut self.segments[..bytes / SEGMENT_BYTES] {
            if let Some((address, len)) = pairs.next() {
                let ring::Segment { address, len } = ring::Segment::decode([address, len]);
                *segment = Segment { gpa: address, len };
            }
        }
        Ok(bytes / SEGMENT_BYTES)
    }

    /// The buffer that [`Self::load_segments`] found.
    pub fn segments(&self, count: usize) -> &[Segment] {
        &self.segments[..count]
    }

    /// Ends a request that was taken. The driver sees it with the next [`Self::settle`].
    #[inline]
    pub fn complete(&mut self, memory: &mut impl GuestMemory, id: u16, end: End) -> Result<(), Fault> {
        let (status, len) = end;
        let word = Completion { id, status: status as u16, len }.encode();
        let waiting = self.completed.wrapping_sub(self.written) as usize % BATCH * COMPLETION_BYTES;
        self.completions[waiting..waiting + COMPLETION_BYTES].copy_from_slice(&word.to_le_bytes());
        self.completed = self.completed.wrapping_add(1);
        let is_wrapped = self.completed & (self.size - 1) == 0;
        if is_wrapped || waiting == (BATCH - 1) * COMPLETION_BYTES { self.write(memory) } else { Ok(()) }
    }

    /// Copies completions into guest memory.
    #[inline]
    fn write(&mut self, memory: &mut impl GuestMemory) -> Result<(), Fault> {
        let count = self.completed.wrapping_sub(self.written) as usize;
        if count > 0 {
            let place = (self.written & (self.size - 1)) as usize;
            let to = self.address + (ring::completions(self.size) + place * COMPLETION_BYTES) as u64;
            memory.write(to, &self.completions[..count * COMPLETION_BYTES]).map_err(|_| Fault::Queue)?;
            self.written = self.completed;
        }
        Ok(())
    }

    /// Shows the driver what was completed, asks it for the doorbell, and looks whether it is needed: if there is more
    /// already, the interrupt is left for later.
    #[inline]
    pub fn settle(&mut self, memory: &mut impl GuestMemory) -> Result<Turn, Fault> {
        let driver = self.tell(memory, self.taken)?;
        if driver.produced != self.taken {
            return Ok(Turn { interrupts: false, has_more: true });
        }
        Ok(Turn { interrupts: self.is_due(driver), has_more: false })
    }

    /// Shows the driver what was completed, and does not care for more requests.
    pub fn settle_silently(&mut self, memory: &mut impl GuestMemory) -> Result<Turn, Fault> {
        let driver = self.tell(memory, self.taken.wrapping_sub(1))?;
        Ok(Turn { interrupts: self.is_due(driver), has_more: false })
    }

    /// Writes the device's word, and then reads the driver's: rules 2, 3 and 4 of SPEC.md 11.3.
    #[inline]
    fn tell(&mut self, memory: &mut impl GuestMemory, threshold: u32) -> Result<Word, Fault> {
        self.write(memory)?;
        let word = Word { produced: self.completed, threshold };
        fence(Ordering::Release);
        let to = self.address + ring::DEVICE_WORD as u64;
        memory.write_u64(to, word.encode()).map_err(|_| Fault::Queue)?;
        fence(Ordering::SeqCst);
        self.look(memory)
    }

    fn interrupts(&mut self, memory: &impl GuestMemory) -> Result<bool, Fault> {
        let driver = self.look(memory)?;
        Ok(self.is_due(driver))
    }

    #[inline]
    fn is_due(&mut self, driver: Word) -> bool {
        let old = core::mem::replace(&mut self.signalled, self.completed);
        is_due(driver.threshold, old, self.completed)
    }

    /// Leaves word that the device stopped, where there is memory for it.
    pub fn show_fault(&self, memory: &mut impl GuestMemory, fault: Fault) {
        let _ = memory.write_u32(self.address + ring::FAULT as u64, fault as u32);
    }
}
