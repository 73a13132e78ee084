//! The user's end: a backend for `vdev`'s block device.
//!
//! A request of the guest becomes one job. A job is done in parts, each as long as a slot at most; as many parts are at the
//! driver as there are slots, in the order in which the jobs came.

use crate::{Signal, Words, copy};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use core::task::Poll;
use usys::Window;
use usys::window::OutOfWindow;
use vdev::block::{Backend, BlockError, Completion, Geometry, Request, Token};
use vdev::guest_mem::GuestMemory;
use vdev::segment::{Cursor, Segment};
use vmm_protocol::block::{
    self, COMPLETION_HEAD, DRIVER_SLEEPS, DiskInfo, EPOCH, FLAGS, Operation, REQUEST_HEAD, SECTOR_BYTES,
    SECTORS, SERVED, SLOT_SECTORS, SLOTS, Served, Status, completion_offset, data_offset, request_offset,
};

/// Bytes that are copied at a time.
const BOUNCE_BYTES: usize = 4096;
/// Requests that it holds: twice as many as are at the driver.
const MAX_REQUESTS: usize = 2 * SLOTS;
/// Segments with which it takes no more requests: those of a slot each in as many pages, twice. The last request brings as many
/// as a chain has.
const MAX_SEGMENTS: usize = 1024;
/// Most segments of a request: the descriptors of a virtio queue.
const MAX_CHAIN: usize = 256;
/// Bytes of heap that a front end needs for a request, and that the allocator needs for a piece.
const NOTE_BYTES: usize = 64;
/// Most bytes of heap that a client and the front end of its disk hold, whatever the guest does.
pub const HEAP_BYTES: usize = size_of::<[Option<Part>; SLOTS]>()
    + BOUNCE_BYTES
    + (MAX_SEGMENTS + MAX_CHAIN) * size_of::<Segment>()
    + MAX_REQUESTS
        * (size_of::<Job>() + size_of::<usize>() + size_of::<(Token, Completion)>() + 2 * NOTE_BYTES);

/// What a job does with its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Read,
    Write,
    /// Writes zeroes.
    Zero,
    Flush,
}

/// A request of the guest.
#[derive(Debug)]
struct Job {
    token: Token,
    action: Action,
    segments: Vec<Segment>,
    /// First sector of the next part.
    sector: u64,
    /// Sectors that are in no part yet; for a flush, 1 until it is.
    left: u64,
    /// Bytes that are in parts.
    offset: u64,
    /// Parts at the driver.
    parts: u32,
    result: Completion,
    /// Nobody wants to know how it ends.
    is_abandoned: bool,
}

impl Job {
    /// Where the data at this offset is in guest memory.
    fn cursor(&self, offset: u64) -> Cursor<'_> {
        let mut cursor = Cursor::new(&self.segments);
        cursor.skip(offset as usize);
        cursor
    }
}

/// What a slot is used for.
#[derive(Clone, Copy, Debug)]
struct Part {
    job: usize,
    /// Where in the job's segments its data is.
    offset: u64,
    bytes: usize,
}

/// The state of the connection with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// There is no driver, or it has another disk: what is asked fails.
    Down,
    /// There is a driver that has not begun the epoch yet: what is asked waits for it.
    Coming(Served),
    /// This driver serves.
    Served(Served),
}

/// The user of a channel.
#[derive(Debug)]
pub struct Client<S> {
    words: Words,
    driver: S,
    link: Link,
    epoch: u32,
    /// What the disk was when it was first seen: a guest expects no other.
    disk: Option<DiskInfo>,
    /// Requests put into the ring.
    head: u32,
    /// Completions taken.
    tail: u32,
    slots: [Option<Part>; SLOTS],
    jobs: Vec<Option<Job>>,
    /// How many jobs there are, and the segments that they hold.
    job_count: usize,
    segment_count: usize,
    /// Jobs with sectors that are in no part yet.
    queue: VecDeque<usize>,
    completed: VecDeque<(Token, Completion)>,
    bounce: Vec<u8>,
}

