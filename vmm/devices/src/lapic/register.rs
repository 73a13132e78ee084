//! The register map, and the page that holds the registers in the hardware's layout (SDM 3A 10.4.1,
//! 10.12.1.2).

use alloc::boxed::Box;
use bitflags::bitflags;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// 32-bit words in the register page.
pub const PAGE_WORDS: usize = 1024;

/// A register, by what it is; the same set serves both ways of addressing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    Eoi,
    RemoteRead,
    LogicalDestination,
    DestinationFormat,
    SpuriousVector,
    /// One of eight words of a 256-bit vector set.
    InService(u8),
    TriggerMode(u8),
    InterruptRequest(u8),
    ErrorStatus,
    IcrLow,
    IcrHigh,
    Lvt(Lvt),
    InitialCount,
    CurrentCount,
    DivideConfiguration,
    SelfIpi,
}

/// An entry of the local vector table (SDM 3A 10.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lvt {
    Cmci,
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

/// LVT bit: the source is masked.
pub(super) const LVT_MASK: u32 = 1 << 16;
/// LVT bit, read-only: a message is on its way. Delivery takes no time here, so it is never set.
const LVT_DELIVERY_STATUS: u32 = 1 << 12;
/// LVT bit of the LINT pins, read-only.
const LVT_REMOTE_IRR: u32 = 1 << 14;

impl Lvt {
    pub(super) const ALL: [Self; 7] =
        [Self::Cmci, Self::Timer, Self::Thermal, Self::Performance, Self::Lint0, Self::Lint1, Self::Error];

    pub(super) fn writable(self) -> u32 {
        const VECTOR: u32 = 0xff;
        const DELIVERY_MODE: u32 = 7 << 8;
        const POLARITY_AND_TRIGGER: u32 = 1 << 13 | 1 << 15;
        const TIMER_MODE: u32 = 3 << 17;
        LVT_MASK
            | VECTOR
            | match self {
                Self::Timer => TIMER_MODE,
                Self::Error => 0,
                Self::Cmci | Self::Thermal | Self::Performance => DELIVERY_MODE,
                Self::Lint0 | Self::Lint1 => DELIVERY_MODE | POLARITY_AND_TRIGGER,
            }
    }

    /// Bits that must be written as 0 in x2APIC mode; read-only status bits are not among them.
    pub(super) fn reserved(self) -> u32 {
        let status = match self {
            Self::Lint0 | Self::Lint1 => LVT_DELIVERY_STATUS | LVT_REMOTE_IRR,
            _ => LVT_DELIVERY_STATUS,
        };
        !(self.writable() | status)
    }
}

