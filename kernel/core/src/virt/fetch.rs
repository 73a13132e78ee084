//! Reading a guest's code where it executes: 64-bit mode with four levels of paging (SDM 3A 4.5, APM 2 5.3).
//!
//! Rights are not looked at: the CPU has just executed what is there. What another CPU changes meanwhile gives other bytes at
//! worst.

use crate::addr::PhysAddr;
use hypercall_abi::vcpu::Store;

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
/// Bits 51 to 12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE_MASK: u64 = 0xfff;

/// How a guest's memory is read.
pub trait GuestRam {
    /// The frame that a guest-physical address is in, if that is RAM.
    fn frame(&self, address: u64) -> Option<PhysAddr>;
    /// Quadword `index` (below 512) of a frame.
    fn read(&self, frame: PhysAddr, index: usize) -> u64;
}

/// Whether the instruction at `rip` is this one. It must end in the page that it begins in. Inlined, as most callers know the
/// instruction when they are compiled.
#[inline(always)]
pub fn is_at(ram: &impl GuestRam, cr3: u64, rip: u64, store: &Store) -> bool {
    let length = store.length as u64;
    let is_length = (1..=15).contains(&length) && (rip & PAGE_MASK) + length <= PAGE_MASK + 1;
    if store.rip != rip || !is_length {
        return false;
    }
    let Some(frame) = translate(ram, cr3, rip).and_then(|address| ram.frame(address)) else {
        return false;
    };
    let offset = rip & PAGE_MASK;
    if offset % 8 + length <= 8 {
        // Nearly every one that is short.
        let word = ram.read(frame, (offset / 8) as usize) >> (offset % 8 * 8);
        let [expected, ..] = store.code.as_chunks().0 else { return false };
        return (word ^ u64::from_le_bytes(*expected)) << (64 - 8 * length) == 0;
    }
    let mut expected = [0; 16];
    expected[..15].copy_from_slice(&store.code);
    (bytes(ram, frame, offset) ^ u128::from_le_bytes(expected)) << (128 - 8 * length) == 0
}

/// The guest-physical address that `linear` leads to.
#[inline(always)]
fn translate(ram: &impl GuestRam, cr3: u64, linear: u64) -> Option<u64> {
    let mut entry = cr3;
    for shift in [39, 30, 21, 12] {
        let index = (linear >> shift) as usize & 511;
        entry = ram.read(ram.frame(entry & ADDRESS)?, index);
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || shift < 39 && entry & LARGE != 0 {
            let inside = (1 << shift) - 1;
            return Some(entry & ADDRESS & !inside | linear & inside);
        }
    }
    None
}

/// Sixteen bytes of a frame, those beyond its end as zeros.
fn bytes(ram: &impl GuestRam, frame: PhysAddr, offset: u64) -> u128 {
    let first = (offset / 8) as usize;
    let word = |index: usize| match index {
        ..512 => ram.read(frame, index) as u128,
        _ => 0,
    };
    let shift = offset as u32 % 8 * 8;
    let low = word(first) | word(first + 1) << 64;
    let high = if shift == 0 { 0 } else { word(first + 2) << (128 - shift) };
    low >> shift | high
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Frame *n* of the host is page *n* of the guest, moved by 1 GiB; a few quadwords are not zero.
    #[derive(Default)]
    struct Ram {
        words: BTreeMap<u64, u64>,
    }

    const OFFSET: u64 = 1 << 30;
    /// From here on there is no RAM.
    const END: u64 = 1 << 29;

    impl GuestRam for Ram {
        fn frame(&self, address: u64) -> Option<PhysAddr> {
            (address < END).then_some(PhysAddr(address & !0xfff | OFFSET))
        }

        fn read(&self, frame: PhysAddr, index: usize) -> u64 {
            let address = frame.0 - OFFSET + index as u64 * 8;
            self.words.get(&address).copied().unwrap_or(0)
        }
    }

    impl Ram {
        /// Tables from 1000H on that map the page of `linear` to `target` by an entry of the level with this shift.
        fn mapping(linear: u64, target: u64, leaf_shift: u32) -> Ram {
            let mut ram = Ram::default();
            let mut table = 0x1000;
            for shift in [39, 30, 21, 12] {
                let at = table + (linear >> shift & 511) * 8;
                if shift == leaf_shift {
                    let large = if shift > 12 { LARGE } else { 0 };
                    ram.words.insert(at, target | large | PRESENT | 1 << 63);
                    break;
                }
                table += 0x1000;
                ram.words.insert(at, table | 0x67);
            }
            ram
        }

        fn put(&mut self, address: u64, code: &[u8]) {
            for (at, &byte) in (address..).zip(code) {
                *self.words.entry(at & !7).or_default() |= u64::from(byte) << (at % 8 * 8);
            }
        }
    }

    const RIP: u64 = 0xffff_8123_4567_8ab5;
    const CODE: [u8; 10] = [0x66, 0xc7, 0x84, 0x24, 1, 2, 3, 4, 0x55, 0xaa];

    #[test]
    fn code_is_found_through_pages_of_every_size() {
        for (shift, base) in [(12, 0x7000), (21, 0x60_0000), (30, 0)] {
            let mut ram = Ram::mapping(RIP, base, shift);
            ram.put(base | RIP & ((1 << shift) - 1), &CODE);
            assert!(is_at(&ram, 0x1000 | 0x18, RIP, &Store::new(RIP, &CODE)), "{shift}");
        }
    }

    #[test]
    fn each_byte_counts_and_none_behind_the_instruction() {
        for offset in 0..16 {
            let rip = RIP & !0xf | offset;
            let mut ram = Ram::mapping(rip, 0x7000, 12);
            ram.put(0x7000 | rip & 0xfff, &CODE);
            ram.put((0x7000 | rip & 0xfff) + 10, &[0x99; 6]);
            assert!(is_at(&ram, 0x1000, rip, &Store::new(rip, &CODE)));
            for index in 0..CODE.len() {
                let mut other = CODE;
                other[index] ^= 1;
                assert!(!is_at(&ram, 0x1000, rip, &Store::new(rip, &other)));
            }
        }
    }

    #[test]
    fn what_is_not_whole_is_not_there() {
        let mut ram = Ram::mapping(RIP | 0xfff, 0x7000, 12);
        ram.put(0x7ff6, &CODE);
        let rip = RIP & !0xfff | 0xff6;
        assert!(is_at(&ram, 0x1000, rip, &Store::new(rip, &CODE)));
        assert!(!is_at(&ram, 0x1000, rip + 1, &Store::new(rip + 1, &CODE)));
        assert!(!is_at(&ram, 0x1000, rip, &Store::new(rip + 1, &CODE)));
        assert!(!is_at(&ram, 0x1000, rip, &Store::new(rip, &[])));
        let endless = Store { length: 16, ..Store::new(rip, &CODE) };
        assert!(!is_at(&ram, 0x1000, rip, &endless));
        // Tables that are not there, or not in RAM.
        assert!(!is_at(&ram, 0x9000, rip, &Store::new(rip, &CODE)));
        assert!(!is_at(&ram, END, rip, &Store::new(rip, &CODE)));
        assert!(!is_at(&ram, 0x1000, rip ^ 1 << 45, &Store::new(rip ^ 1 << 45, &CODE)));
    }
}