impl<S: Signal> Client<S> {
    /// Begins to use a channel. A predecessor may have used it.
    ///
    /// # Errors
    /// The memory is too short for a channel.
    pub fn new(window: Window, driver: S) -> Result<Self, OutOfWindow> {
        let words = Words::new(window)?;
        let mut client = Client {
            words,
            driver,
            link: Link::Down,
            epoch: words.load(EPOCH),
            disk: None,
            head: 0,
            tail: 0,
            slots: [None; SLOTS],
            jobs: Vec::with_capacity(MAX_REQUESTS),
            job_count: 0,
            segment_count: 0,
            queue: VecDeque::with_capacity(MAX_REQUESTS),
            completed: VecDeque::with_capacity(MAX_REQUESTS),
            bounce: vec![0; BOUNCE_BYTES],
        };
        client.begin();
        Ok(client)
    }

    /// What the disk is, once a driver serves it; `sectors` is 0 if the driver found none.
    pub fn connect(&mut self) -> Option<DiskInfo> {
        self.follow_driver();
        self.disk.filter(|_| self.is_served())
    }

    /// Begins a new epoch: whatever a driver does for the last one concerns nobody.
    fn begin(&mut self) {
        // Whatever is there may be served already; 0 means nobody.
        self.epoch = self.epoch.wrapping_add(1).max(1);
        (self.head, self.tail) = (0, 0);
        self.words.store(REQUEST_HEAD, 0);
        self.words.store(EPOCH, self.epoch);
        self.driver.signal();
    }

    /// Whether a driver serves the epoch.
    fn is_served(&self) -> bool {
        matches!(self.link, Link::Served(_))
    }

    /// Notices that a driver came or went.
    fn follow_driver(&mut self) {
        let served = Served::decode(self.words.load_u64(SERVED));
        match self.link {
            Link::Served(last) | Link::Coming(last) if last == served => {}
            Link::Served(_) => self.disconnect("its driver is gone", served),
            Link::Coming(_) | Link::Down => self.follow_coming(served),
        }
    }

    /// Nobody served the epoch: looks whether somebody does now, or will.
    #[cold]
    fn follow_coming(&mut self, served: Served) {
        let was_coming = matches!(self.link, Link::Coming(last) if last.session == served.session);
        if served.session != 0 && served.epoch == self.epoch {
            let disk = DiskInfo::new(self.words.load_u64(SECTORS), self.words.load(FLAGS));
            if *self.disk.get_or_insert(disk) == disk {
                self.link = Link::Served(served);
                return;
            }
            self.link = Link::Down;
        } else {
            self.link = self.link_to(served);
        }
        // What waited for one driver does not wait for the next: a disk of which one after the other dies is no disk.
        if !was_coming || self.link == Link::Down {
            self.fail_all();
        }
    }

    /// What to expect of a driver that has not begun the epoch.
    fn link_to(&self, served: Served) -> Link {
        if served.session == 0 { Link::Down } else { Link::Coming(served) }
    }

    /// Everything pending fails, and a new epoch begins, which a driver that is there will serve.
    #[cold]
    fn disconnect(&mut self, why: &str, served: Served) {
        match self.job_count {
            0 => log::info!("disk: {why}; nothing is pending"),
            count => log::warn!("disk: {why}; {count} pending requests fail"),
        }
        self.fail_all();
        self.begin();
        self.link = self.link_to(served);
    }

    /// The driver completes what nobody asked for.
    #[cold]
    fn distrust(&mut self) {
        let served = Served::decode(self.words.load_u64(SERVED));
        self.disconnect("its driver completes what nobody asked for", served);
    }

    /// Everything pending fails.
    fn fail_all(&mut self) {
        self.slots = [None; SLOTS];
        self.queue.clear();
        for index in 0..self.jobs.len() {
            if let Some(job) = &mut self.jobs[index] {
                (job.left, job.parts, job.result) = (0, 0, Err(BlockError::Io));
                self.finish_if_done(index);
            }
        }
    }

    fn add_job(&mut self, job: Job) -> usize {
        let index = self.jobs.iter().position(Option::is_none).unwrap_or(self.jobs.len());
        if index == self.jobs.len() {
            self.jobs.push(None);
        }
        self.job_count += 1;
        self.segment_count += job.segments.len();
        self.jobs[index] = Some(job);
        index
    }

