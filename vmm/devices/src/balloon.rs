//! Memory that a guest does without.
//!
//! A guest gives pages one by one; their owner takes memory in pieces of 2 MiB, as nested page tables map it. A piece goes
//! when its last page was given ([`GuestMemory::discard`]), and comes back when somebody touches it, zeroed. So taking a page
//! back is only a note here. Which pages a guest gives is its own business: one that it still uses, be it under a page table
//! or a ring, reads as zero afterwards, to it and to its devices.

use crate::guest_mem::GuestMemory;
use alloc::vec::Vec;
use core::ops::Range;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Pages of a piece.
pub const PIECE_PAGES: u64 = 512;
/// Bytes of a piece.
pub const PIECE_BYTES: u64 = PIECE_PAGES * PAGE_BYTES;

const WORDS: usize = PIECE_PAGES as usize / 64;

/// A request named pages that are not RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRam;

/// Which pages of a piece were given, as bits.
#[derive(Clone, Copy, Default, Debug)]
struct Piece([u64; WORDS]);

impl Piece {
    fn bit(page: u64) -> (usize, u64) {
        ((page % PIECE_PAGES / 64) as usize, 1 << (page % 64))
    }

    /// Whether `page` was not given before.
    fn give(&mut self, page: u64) -> bool {
        let (word, bit) = Self::bit(page);
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    /// Whether `page` was given before.
    fn take(&mut self, page: u64) -> bool {
        let (word, bit) = Self::bit(page);
        let was_given = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was_given
    }

    fn is_whole(&self) -> bool {
        self.0.iter().all(|word| *word == u64::MAX)
    }
}

/// What a guest says about its memory, in pages or events; what it does not say is 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct MemoryStats {
    /// Pages that nothing uses.
    pub free_pages: u64,
    /// Pages that could be used without swapping.
    pub available_pages: u64,
    /// All pages that the guest's kernel has.
    pub total_pages: u64,
}

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    /// Ranges of RAM, in page numbers. Each begins at a piece.
    ram: Vec<Range<u64>>,
    /// The pieces of all ranges, in their order; made when the first page is given.
    pieces: Vec<Piece>,
    given: u64,
    target: u64,
    takes_reports: bool,
    stats: MemoryStats,
}

impl Balloon {
    /// A balloon with nothing in it, in a guest with these ranges of RAM by guest-physical address; all but the last end at a
    /// multiple of 2 MiB, and each begins at one. `takes_reports`: of memory that is free, unasked.
    pub fn new(ram: impl Iterator<Item = Range<u64>>, takes_reports: bool) -> Self {
        let in_pages = |range: Range<u64>| range.start / PAGE_BYTES..range.end / PAGE_BYTES;
        Balloon {
            ram: ram.map(in_pages).collect(),
            pieces: Vec::new(),
            given: 0,
            target: 0,
            takes_reports,
            stats: MemoryStats::default(),
        }
    }

    /// How many pages the owner of the memory would like to have.
    pub fn target(&self) -> u64 {
        self.target
    }

    /// Sets [`Self::target`]; whether that is news.
    pub fn set_target(&mut self, pages: u64) -> bool {
        let old = core::mem::replace(&mut self.target, pages);
        old != pages
    }

    /// Whether the guest may say unasked which memory is free.
    pub fn takes_reports(&self) -> bool {
        self.takes_reports
    }

    /// Pages that the guest has given and not taken back.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// What the guest said last about its memory.
    pub fn stats(&self) -> MemoryStats {
        self.stats
    }

    pub(crate) fn set_stats(&mut self, stats: MemoryStats) {
        self.stats = stats;
    }

    /// The guest does without these pages from now on. Those that it gave before count once.
    pub fn give(&mut self, memory: &mut impl GuestMemory, first: u64, count: u64) -> Result<(), NotRam> {
        let base = self.check(first, count)?;
        self.make_pieces();
        for page in first..first + count {
            let piece = &mut self.pieces[(base.wrapping_add(page) / PIECE_PAGES) as usize];
            if piece.give(page) {
                self.given += 1;
                if piece.is_whole() {
                    memory.discard(page / PIECE_PAGES * PIECE_BYTES, PIECE_BYTES);
                }
            }
        }
        Ok(())
    }

    /// The pages are the guest's again.
    pub fn take(&mut self, first: u64, count: u64) -> Result<(), NotRam> {
        let base = self.check(first, count)?;
        self.make_pieces();
        for page in first..first + count {
            let was_given = self.pieces[(base.wrapping_add(page) / PIECE_PAGES) as usize].take(page);
            self.given -= u64::from(was_given);
        }
        Ok(())
    }

