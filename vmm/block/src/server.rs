//! The driver's end.

use crate::{Signal, Words};
use core::sync::atomic::{Ordering, fence};
use usys::Window;
use usys::window::OutOfWindow;
use vmm_protocol::block::{
    COMPLETION_HEAD, Completion, DRIVER_SLEEPS, DiskInfo, EPOCH, FLAGS, REQUEST_HEAD, Request, SECTORS,
    SERVED, SLOTS, Served, Status, completion_offset, data_offset, request_offset,
};

/// What a driver may do that has done everything it knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait: it is signalled.
    Sleep,
    /// Look: there is a request.
    Serve,
    /// [`Server::begin`], as soon as nothing is in flight any more.
    Begin,
}

/// Serves one user.
#[derive(Debug)]
pub struct Server<S> {
    words: Words,
    user: S,
    disk: DiskInfo,
    served: Served,
    /// Requests taken.
    tail: u32,
    /// Completions given.
    head: u32,
    /// Nothing is served in this epoch: it began without this driver, or the user broke the rules.
    is_deaf: bool,
    /// The user was not told of the last completions.
    owes_signal: bool,
}

impl<S: Signal> Server<S> {
    /// Driver number `session` of this disk. It serves nobody yet, but the user can see the disk.
    ///
    /// # Errors
    /// The memory is too short for a channel.
    pub fn new(window: Window, user: S, session: u32, disk: DiskInfo) -> Result<Self, OutOfWindow> {
        let words = Words::new(window)?;
        words.store_u64(SECTORS, disk.sectors);
        words.store(FLAGS, disk.flags());
        let served = Served { session, epoch: 0 };
        words.store_u64(SERVED, served.encode());
        user.signal();
        Ok(Server { words, user, disk, served, tail: 0, head: 0, is_deaf: true, owes_signal: false })
    }

    /// Whether the user wants to begin with empty rings. Then finish, or drop, what is in flight, and [`Self::begin`].
    pub fn is_asked_to_begin(&self) -> bool {
        self.words.load(EPOCH) != self.served.epoch
    }

    /// Begins the user's epoch. No data of a slot may be touched any more for what was taken before.
    pub fn begin(&mut self) {
        self.served.epoch = self.words.load(EPOCH);
        self.is_deaf = self.words.load(REQUEST_HEAD) != 0;
        (self.tail, self.head) = (0, 0);
        self.words.store(COMPLETION_HEAD, 0);
        self.words.store_u64(SERVED, self.served.encode());
        self.owes_signal = true;
    }

    /// The next request. What this disk cannot do is completed at once, and not seen here.
    pub fn take(&mut self) -> Option<Request> {
        // A user that always has another bad request gets no further than a ring of them.
        for _ in 0..SLOTS {
            if !self.has_request() {
                return None;
            }
            let offset = request_offset(self.tail);
            self.tail = self.tail.wrapping_add(1);
            match Request::decode([self.words.load_u64(offset), self.words.load_u64(offset + 8)], &self.disk)
            {
                Ok(request) => return Some(request),
                Err((Some(slot), status)) => self.complete(slot, status),
                Err((None, _)) => self.is_deaf = true,
            }
        }
        None
    }

    fn has_request(&mut self) -> bool {
        let ahead = self.words.load(REQUEST_HEAD).wrapping_sub(self.tail);
        // No more than the slots can be in flight.
        self.is_deaf |= ahead as usize > SLOTS;
        !self.is_deaf && ahead > 0
    }

    /// The data of a slot; the user can change it at any moment.
    pub fn data(&self, slot: u8, bytes: usize) -> Result<Window, OutOfWindow> {
        self.words.0.slice(data_offset(slot), bytes)
    }

    /// Completes a request.
    pub fn complete(&mut self, slot: u8, status: Status) {
        self.words.store(completion_offset(self.head), Completion { slot, status }.encode());
        self.head = self.head.wrapping_add(1);
        self.words.store(COMPLETION_HEAD, self.head);
        self.owes_signal = true;
    }

    /// Tells the user of what was completed since the last time.
    pub fn notify(&mut self) {
        if core::mem::take(&mut self.owes_signal) {
            self.user.signal();
        }
    }

    /// Asks for a signal, if there is not something to do already.
    pub fn prepare_to_wait(&mut self) -> Wait {
        self.words.store(DRIVER_SLEEPS, 1);
        // Pairs with the fence in `Client::publish`: either this sees the request, or the user sees the word.
        fence(Ordering::SeqCst);
        let wait = match (self.has_request(), self.is_asked_to_begin()) {
            (true, _) => Wait::Serve,
            (false, true) => Wait::Begin,
            (false, false) => return Wait::Sleep,
        };
        self.words.store(DRIVER_SLEEPS, 0);
        wait
    }
}