    fn finish_if_done(&mut self, index: usize) {
        let is_done = |job: &mut Job| job.left == 0 && job.parts == 0;
        if let Some(job) = self.jobs.get_mut(index).and_then(|job| job.take_if(is_done)) {
            self.job_count -= 1;
            self.segment_count -= job.segments.len();
            if !job.is_abandoned {
                self.completed.push_back((job.token, job.result));
            }
        }
    }

    /// Nobody wants to know how a job ends. Its parts at the driver keep their slots, and nothing else.
    fn abandon_job(&mut self, index: usize) {
        self.queue.retain(|&queued| queued != index);
        if let Some(job) = &mut self.jobs[index] {
            self.segment_count -= job.segments.len();
            (job.segments, job.left, job.is_abandoned) = (Vec::new(), 0, true);
        }
        self.finish_if_done(index);
    }

    /// Gives parts to the driver as long as slots are free.
    fn pump(&mut self, memory: &mut dyn GuestMemory) {
        let head = self.head;
        while let Some(&index) = self.queue.front()
            && let Some(slot) = self.slots.iter().position(Option::is_none)
        {
            let is_whole = match self.issue(memory, index, slot) {
                Ok(is_whole) => is_whole,
                Err(error) => {
                    self.fail(index, error);
                    continue;
                }
            };
            if is_whole {
                self.queue.pop_front();
            }
        }
        if self.head != head {
            self.publish();
        }
    }

    /// Puts the next part of a job into the ring. Returns whether it was the last.
    fn issue(&mut self, memory: &dyn GuestMemory, index: usize, slot: usize) -> Result<bool, BlockError> {
        let Some(job) = self.jobs.get_mut(index).and_then(Option::as_mut) else {
            return Ok(true);
        };
        let is_flush = job.action == Action::Flush;
        let count = if is_flush { 0 } else { job.left.min(SLOT_SECTORS.into()) as u32 };
        let request = block::Request {
            slot: slot as u8,
            operation: match job.action {
                Action::Read => Operation::Read,
                Action::Write | Action::Zero => Operation::Write,
                Action::Flush => Operation::Flush,
            },
            sector: job.sector,
            count,
        };
        let to = data_offset(slot as u8);
        match job.action {
            Action::Write => {
                let from = job.cursor(job.offset);
                copy::to_slot(&self.words, to, memory, from, request.bytes(), &mut self.bounce)?;
            }
            Action::Zero => self.words.0.zero(to, request.bytes()).map_err(|_| BlockError::Io)?,
            Action::Read | Action::Flush => {}
        }
        self.slots[slot] = Some(Part { job: index, offset: job.offset, bytes: request.bytes() });
        job.parts += 1;
        job.offset += request.bytes() as u64;
        job.sector += u64::from(count);
        job.left = if is_flush { 0 } else { job.left - u64::from(count) };
        let is_whole = job.left == 0;
        let [word, sector] = request.encode();
        let at = request_offset(self.head);
        self.words.store_u64(at, word);
        self.words.store_u64(at + 8, sector);
        self.head = self.head.wrapping_add(1);
        Ok(is_whole)
    }

    /// Shows the driver what was put into the ring.
    fn publish(&self) {
        self.words.store(REQUEST_HEAD, self.head);
        // Pairs with the fence in `Server::prepare_to_wait`.
        fence(Ordering::SeqCst);
        let word = self.words.0.atomic_u32(DRIVER_SLEEPS);
        if word.is_ok_and(|word| word.load(Ordering::Relaxed) != 0 && word.swap(0, Ordering::AcqRel) != 0) {
            self.driver.signal();
        }
    }

    /// Nothing more of a job is begun.
    fn fail(&mut self, index: usize, error: BlockError) {
        self.queue.retain(|&queued| queued != index);
        if let Some(job) = self.jobs.get_mut(index).and_then(Option::as_mut) {
            job.left = 0;
            job.result = job.result.and(Err(error));
        }
        self.finish_if_done(index);
    }

    /// Takes completions out of the ring.
    fn collect(&mut self, memory: &mut dyn GuestMemory) {
        let head = self.words.load(COMPLETION_HEAD);
        if head.wrapping_sub(self.tail) as usize > SLOTS {
            return self.distrust();
        }
        while self.tail != head {
            let completion = block::Completion::decode(self.words.load(completion_offset(self.tail)));
            self.tail = self.tail.wrapping_add(1);
            let Some(part) = self.slots.get_mut(usize::from(completion.slot)).and_then(Option::take) else {
                return self.distrust();
            };
            self.end_part(memory, completion, part);
        }
    }