    /// The guest needs what is in these pages no more, and keeps them.
    pub fn report(&mut self, memory: &mut impl GuestMemory, first: u64, count: u64) -> Result<(), NotRam> {
        self.check(first, count)?;
        // Pieces that are in the range as a whole.
        let pieces = first.div_ceil(PIECE_PAGES)..(first + count) / PIECE_PAGES;
        for piece in pieces {
            memory.discard(piece * PIECE_BYTES, PIECE_BYTES);
        }
        Ok(())
    }

    /// All pages are the guest's again.
    pub fn reset(&mut self) {
        self.pieces.fill(Piece::default());
        self.given = 0;
        self.stats = MemoryStats::default();
    }

    /// What to add to a page's number in this range for its number in all of RAM, modulo 2^64.
    fn check(&self, first: u64, count: u64) -> Result<u64, NotRam> {
        let end = first.checked_add(count).ok_or(NotRam)?;
        let mut before = 0u64;
        for range in &self.ram {
            if range.start <= first && end <= range.end {
                return Ok(before.wrapping_sub(range.start));
            }
            before += range.end - range.start;
        }
        Err(NotRam)
    }

    fn make_pieces(&mut self) {
        if self.pieces.is_empty() {
            let pages: u64 = self.ram.iter().map(|range| range.end - range.start).sum();
            self.pieces.resize(pages.div_ceil(PIECE_PAGES) as usize, Piece::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_mem::OutOfRange;

    /// Remembers what was discarded.
    #[derive(Default)]
    struct Owner(Vec<u64>);

    impl GuestMemory for Owner {
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), OutOfRange> {
            Ok(())
        }
        fn write(&mut self, _: u64, _: &[u8]) -> Result<(), OutOfRange> {
            Ok(())
        }
        fn size_bytes(&self) -> u64 {
            0
        }
        fn discard(&mut self, gpa: u64, bytes: u64) {
            assert_eq!(bytes, PIECE_BYTES);
            self.0.push(gpa);
        }
    }

    const HIGH: u64 = 0x1_0000_0000;

    /// 7 MiB below 4 GiB less one half of a piece, 4 MiB above.
    fn balloon() -> Balloon {
        Balloon::new([0..6 << 20, HIGH..HIGH + (5 << 20)].into_iter(), true)
    }

    #[test]
    fn a_piece_goes_with_its_last_page_and_pages_count_once() {
        let (mut balloon, mut owner) = (balloon(), Owner::default());
        for page in (512..1023).rev() {
            balloon.give(&mut owner, page, 1).unwrap();
            balloon.give(&mut owner, page, 1).unwrap();
        }
        assert_eq!((balloon.given(), owner.0.len()), (511, 0));
        balloon.give(&mut owner, 1023, 1).unwrap();
        assert_eq!((balloon.given(), &*owner.0), (512, &[2 << 20][..]));
        balloon.take(600, 1).unwrap();
        balloon.take(600, 1).unwrap();
        assert_eq!((balloon.given(), owner.0.len()), (511, 1));
        balloon.give(&mut owner, 600, 1).unwrap();
        assert_eq!(owner.0.len(), 2);
    }

    #[test]
    fn ranges_above_four_gib_have_pieces_of_their_own() {
        let (mut balloon, mut owner) = (balloon(), Owner::default());
        balloon.give(&mut owner, HIGH / PAGE_BYTES, 1280).unwrap();
        assert_eq!(owner.0, [HIGH, HIGH + (2 << 20)], "half a piece at the end of memory stays");
        assert_eq!(balloon.given(), 1280);
        balloon.reset();
        assert_eq!(balloon.given(), 0);
    }

    #[test]
    fn pages_that_are_not_ram_are_refused_and_nothing_of_them_is_done() {
        let (mut balloon, mut owner) = (balloon(), Owner::default());
        let bad = [
            (1535, 2),
            (1536, 1),
            (u64::MAX, 1),
            (1, u64::MAX),
            (HIGH / PAGE_BYTES - 1, 2),
            (HIGH / PAGE_BYTES, 1281),
        ];
        for (first, count) in bad {
            assert_eq!(balloon.give(&mut owner, first, count), Err(NotRam), "{first:#x} {count:#x}");
            assert_eq!(balloon.take(first, count), Err(NotRam));
            assert_eq!(balloon.report(&mut owner, first, count), Err(NotRam));
        }
        assert_eq!((balloon.given(), owner.0.len()), (0, 0));
    }

    #[test]
    fn of_what_is_reported_whole_pieces_go() {
        let (mut balloon, mut owner) = (balloon(), Owner::default());
        balloon.report(&mut owner, 1, 1535).unwrap();
        balloon.report(&mut owner, 1, 600).unwrap();
        assert_eq!(owner.0, [2 << 20, 4 << 20]);
        assert_eq!(balloon.given(), 0);
    }
}
