//! Memory of a guest with a balloon: given to the root task and asked back, piece by piece ([`vmm_protocol::balloon`]).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::Ordering;
use usys::abi::cap::MapFlags;
use usys::abi::{PAGE_SIZE, Selector};
use usys::cap::{Cap, GuestSpace, Memory, Narrow, Ntfn};
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use usys::{Window, memory, selector};
use vmm_core::layout::Layout;
use vmm_protocol::balloon::{ANSWER, GIVEN, GRANTED, PIECE_PAGES, TARGET, WANTED};
use vmm_protocol::process::{BALLOON, monitor};

/// Bytes of a piece.
pub const PIECE_BYTES: u64 = PIECE_PAGES * PAGE_SIZE;

/// A part of the guest's memory. Its capability maps it here; the guest's space needs another.
#[derive(Debug)]
struct Piece {
    /// Selector of the capability for the guest's space.
    guest: Selector,
    is_missing: Cell<bool>,
}

/// The pieces of a guest's memory.
#[derive(Debug)]
pub struct Pieces {
    page: Window,
    space: Cap<GuestSpace>,
    layout: Layout,
    pieces: Vec<Piece>,
    /// A piece that somebody needed did not come back.
    is_exhausted: Cell<bool>,
}

impl Pieces {
    /// All of them, mapped; `None` if the VM has no balloon. They are never freed: there is one VM in this process.
    pub fn map(
        info: &'static ProcessInfo,
        space: Cap<GuestSpace>,
        layout: Layout,
    ) -> Option<usys::Result<&'static Self>> {
        let page = info.window(BALLOON)?;
        let count = layout.memory_bytes().div_ceil(PIECE_BYTES);
        let mut all = Pieces { page, space, layout, pieces: Vec::new(), is_exhausted: Cell::new(false) };
        for index in 0..count {
            let new = selector::allocate().and_then(|guest| {
                all.pieces.push(Piece { guest, is_missing: Cell::new(false) });
                all.attach(index as usize)
            });
            if let Err(error) = new {
                return Some(Err(error));
            }
        }
        Some(Ok(Box::leak(Box::new(all))))
    }

    /// Maps a piece, of which there is a capability, here and in the guest.
    fn attach(&self, index: usize) -> usys::Result<()> {
        let first = index as u64 * PIECE_PAGES;
        let pages = (self.layout.memory_bytes() / PAGE_SIZE - first).min(PIECE_PAGES);
        let own = capability(index);
        memory::map_guest_memory(own, first, pages)?;
        let all = MapFlags::READ | MapFlags::WRITE | MapFlags::EXECUTE;
        let address = self.layout.address(first * PAGE_SIZE);
        own.derive(self.pieces[index].guest, Narrow::ALL)?.map(self.space, address, 0, pages, all)
    }

    /// Lets the root task have the pieces that lie in these bytes as a whole, by offset in the guest's memory.
    pub fn give(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes) / PIECE_BYTES;
        for index in offset.div_ceil(PIECE_BYTES) as usize..self.pieces.len().min(end as usize) {
            if !self.pieces[index].is_missing.get() {
                self.give_piece(index);
            }
        }
    }

    fn give_piece(&self, index: usize) {
        // With it goes what is derived from it, and every mapping: nobody changes the piece any more.
        if let Err(error) = capability(index).delete() {
            log::error!("{error}");
            return;
        }
        self.pieces[index].is_missing.set(true);
        if let Ok(word) = self.page.atomic_u64(GIVEN + index / 64 * 8) {
            word.fetch_or(1 << (index % 64), Ordering::Release);
        }
        // Without a parent nobody takes it.
        let _ = process::parent().signal();
    }

    /// Whether some byte of these is in a piece that the root task has.
    pub fn is_missing(&self, offset: u64, bytes: u64) -> bool {
        self.missing_of(offset, bytes).is_some()
    }

    fn missing_of(&self, offset: u64, bytes: u64) -> Option<usize> {
        let last = offset.saturating_add(bytes.max(1) - 1) / PIECE_BYTES;
        let mut touched = (offset / PIECE_BYTES) as usize..self.pieces.len().min(last as usize + 1);
        touched.find(|index| self.pieces[*index].is_missing.get())
    }

    /// Has these bytes, by offset in the guest's memory, where the guest left them; whether they are there now.
    #[inline]
    pub fn fetch(&self, offset: u64, bytes: u64) -> bool {
        while let Some(index) = self.missing_of(offset, bytes) {
            if !self.fetch_piece(index) {
                self.is_exhausted.set(true);
                return false;
            }
        }
        true
    }

    #[cold]
    fn fetch_piece(&self, index: usize) -> bool {
        let is_granted = self.ask(index).unwrap_or(false);
        let done = if is_granted { self.attach(index) } else { return false };
        match done {
            Ok(()) => self.pieces[index].is_missing.set(false),
            Err(error) => log::error!("{error}"),
        }
        done.is_ok()
    }

    /// The capability that the page at `offset` is of, and which of its pages it is, if the piece is here.
    pub fn page(&self, offset: u64) -> Option<(Cap<Memory>, u64)> {
        let page = offset % PIECE_BYTES / PAGE_SIZE;
        (!self.is_missing(offset, 1)).then(|| (capability((offset / PIECE_BYTES) as usize), page))
    }

    /// Asks for a piece; `None` if the page is not as it should be.
    fn ask(&self, index: usize) -> Option<bool> {
        let (wanted, answer) = (self.page.atomic_u64(WANTED).ok()?, self.page.atomic_u32(ANSWER).ok()?);
        answer.store(0, Ordering::Relaxed);
        wanted.store(index as u64 + 1, Ordering::Release);
        let _ = process::parent().signal();
        let answered: Cap<Ntfn> = Cap::new(Selector(monitor::BALLOON_ANSWER));
        loop {
            match answer.load(Ordering::Acquire) {
                0 => answered.wait(FOREVER).ok()?,
                answer => return Some(answer == GRANTED),
            };
        }
    }

    /// Offset in the guest's memory of the first piece that the root task has.
    pub fn first_missing(&self) -> Option<u64> {
        let first = self.pieces.iter().position(|piece| piece.is_missing.get())?;
        Some(first as u64 * PIECE_BYTES)
    }

    /// Bytes that the root task has.
    pub fn missing_bytes(&self) -> u64 {
        self.pieces.iter().filter(|piece| piece.is_missing.get()).count() as u64 * PIECE_BYTES
    }

    /// How many pages the root task would like to have.
    pub fn target(&self) -> u64 {
        self.page.atomic_u64(TARGET).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Whether something was missing that did not come back.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted.get()
    }
}

/// The capability that the root task gives for a piece.
fn capability(index: usize) -> Cap<Memory> {
    Cap::new(Selector(monitor::GUEST_MEMORY + index as u32))
}
