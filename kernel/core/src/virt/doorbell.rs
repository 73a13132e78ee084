//! Which doorbell a guest rings: a fixed table of one frame for each guest space.
//!
//! Exits look it up without a lock, while at most one CPU changes it. An entry becomes visible with its key, and whoever
//! removes one waits for a grace period before it, or what it names, is used again.

use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::doorbell::Doorbell;
#[cfg(doc)]
use hypercall_abi::exit::PortIo;

/// Places of a table. One stays empty, where searches end.
const ENTRIES: usize = 128;

/// Doorbells of a guest space at most.
pub const MAX_DOORBELLS: usize = ENTRIES - 1;

/// The place was never used: no entry is behind it.
const EMPTY: u64 = 0;
/// The place was used; entries may be behind it. No event has these low bits.
const GONE: u64 = 15;

/// What a guest did, in the terms of the table: kind in bits 0-3; the index of a call, the number of a page, or port and bytes of
/// an OUT, from bit 4 on; EAX of an OUT from bit 32 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(u64);

impl Event {
    /// A doorbell call, by its index.
    pub const fn call(index: u16) -> Self {
        Event(1 | (index as u64) << 4)
    }

    /// An OUT: port in bits 0-15 and bytes in bits 16-23, as in [`PortIo::encode`], and RAX, of which it writes some bytes.
    pub const fn out(port_and_size: u32, rax: u64) -> Self {
        Event(2 | (port_and_size as u64) << 4 | rax << 32)
    }

    /// A write to a page, by the page's number (36 bits).
    pub const fn write(number: u64) -> Self {
        Event(3 | number << 4)
    }

    /// Where the search begins. Only bits of which every mask has all.
    const fn home(self) -> usize {
        ((self.0 as u32).wrapping_mul(0x9e37_79b1) >> 25) as usize
    }
}

/// The events that are a trigger's: those that agree with the first in the bits of the second.
const fn pattern(trigger: Doorbell) -> (Event, u64) {
    const NO_DATA: u64 = u32::MAX as u64;
    match trigger {
        Doorbell::Call(index) => (Event::call(index), u64::MAX),
        Doorbell::Port { port, size, data } => {
            let (value, written) = match data {
                None => (0, 0),
                Some(value) => (value, u64::MAX >> (64 - 8 * size as u32)),
            };
            let event = Event::out(port as u32 | (size as u32) << 16, value as u64);
            (event, NO_DATA | written << 32)
        }
        Doorbell::Page(number) => (Event::write(number), u64::MAX),
    }
}

/// What is rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bell {
    /// Address of the semaphore or notification.
    pub signal: u64,
    /// The badge of the capability that it was bound with.
    pub badge: u64,
}

/// Why a doorbell cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An event would ring two.
    Taken,
    /// There are [`MAX_DOORBELLS`].
    Full,
}

#[repr(C)]
#[derive(Debug, Default)]
struct Entry {
    key: AtomicU64,
    mask: AtomicU64,
    signal: AtomicU64,
    badge: AtomicU64,
}

/// The doorbells of a guest space. All-zero bytes are an empty table.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Table {
    entries: [Entry; ENTRIES],
}

const _: () = assert!(size_of::<Table>() == hypercall_abi::PAGE_SIZE as usize);

/// The place after this one.
const fn next(place: usize) -> usize {
    (place + 1) % ENTRIES
}

impl Table {
    /// The doorbell that an event rings.
    #[inline]
    pub fn find(&self, event: Event) -> Option<Bell> {
        let mut place = event.home();
        for _ in 0..ENTRIES {
            let entry = &self.entries[place];
            let key = entry.key.load(Ordering::Acquire);
            if (key ^ event.0) & entry.mask.load(Ordering::Relaxed) == 0 && key != EMPTY {
                return Some(Bell {
                    signal: entry.signal.load(Ordering::Relaxed),
                    badge: entry.badge.load(Ordering::Relaxed),
                });
            }
            if key == EMPTY {
                return None;
            }
            place = next(place);
        }
        None
    }

    /// Adds a doorbell, and says where it is. One caller at a time.
    pub fn insert(&self, trigger: Doorbell, bell: Bell) -> Result<usize, Refusal> {
        let (event, mask) = pattern(trigger);
        let mut free = None;
        let mut place = event.home();
        for _ in 0..ENTRIES {
            let entry = &self.entries[place];
            let key = entry.key.load(Ordering::Relaxed);
            if key == EMPTY || key == GONE {
                free = free.or(Some(place));
            } else if (key ^ event.0) & mask & entry.mask.load(Ordering::Relaxed) == 0 {
                return Err(Refusal::Taken);
            }
            if key == EMPTY {
                break;
            }
            place = next(place);
        }
        let place = free.ok_or(Refusal::Full)?;
        let is_empty = |entry: &&Entry| entry.key.load(Ordering::Relaxed) == EMPTY;
        if is_empty(&&self.entries[place]) && self.entries.iter().filter(is_empty).count() == 1 {
            return Err(Refusal::Full);
        }
        let entry = &self.entries[place];
        entry.mask.store(mask, Ordering::Relaxed);
        entry.signal.store(bell.signal, Ordering::Relaxed);
        entry.badge.store(bell.badge, Ordering::Relaxed);
        entry.key.store(event.0, Ordering::Release);
        Ok(place)
    }

