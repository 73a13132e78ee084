//! Which address is behind which port.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Entries that an address can be in.
const WAYS: usize = 4;
/// Sets of them.
const SETS: usize = 256;
/// How long an address that was not heard of is remembered, in seconds (IEEE 802.1D-2004 table 7-5).
const AGE_SECONDS: u64 = 300;

/// An Ethernet address: its bytes in the low 48 bits, the first one lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

impl Address {
    /// Whether it stands for several stations: all, or a group.
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Learned {
    address: Address,
    port: u8,
    /// Time until which it counts; 0 for an entry that is free.
    until: u64,
}

/// The addresses of a network.
#[derive(Debug)]
pub struct Table {
    /// Those that cards have, sorted: nobody else can take them.
    fixed: Vec<(Address, u8)>,
    learned: Box<[[Learned; WAYS]]>,
    /// Ticks that an address is remembered.
    age: u64,
}

impl Table {
    /// A table with the addresses of these ports.
    pub fn new(fixed: impl Iterator<Item = (Address, usize)>, ticks_per_second: u64) -> Self {
        let mut fixed: Vec<_> = fixed.map(|(address, port)| (address, port as u8)).collect();
        fixed.sort_unstable();
        let free = Learned { address: Address(0), port: 0, until: 0 };
        let learned = alloc::vec![[free; WAYS]; SETS].into_boxed_slice();
        Table { fixed, learned, age: ticks_per_second.saturating_mul(AGE_SECONDS).max(1) }
    }

    /// The port behind which the address is.
    #[inline(always)]
    pub fn find(&self, address: Address, now: u64) -> Option<usize> {
        let learned = || self.learned[set(address)].iter().find(|entry| entry.is(address, now));
        self.find_fixed(address).or_else(|| learned().map(|entry| entry.port.into()))
    }

    fn find_fixed(&self, address: Address) -> Option<usize> {
        let at = self.fixed.binary_search_by_key(&address, |entry| entry.0).ok()?;
        Some(self.fixed[at].1.into())
    }

    /// Notes that the address is behind the port. `false` if it is a card's behind another.
    #[inline(always)]
    pub fn learn(&mut self, address: Address, port: usize, now: u64) -> bool {
        if let Some(owner) = self.find_fixed(address) {
            return owner == port;
        }
        let ways = &mut self.learned[set(address)];
        // Else the one that was not heard of for longest goes.
        let known = ways.iter().position(|entry| entry.address == address);
        let oldest = || (0..WAYS).min_by_key(|&way| ways[way].until).unwrap_or(0);
        let way = known.unwrap_or_else(oldest);
        ways[way] = Learned { address, port: port as u8, until: now.saturating_add(self.age) };
        true
    }
}

impl Learned {
    fn is(&self, address: Address, now: u64) -> bool {
        self.address == address && now < self.until
    }
}

/// The set of an address: its bits, mixed by a multiplication (Knuth, volume 3, 6.4).
fn set(address: Address) -> usize {
    (address.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % SETS
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Address = Address(0x02);
    const GUEST: Address = Address(0x1000);

    fn table() -> Table {
        Table::new([(CARD, 3)].into_iter(), 10)
    }

    #[test]
    fn an_address_is_where_it_was_heard_last_and_forgotten_in_time() {
        let mut table = table();
        assert_eq!(table.find(GUEST, 0), None);
        assert!(table.learn(GUEST, 1, 0));
        assert_eq!(table.find(GUEST, 2999), Some(1));
        assert!(table.learn(GUEST, 2, 1000));
        assert_eq!(table.find(GUEST, 3999), Some(2));
        assert_eq!(table.find(GUEST, 4000), None);
    }

    #[test]
    fn a_cards_address_is_behind_its_port_for_ever() {
        let mut table = table();
        assert!(!table.learn(CARD, 1, 5));
        assert!(table.learn(CARD, 3, 5));
        assert_eq!(table.find(CARD, u64::MAX), Some(3));
    }

    #[test]
    fn a_flood_of_addresses_drives_out_the_oldest_and_needs_no_more_memory() {
        let mut table = table();
        for number in 0..100_000 {
            assert!(table.learn(Address(number << 8), 1, number));
            assert_eq!(table.find(Address(number << 8), number), Some(1));
        }
        let known = (0..100_000).filter(|number| table.find(Address(number << 8), 100_000).is_some()).count();
        assert!(known <= WAYS * SETS);
        assert_eq!(table.find(CARD, 0), Some(3));
    }
}