    fn end_part(&mut self, memory: &mut dyn GuestMemory, completion: block::Completion, part: Part) {
        let Some(job) = self.jobs.get_mut(part.job).and_then(Option::as_mut) else {
            return;
        };
        job.parts -= 1;
        let result = match completion.status {
            Status::Done if job.action == Action::Read && !job.is_abandoned => {
                let from = data_offset(completion.slot);
                let to = job.cursor(part.offset);
                copy::to_guest(&self.words, from, memory, to, part.bytes, &mut self.bounce)
            }
            Status::Done => Ok(()),
            Status::OutOfRange => Err(BlockError::OutOfRange),
            Status::ReadOnly => Err(BlockError::ReadOnly),
            Status::Unsupported => Err(BlockError::Unsupported),
            Status::Io => Err(BlockError::Io),
        };
        match result {
            Ok(()) => self.finish_if_done(part.job),
            Err(error) => self.fail(part.job, error),
        }
    }
}

impl<S: Signal> Backend for Client<S> {
    /// As it was when [`Client::connect`] first saw it; an empty disk before.
    fn geometry(&self) -> Geometry {
        let disk = self.disk.unwrap_or(DiskInfo::new(0, 0));
        let DiskInfo { sectors, is_read_only, has_cache } = disk;
        Geometry { sectors, is_read_only, can_discard: false, has_cache }
    }

    fn submit(
        &mut self,
        memory: &mut dyn GuestMemory,
        token: Token,
        request: &Request<'_>,
    ) -> Poll<Completion> {
        let bytes = |segments: &[Segment]| vdev::segment::total_bytes(segments) / SECTOR_BYTES as u64;
        let (action, segments, sector, left) = match *request {
            Request::Read { sector, into } => (Action::Read, into, sector, bytes(into)),
            Request::Write { sector, from } => (Action::Write, from, sector, bytes(from)),
            Request::Flush => (Action::Flush, &[][..], 0, 1),
            Request::WriteZeroes { sector, count, .. } => (Action::Zero, &[][..], sector, count),
            Request::Discard { .. } => return Poll::Ready(Err(BlockError::Unsupported)),
        };
        self.follow_driver();
        if self.is_served() {
            // What a reset device asked for may be completed, and its slots be all there are: nobody may signal that again.
            self.collect(memory);
        }
        if self.link == Link::Down {
            return Poll::Ready(Err(BlockError::Io));
        }
        if left == 0 {
            return Poll::Ready(Ok(()));
        }
        let segments = segments.to_vec();
        let job = Job {
            token,
            action,
            segments,
            sector,
            left,
            offset: 0,
            parts: 0,
            result: Ok(()),
            is_abandoned: false,
        };
        let index = self.add_job(job);
        self.queue.push_back(index);
        if self.is_served() {
            self.pump(memory);
        }
        // It may have failed before its first part was out.
        match self.completed.iter().position(|&(completed, _)| completed == token) {
            Some(at) => self.completed.remove(at).map_or(Poll::Pending, |(_, result)| Poll::Ready(result)),
            None => Poll::Pending,
        }
    }

    fn has_room(&self) -> bool {
        self.job_count + self.completed.len() < MAX_REQUESTS && self.segment_count < MAX_SEGMENTS
    }

    fn take_completed(&mut self, memory: &mut dyn GuestMemory) -> Option<(Token, Completion)> {
        if self.completed.is_empty() {
            self.follow_driver();
            if self.is_served() {
                self.collect(memory);
                self.pump(memory);
            }
        }
        self.completed.pop_front()
    }

    fn abandon(&mut self) {
        self.completed.clear();
        (0..self.jobs.len()).for_each(|index| self.abandon_job(index));
    }

    fn abandon_one(&mut self, token: Token) {
        self.completed.retain(|&(completed, _)| completed != token);
        let is_it =
            |job: &Option<Job>| job.as_ref().is_some_and(|job| job.token == token && !job.is_abandoned);
        if let Some(index) = self.jobs.iter().position(is_it) {
            self.abandon_job(index);
        }
    }
}
