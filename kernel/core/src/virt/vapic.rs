//! The virtual-APIC page: what APIC virtualization does in silicon (SDM 3C 29.1, 29.2), in software.
//!
//! Registers have the hardware's offsets. The VMM may write any of them at any time: then its guest gets other interrupts.

use core::sync::atomic::{AtomicU32, Ordering};

const TPR: usize = 0x080;
const PPR: usize = 0x0a0;
const ISR: usize = 0x100;
const IRR: usize = 0x200;

/// Vectors below are exceptions': the APIC does not take them.
pub const FIRST_VECTOR: u8 = 16;

/// x2APIC MSRs that are answered (SDM 3A table 11-6).
pub mod msr {
    /// Task priority.
    pub const TPR: u32 = 0x808;
    /// End of interrupt.
    pub const EOI: u32 = 0x80b;
    /// Self-IPI.
    pub const SELF_IPI: u32 = 0x83f;
}

/// The page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ApicPage {
    words: [AtomicU32; 1024],
}

/// Guest interrupt status (SDM 3C 25.4.2): the highest vector that is requested (RVI), and that is in service (SVI); 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// RVI.
    pub requested: u8,
    /// SVI.
    pub in_service: u8,
}

/// What an access of an x2APIC MSR comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is done.
    Done,
    /// The interrupt with this vector is over.
    Eoi(u8),
    /// It is not one of these MSRs, or not a value for it.
    Refused,
}

impl ApicPage {
    fn word(&self, offset: usize) -> &AtomicU32 {
        &self.words[offset / 4 % 1024]
    }

    /// The word of a 256-bit register that has the bit for `vector`, and that bit.
    fn bit(&self, register: usize, vector: u8) -> (&AtomicU32, u32) {
        let word = self.word(register + usize::from(vector >> 5) * 16);
        (word, 1 << (vector & 31))
    }