impl Register {
    /// Decodes a register index: the MMIO offset divided by 16, or the MSR number less 0x800.
    pub(super) fn from_index(index: u32) -> Option<Self> {
        // The `as` casts keep three bits each.
        Some(match index {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::Eoi,
            0x0c => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e => Self::DestinationFormat,
            0x0f => Self::SpuriousVector,
            0x10..=0x17 => Self::InService((index & 7) as u8),
            0x18..=0x1f => Self::TriggerMode((index & 7) as u8),
            0x20..=0x27 => Self::InterruptRequest((index & 7) as u8),
            0x28 => Self::ErrorStatus,
            0x2f => Self::Lvt(Lvt::Cmci),
            0x30 => Self::IcrLow,
            0x31 => Self::IcrHigh,
            0x32 => Self::Lvt(Lvt::Timer),
            0x33 => Self::Lvt(Lvt::Thermal),
            0x34 => Self::Lvt(Lvt::Performance),
            0x35 => Self::Lvt(Lvt::Lint0),
            0x36 => Self::Lvt(Lvt::Lint1),
            0x37 => Self::Lvt(Lvt::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::DivideConfiguration,
            0x3f => Self::SelfIpi,
            _ => return None,
        })
    }

    /// Inverse of [`Self::from_index`]; below 0x40.
    fn index(self) -> usize {
        match self {
            Self::Id => 0x02,
            Self::Version => 0x03,
            Self::TaskPriority => 0x08,
            Self::ArbitrationPriority => 0x09,
            Self::ProcessorPriority => 0x0a,
            Self::Eoi => 0x0b,
            Self::RemoteRead => 0x0c,
            Self::LogicalDestination => 0x0d,
            Self::DestinationFormat => 0x0e,
            Self::SpuriousVector => 0x0f,
            Self::InService(word) => 0x10 + usize::from(word & 7),
            Self::TriggerMode(word) => 0x18 + usize::from(word & 7),
            Self::InterruptRequest(word) => 0x20 + usize::from(word & 7),
            Self::ErrorStatus => 0x28,
            Self::Lvt(Lvt::Cmci) => 0x2f,
            Self::IcrLow => 0x30,
            Self::IcrHigh => 0x31,
            Self::Lvt(Lvt::Timer) => 0x32,
            Self::Lvt(Lvt::Thermal) => 0x33,
            Self::Lvt(Lvt::Performance) => 0x34,
            Self::Lvt(Lvt::Lint0) => 0x35,
            Self::Lvt(Lvt::Lint1) => 0x36,
            Self::Lvt(Lvt::Error) => 0x37,
            Self::InitialCount => 0x38,
            Self::CurrentCount => 0x39,
            Self::DivideConfiguration => 0x3e,
            Self::SelfIpi => 0x3f,
        }
    }
}

bitflags! {
    /// Error status register (SDM 3A 10.5.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Esr: u32 {
        const SEND_ILLEGAL_VECTOR = 1 << 5;
        const RECEIVED_ILLEGAL_VECTOR = 1 << 6;
        const ILLEGAL_REGISTER = 1 << 7;
    }

    /// Spurious-interrupt vector register (SDM 3A 10.9), above the vector.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Svr: u32 {
        const VECTOR = 0xff;
        const SOFTWARE_ENABLE = 1 << 8;
        const SUPPRESS_EOI_BROADCAST = 1 << 12;
    }
}

/// A set of 256 vectors in the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum VectorSet {
    InService,
    TriggerMode,
    InterruptRequest,
}

impl VectorSet {
    fn word(self, word: u8) -> Register {
        match self {
            Self::InService => Register::InService(word),
            Self::TriggerMode => Register::TriggerMode(word),
            Self::InterruptRequest => Register::InterruptRequest(word),
        }
    }
}

/// The words of a page of registers: each register is in the first word of its 16 bytes, as in a virtual-APIC page (SDM 3C
/// 29.1.1).
pub type PageWords = [AtomicU32; PAGE_WORDS];

/// The registers. Whoever shares the page changes IRR, ISR, TPR and PPR in it while the guest runs.
pub(super) struct RegisterPage {
    words: Words,
    /// Bit N: word N of the set is not zero. Every entry of a guest asks for the highest member of a set. Not kept while the page
    /// is lent.
    occupied: [u8; 3],
    /// Whoever shares the page may change it.
    is_lent: bool,
    /// See [`Self::note_change`].
    has_changed: bool,
}

enum Words {
    Own(Box<PageWords>),
    Shared(&'static PageWords),
}

impl RegisterPage {
    pub(super) fn new() -> Self {
        let words = Words::Own(Box::new([const { AtomicU32::new(0) }; PAGE_WORDS]));
        Self { words, occupied: [0; 3], is_lent: false, has_changed: false }
    }

    /// Moves into a page that somebody else has, too.
    pub(super) fn share(&mut self, page: &'static PageWords) {
        for (to, from) in page.iter().zip(self.words()) {
            to.store(from.load(Relaxed), Relaxed);
        }
        self.words = Words::Shared(page);
        self.note_change();
    }

    pub(super) fn is_shared(&self) -> bool {
        matches!(self.words, Words::Shared(_))
    }

