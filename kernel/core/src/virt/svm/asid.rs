//! Address-space identifiers: which TLB entries belong to which guest (APM 15.16).
//!
//! Each CPU has one [`Pool`]. Numbers are handed out in turn; when they run out, a new generation starts with a
//! flush of everything, so that a number never has translations of its previous holder. With only 15 numbers (QEMU)
//! that happens often, and nothing else changes.

/// The TLB_CONTROL field: what VMRUN flushes before the guest runs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbControl {
    /// Nothing.
    Nothing = 0,
    /// Every entry of every ASID.
    All = 1,
    /// Every entry of this ASID. Needs FlushByAsid.
    ThisAsid = 3,
}

/// The ASIDs of one CPU.
#[derive(Debug)]
pub struct Pool {
    generation: u64,
    next: u32,
    count: u32,
}

/// A vCPU's hold on an ASID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    generation: u64,
    asid: u32,
}

impl Tag {
    /// A vCPU that has none yet: generation 0 is never current.
    pub const NONE: Tag = Tag { generation: 0, asid: 0 };
}

impl Pool {
    /// A pool of the ASIDs 1 to `count` - 1. The first allocation flushes: whoever used this CPU before may have left
    /// translations.
    pub const fn new(count: u32) -> Self {
        Pool { generation: 0, next: count, count }
    }

    /// The ASID for the next run of the holder of `tag`, and what the run has to flush. `flush` says that translations
    /// of the guest may be stale.
    pub fn prepare(&mut self, tag: &mut Tag, flush: bool, has_flush_by_asid: bool) -> (u32, TlbControl) {
        let is_current = tag.generation == self.generation && tag.asid != 0;
        match (is_current, flush) {
            (true, false) => (tag.asid, TlbControl::Nothing),
            (true, true) if has_flush_by_asid => (tag.asid, TlbControl::ThisAsid),
            // A new number has no translations, which is as good as a flush.
            _ => self.allocate(tag),
        }
    }

    /// VMRUN refused the entry, which may have been the one to flush everything: the holder of `tag` gives it up, and the next
    /// allocation comes with that flush.
    pub fn refused(&mut self, tag: &mut Tag) {
        *tag = Tag::NONE;
        self.next = self.count;
    }

    fn allocate(&mut self, tag: &mut Tag) -> (u32, TlbControl) {
        let mut control = TlbControl::Nothing;
        if self.next >= self.count {
            self.generation += 1;
            self.next = 1;
            control = TlbControl::All;
        }
        *tag = Tag { generation: self.generation, asid: self.next };
        self.next += 1;
        (tag.asid, control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_asid_of_a_cpu_comes_with_a_full_flush() {
        let mut tag = Tag::NONE;
        assert_eq!(Pool::new(16).prepare(&mut tag, false, false), (1, TlbControl::All));
    }

    #[test]
    fn an_unchanged_guest_keeps_its_asid_without_a_flush() {
        let (mut pool, mut tag) = (Pool::new(16), Tag::NONE);
        pool.prepare(&mut tag, false, true);
        assert_eq!(pool.prepare(&mut tag, false, true), (1, TlbControl::Nothing));
    }

    #[test]
    fn a_flush_keeps_the_asid_where_the_cpu_flushes_by_asid() {
        let (mut pool, mut tag) = (Pool::new(16), Tag::NONE);
        pool.prepare(&mut tag, false, true);
        assert_eq!(pool.prepare(&mut tag, true, true), (1, TlbControl::ThisAsid));
    }

    #[test]
    fn a_flush_takes_a_new_asid_where_the_cpu_cannot_flush_by_asid() {
        let (mut pool, mut tag) = (Pool::new(16), Tag::NONE);
        pool.prepare(&mut tag, false, false);
        assert_eq!(pool.prepare(&mut tag, true, false), (2, TlbControl::Nothing));
    }

    #[test]
    fn no_two_guests_share_an_asid_without_a_full_flush_between_them() {
        let mut pool = Pool::new(16);
        let mut tags = [Tag::NONE; 40];
        let mut holder_of = [usize::MAX; 16];
        for round in 0..1000 {
            let guest = round * 7 % tags.len();
            let (asid, control) = pool.prepare(&mut tags[guest], round % 3 == 0, round % 2 == 0);
            assert!((1..16).contains(&asid));
            if control == TlbControl::All {
                holder_of = [usize::MAX; 16];
            }
            let holder = &mut holder_of[asid as usize];
            assert!(*holder == usize::MAX || *holder == guest);
            *holder = guest;
        }
    }

    #[test]
    fn a_flush_that_an_entry_was_refused_with_comes_with_the_next() {
        let (mut pool, mut a, mut b) = (Pool::new(16), Tag::NONE, Tag::NONE);
        assert_eq!(pool.prepare(&mut a, false, true), (1, TlbControl::All));
        pool.refused(&mut a);
        assert_eq!(pool.prepare(&mut b, false, true), (1, TlbControl::All));
        assert_eq!(pool.prepare(&mut a, false, true), (2, TlbControl::Nothing));
    }

    #[test]
    fn a_cpu_with_a_single_guest_asid_flushes_at_each_change() {
        let mut pool = Pool::new(2);
        let (mut a, mut b) = (Tag::NONE, Tag::NONE);
        assert_eq!(pool.prepare(&mut a, false, false), (1, TlbControl::All));
        assert_eq!(pool.prepare(&mut b, false, false), (1, TlbControl::All));
        assert_eq!(pool.prepare(&mut a, false, false), (1, TlbControl::All));
    }
}