    /// Removes the doorbell at a place. One caller at a time, who waits for a grace period before the next [`Self::insert`].
    pub fn remove(&self, mut place: usize) {
        let key = |place: usize| &self.entries[place % ENTRIES].key;
        key(place).store(GONE, Ordering::Release);
        // Searches need not go on over places that lead nowhere.
        for _ in 0..ENTRIES {
            let is_last = key(next(place)).load(Ordering::Relaxed) == EMPTY;
            if !is_last || key(place).load(Ordering::Relaxed) != GONE {
                return;
            }
            key(place).store(EMPTY, Ordering::Release);
            place = (place + ENTRIES - 1) % ENTRIES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    fn table() -> Box<Table> {
        Box::new(Table {
            entries: [const {
                Entry {
                    key: AtomicU64::new(0),
                    mask: AtomicU64::new(0),
                    signal: AtomicU64::new(0),
                    badge: AtomicU64::new(0),
                }
            }; ENTRIES],
        })
    }

    fn bell(badge: u64) -> Bell {
        Bell { signal: 0x1000, badge }
    }

    fn out(port: u16, size: u8, rax: u64) -> Event {
        Event::out(u32::from(port) | u32::from(size) << 16, rax)
    }

    const fn port(port: u16, size: u8, data: Option<u32>) -> Doorbell {
        Doorbell::Port { port, size, data }
    }

    #[test]
    fn each_event_rings_its_own_doorbell() {
        let table = table();
        let triggers = [
            Doorbell::Call(7),
            Doorbell::Page(7),
            port(7, 1, None),
            port(7, 2, Some(0x1234)),
            port(7, 2, Some(0x1235)),
            port(7, 4, None),
        ];
        for (badge, &trigger) in triggers.iter().enumerate() {
            table.insert(trigger, bell(badge as u64)).unwrap();
        }
        let rung = |event| table.find(event).map(|bell| bell.badge);
        assert_eq!(rung(Event::call(7)), Some(0));
        assert_eq!(rung(Event::write(7)), Some(1));
        assert_eq!(rung(out(7, 1, 0x99)), Some(2));
        assert_eq!(rung(out(7, 2, 0xdead_1234)), Some(3));
        assert_eq!(rung(out(7, 2, 0x1235)), Some(4));
        assert_eq!(rung(out(7, 2, 0x1236)), None);
        assert_eq!(rung(out(7, 4, u64::MAX)), Some(5));
        assert_eq!(rung(Event::call(8)), None);
        assert_eq!(rung(Event::write(7 + (1 << 32))), None);
    }

    #[test]
    fn no_event_rings_two() {
        let table = table();
        table.insert(port(0x60, 2, Some(5)), bell(0)).unwrap();
        assert_eq!(table.insert(port(0x60, 2, None), bell(0)), Err(Refusal::Taken));
        assert_eq!(table.insert(port(0x60, 2, Some(5)), bell(0)), Err(Refusal::Taken));
        assert!(table.insert(port(0x60, 2, Some(6)), bell(0)).is_ok());
        assert!(table.insert(port(0x60, 1, None), bell(0)).is_ok());
        assert_eq!(table.insert(port(0x60, 1, Some(0)), bell(0)), Err(Refusal::Taken));
    }

    #[test]
    fn a_removed_doorbell_is_silent_and_hides_no_other() {
        let table = table();
        // All of one port begin at one place, so that they are behind each other.
        let places: Vec<usize> =
            (0..20).map(|data| table.insert(port(3, 4, Some(data)), bell(data.into())).unwrap()).collect();
        for (data, &place) in places.iter().enumerate().step_by(2) {
            table.remove(place);
            assert_eq!(table.find(out(3, 4, data as u64)), None);
        }
        for data in (1..20).step_by(2) {
            assert_eq!(table.find(out(3, 4, data)), Some(bell(data)));
        }
        assert_eq!(table.insert(port(3, 4, Some(100)), bell(1)), Ok(places[0]));
    }

    #[test]
    fn a_full_table_refuses_and_an_emptied_one_is_as_new() {
        let table = table();
        let places: Vec<usize> = (0..MAX_DOORBELLS as u64)
            .map(|number| table.insert(Doorbell::Page(number * 0x1001), bell(number)).unwrap())
            .collect();
        assert_eq!(table.insert(Doorbell::Call(1), bell(0)), Err(Refusal::Full));
        assert_eq!(table.find(Event::call(1)), None);
        for (number, &place) in places.iter().enumerate() {
            let event = Event::write(number as u64 * 0x1001);
            assert_eq!(table.find(event), Some(bell(number as u64)));
            table.remove(place);
            assert_eq!(table.find(event), None);
        }
        let is_empty = |entry: &Entry| entry.key.load(Ordering::Relaxed) == EMPTY;
        assert!(table.entries.iter().all(is_empty));
    }
}