    fn set(&self, register: usize, vector: u8) {
        let (word, bit) = self.bit(register, vector);
        word.store(word.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
    }

    fn clear(&self, register: usize, vector: u8) {
        let (word, bit) = self.bit(register, vector);
        word.store(word.load(Ordering::Relaxed) & !bit, Ordering::Relaxed);
    }

    fn highest(&self, register: usize) -> u8 {
        for index in (0..8).rev() {
            let word = self.word(register + index * 16).load(Ordering::Relaxed);
            if word != 0 {
                return (index * 32) as u8 + 31 - word.leading_zeros() as u8;
            }
        }
        0
    }

    /// The status that the page amounts to.
    pub fn status(&self) -> Status {
        Status { requested: self.highest(IRR), in_service: self.highest(ISR) }
    }

    /// Requests interrupts: 64 vectors from `64 * index` on.
    pub fn request(&self, status: &mut Status, index: usize, vectors: u64) {
        for (half, bits) in [(0, vectors as u32), (1, (vectors >> 32) as u32)] {
            if bits != 0 {
                let word = self.word(IRR + (2 * index + half) * 16);
                word.store(word.load(Ordering::Relaxed) | bits, Ordering::Relaxed);
            }
        }
        if vectors != 0 {
            let highest = (64 * index) as u8 + 63 - vectors.leading_zeros() as u8;
            status.requested = status.requested.max(highest);
        }
    }

    /// Whether the processor priority lets the requested interrupt through (SDM 3A 11.8.3.1).
    pub fn is_pending(&self, status: Status) -> bool {
        status.requested >> 4 > self.priority(status) >> 4
    }

    fn priority(&self, status: Status) -> u8 {
        let task = self.word(TPR).load(Ordering::Relaxed) as u8;
        if task >> 4 >= status.in_service >> 4 { task } else { status.in_service & 0xf0 }
    }

    /// Delivers the requested interrupt: its vector.
    pub fn deliver(&self, status: &mut Status) -> u8 {
        let vector = status.requested;
        self.set(ISR, vector);
        self.clear(IRR, vector);
        *status = Status { requested: self.highest(IRR), in_service: vector };
        self.word(PPR).store(u32::from(vector & 0xf0), Ordering::Relaxed);
        vector
    }

    /// WRMSR of `value` by the guest.
    pub fn write(&self, status: &mut Status, msr: u32, value: u64) -> Write {
        match (msr, value) {
            (msr::EOI, 0) if status.in_service != 0 => {
                let vector = status.in_service;
                self.clear(ISR, vector);
                status.in_service = self.highest(ISR);
                self.update_priority(*status);
                return Write::Eoi(vector);
            }
            (msr::EOI, 0) => {}
            (msr::SELF_IPI, 16..=255) => {
                self.set(IRR, value as u8);
                status.requested = status.requested.max(value as u8);
            }
            (msr::TPR, 0..=255) => {
                self.word(TPR).store(value as u32, Ordering::Relaxed);
                self.update_priority(*status);
            }
            _ => return Write::Refused,
        }
        Write::Done
    }

    fn update_priority(&self, status: Status) {
        let priority = self.priority(status).into();
        self.word(PPR).store(priority, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    fn page() -> Box<ApicPage> {
        Box::new(ApicPage { words: [const { AtomicU32::new(0) }; 1024] })
    }

    fn request(page: &ApicPage, status: &mut Status, vector: u8) {
        page.request(status, usize::from(vector >> 6), 1 << (vector & 63));
    }

    #[test]
    fn interrupts_are_delivered_by_priority_and_nest() {
        let (page, mut status) = (page(), Status::default());
        for vector in [0x31, 0xef, 0x35, 0x80] {
            request(&page, &mut status, vector);
        }
        assert!(page.is_pending(status));
        assert_eq!(page.deliver(&mut status), 0xef);
        assert!(!page.is_pending(status));
        assert_eq!(page.write(&mut status, msr::EOI, 0), Write::Eoi(0xef));
        assert_eq!(page.deliver(&mut status), 0x80);
        assert_eq!(page.write(&mut status, msr::SELF_IPI, 0x91), Write::Done);
        assert!(page.is_pending(status));
        assert_eq!(page.deliver(&mut status), 0x91);
        for vector in [0x91, 0x80] {
            assert_eq!(page.write(&mut status, msr::EOI, 0), Write::Eoi(vector));
        }
        // Of one priority class, the second waits for the first.
        assert_eq!(page.deliver(&mut status), 0x35);
        assert!(!page.is_pending(status));
        assert_eq!(page.write(&mut status, msr::EOI, 0), Write::Eoi(0x35));
        assert_eq!(page.deliver(&mut status), 0x31);
        assert_eq!(status, page.status());
    }

    #[test]
    fn the_task_priority_holds_interrupts_back() {
        let (page, mut status) = (page(), Status::default());
        assert_eq!(page.write(&mut status, msr::TPR, 0x50), Write::Done);
        for (vector, is_pending) in [(0x4f, false), (0x5f, false), (0x60, true)] {
            request(&page, &mut status, vector);
            assert_eq!(page.is_pending(status), is_pending, "{vector:#x}");
        }
        assert_eq!(page.word(PPR).load(Ordering::Relaxed), 0x50);
        assert_eq!(page.write(&mut status, msr::TPR, 0), Write::Done);
        assert!(page.is_pending(status));
    }

    #[test]
    fn values_that_the_apic_refuses_are_refused() {
        let (page, mut status) = (page(), Status::default());
        for (msr, value) in [
            (msr::EOI, 1),
            (msr::SELF_IPI, 15),
            (msr::SELF_IPI, 256),
            (msr::TPR, 256),
            (0x80a, 0),
            (0x830, 0),
        ] {
            assert_eq!(page.write(&mut status, msr, value), Write::Refused);
        }
        // An EOI of nothing is none.
        assert_eq!(page.write(&mut status, msr::EOI, 0), Write::Done);
        assert_eq!(status, Status::default());
    }

    #[test]
    fn every_vector_has_its_bit_where_the_hardware_has_it() {
        for vector in 16..=255u8 {
            let (page, mut status) = (page(), Status::default());
            request(&page, &mut status, vector);
            let offset = 0x200 + usize::from(vector / 32) * 16;
            assert_eq!(page.words[offset / 4].load(Ordering::Relaxed), 1 << (vector % 32));
            assert_eq!(status.requested, vector);
            page.deliver(&mut status);
            assert_eq!(page.words[offset / 4 - 64].load(Ordering::Relaxed), 1 << (vector % 32));
            assert_eq!(page.status(), Status { requested: 0, in_service: vector });
        }
    }
}