    /// Lends it to whoever shares it, or takes it back.
    pub(super) fn lend(&mut self, is_lent: bool) {
        if self.is_lent && !is_lent {
            let sets = [VectorSet::InService, VectorSet::TriggerMode, VectorSet::InterruptRequest];
            self.occupied = sets.map(|set| self.occupied_words(set));
        }
        self.is_lent = is_lent;
    }

    #[inline]
    pub(super) fn is_lent(&self) -> bool {
        self.is_lent
    }

    #[inline(never)]
    fn occupied_words(&self, set: VectorSet) -> u8 {
        (0..8).filter(|&word| self.get(set.word(word)) != 0).fold(0, |words, word| words | 1 << word)
    }

    /// What decides which interrupt comes next was changed.
    pub(super) fn note_change(&mut self) {
        self.has_changed = true;
    }

    /// Whether there was such a change since this was last asked.
    pub(super) fn take_has_changed(&mut self) -> bool {
        core::mem::take(&mut self.has_changed)
    }

    #[inline]
    pub(super) fn words(&self) -> &PageWords {
        match &self.words {
            Words::Own(words) => words,
            Words::Shared(words) => words,
        }
    }

    pub(super) fn clear(&mut self) {
        self.words().iter().for_each(|word| word.store(0, Relaxed));
        self.occupied = [0; 3];
        self.note_change();
    }

    pub(super) fn get(&self, register: Register) -> u32 {
        self.words()[register.index() * 4].load(Relaxed)
    }

    /// Sets a register that is no part of a vector set.
    pub(super) fn set(&mut self, register: Register, value: u32) {
        self.words()[register.index() * 4].store(value, Relaxed);
    }

    pub(super) fn contains(&self, set: VectorSet, vector: u8) -> bool {
        self.get(set.word(vector / 32)) & 1 << (vector % 32) != 0
    }

    pub(super) fn insert(&mut self, set: VectorSet, vector: u8) {
        let register = set.word(vector / 32);
        self.set(register, self.get(register) | 1 << (vector % 32));
        self.occupied[set as usize] |= 1 << (vector / 32);
        self.note_change();
    }

    pub(super) fn remove(&mut self, set: VectorSet, vector: u8) {
        let register = set.word(vector / 32);
        let word = self.get(register) & !(1 << (vector % 32));
        self.set(register, word);
        if word == 0 {
            self.occupied[set as usize] &= !(1 << (vector / 32));
        }
        self.note_change();
    }

    #[inline]
    pub(super) fn highest(&self, set: VectorSet) -> Option<u8> {
        let occupied = if self.is_lent { self.occupied_words(set) } else { self.occupied[set as usize] };
        let word = occupied.checked_ilog2()? as u8;
        let bit = self.get(set.word(word)).checked_ilog2()?;
        // Both parts are below 32.
        Some(word << 5 | bit as u8)
    }

    /// All members: bit N of word N / 64 for vector N.
    pub(super) fn members(&self, set: VectorSet) -> [u64; 4] {
        let word = |word| u64::from(self.get(set.word(word)));
        core::array::from_fn(|index| word(2 * index as u8 + 1) << 32 | word(2 * index as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_one_place_in_the_page() {
        for index in 0..0x100 {
            if let Some(register) = Register::from_index(index) {
                assert_eq!(register.index(), index as usize);
            }
        }
    }

    #[test]
    fn vector_sets_find_their_highest_member() {
        let mut page = RegisterPage::new();
        let set = VectorSet::InterruptRequest;
        assert_eq!(page.highest(set), None);
        for vector in [0x31, 0xff, 0x40] {
            page.insert(set, vector);
        }
        assert_eq!(page.highest(set), Some(0xff));
        page.remove(set, 0xff);
        assert_eq!(page.highest(set), Some(0x40));
        assert!(page.contains(set, 0x31));
        // Vector 0x31 is bit 17 of the word at 0x210.
        assert_eq!(page.words()[0x210 / 4].load(Relaxed), 1 << 17);
    }
}
