//! The guest's memory: in the VMM's address space, and in the guest's.

use crate::pieces::Pieces;
use alloc::vec::Vec;
use usys::abi::cap::MapFlags;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, GuestSpace, Memory, Narrow};
use usys::process::ProcessInfo;
use usys::window::Words;
use usys::{Window, memory, selector};
use vdev::guest_mem::{GuestMemory, OutOfRange};
use vmm_core::layout::Layout;
use vmm_protocol::process::{MonitorConfig, monitor};

/// A VM's memory by guest-physical address. The ranges of RAM lie one behind the other in the window.
#[derive(Clone, Copy, Debug)]
pub struct GuestRam {
    window: Window,
    /// What of it is below 4 GiB, where offset and address are the same, and before the first piece that is missing.
    low: Window,
    /// The 64-bit values of that.
    words: Words,
    layout: Layout,
    /// Pages of each part of it that the VM keeps, in order.
    parts: &'static [u64],
    /// Where the guest's memory can go, if it has a balloon.
    pieces: Option<&'static Pieces>,
}

impl GuestRam {
    /// Guest memory of this layout in `window`, which is as long as all RAM.
    pub fn new(window: Window, layout: Layout) -> Self {
        let ram = GuestRam { window, low: window, words: window.words(), layout, parts: &[], pieces: None };
        ram.with_low()
    }

    fn with_low(mut self) -> Self {
        let missing = self.pieces.and_then(Pieces::first_missing).unwrap_or(u64::MAX);
        let end = self.layout.low_end().min(missing) as usize;
        // A shorter window is itself its lower part.
        self.low = self.window.slice(0, end).unwrap_or(self.window);
        self.words = self.low.words();
        self
    }

    /// Maps the memory into this process and into the guest's space.
    pub fn map(
        info: &'static ProcessInfo,
        config: &MonitorConfig,
        space: Cap<GuestSpace>,
        layout: Layout,
    ) -> usys::Result<Self> {
        let pieces = Pieces::map(info, space, layout).transpose()?;
        let parts = config.memory.iter().flat_map(|parts| (0..parts.count).map(|_| parts.pages));
        let parts: &[u64] = if pieces.is_none() { parts.collect::<Vec<_>>().leak() } else { &[] };
        map_parts(parts, space, layout)?;
        let window = memory::guest_memory(layout.memory_bytes() / PAGE_SIZE);
        let ram = GuestRam { window, low: window, words: window.words(), layout, parts, pieces };
        Ok(ram.with_low())
    }

    /// Zeroes all of it.
    pub fn clear(&mut self) {
        let mut offset = 0;
        while offset < self.window.len() {
            const STEP: usize = crate::pieces::PIECE_BYTES as usize;
            let len = STEP.min(self.window.len() - offset);
            // What comes back is zero by itself.
            if !self.pieces.is_some_and(|pieces| pieces.is_missing(offset as u64, len as u64)) {
                // The range is inside the window, so this cannot fail.
                let _ = self.window.zero(offset, len);
            }
            offset += len;
        }
    }

    /// Its pieces, if it has a balloon.
    pub fn pieces(&self) -> Option<&'static Pieces> {
        self.pieces
    }

    /// The capability that the page at guest-physical address `gpa` is of, and which of its pages it is; `None` where there is no memory
    /// now.
    pub fn page(&self, gpa: u64) -> Option<(Cap<Memory>, u64)> {
        let offset = self.layout.offset(gpa, 1)?;
        let mut page = offset / PAGE_SIZE;
        if let Some(pieces) = self.pieces {
            return pieces.page(offset);
        }
        for (&pages, number) in self.parts.iter().zip(monitor::GUEST_MEMORY..) {
            if page < pages {
                return Some((Cap::new(Selector(number)), page));
            }
            page -= pages;
        }
        None
    }

    /// Where in the window `len` bytes from `gpa` are, if all of them are RAM in one range; there they are then.
    #[cold]
    fn offset(&self, gpa: u64, len: usize) -> Result<usize, OutOfRange> {
        let offset = self.layout.offset(gpa, len as u64).ok_or(OutOfRange { gpa, len })?;
        match self.pieces {
            Some(pieces) if !pieces.fetch(offset, len as u64) => Err(OutOfRange { gpa, len }),
            _ => Ok(offset as usize),
        }
    }

    #[cold]
    #[inline(never)]
    fn has_high_u64(&self, gpa: u64, mask: u64, bits: u64) -> bool {
        self.read_high_u64(gpa).is_ok_and(|value| value & mask == bits)
    }

    #[cold]
    #[inline(never)]
    fn read_high_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        self.window.read_u64(self.offset(gpa, 8)?).map_err(|_| OutOfRange { gpa, len: 8 })
    }

    #[cold]
    #[inline(never)]
    fn read_high_words(&self, gpa: u64) -> Result<[u64; 2], OutOfRange> {
        self.window.read_words(self.offset(gpa, 16)?).map_err(|_| OutOfRange { gpa, len: 16 })
    }
}

/// Maps memory that the VM keeps.
fn map_parts(parts: &[u64], space: Cap<GuestSpace>, layout: Layout) -> usys::Result<()> {
    let rights = Rights::READ | Rights::WRITE | Rights::EXECUTE;
    let flags = MapFlags::READ | MapFlags::WRITE | MapFlags::EXECUTE;
    let mut first = 0;
    for (&pages, number) in parts.iter().zip(monitor::GUEST_MEMORY..) {
        let part: Cap<Memory> = Cap::new(Selector(number));
        let end = first + pages;
        let mut before = 0;
        // Each range needs a capability: below and above 4 GiB, address and offset differ by different amounts.
        for range in layout.ram() {
            let range_end = before + (range.end - range.start) / PAGE_SIZE;
            let (from, to) = (first.max(before), end.min(range_end));
            if from < to {
                let keep = Narrow::rights(rights).range(from - first, to - from);
                let address = layout.address(from * PAGE_SIZE);
                part.derive(selector::allocate()?, keep)?.map(space, address, 0, to - from, flags)?;
            }
            before = range_end;
        }
        memory::map_guest_memory(part, first, pages)?;
        first = end;
    }
    Ok(())
}

impl GuestMemory for GuestRam {
    #[inline]
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        if self.low.read(gpa as usize, into).is_ok() {
            return Ok(());
        }
        let len = into.len();
        self.window.read(self.offset(gpa, len)?, into).map_err(|_| OutOfRange { gpa, len })
    }

    #[inline]
    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        if self.low.write(gpa as usize, from).is_ok() {
            return Ok(());
        }
        let len = from.len();
        self.window.write(self.offset(gpa, len)?, from).map_err(|_| OutOfRange { gpa, len })
    }

    /// As the default, without memory between: page walks read with this.
    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        self.words.read(gpa as usize).or_else(|_| self.read_high_u64(gpa))
    }

    #[inline(always)]
    fn has_u64(&self, gpa: u64, mask: u64, bits: u64) -> bool {
        match self.words.read(gpa as usize) {
            Ok(value) => value & mask == bits,
            Err(_) => self.has_high_u64(gpa, mask, bits),
        }
    }

    /// As the default, without memory between: descriptors are read with this.
    #[inline]
    fn read_words(&self, gpa: u64) -> Result<[u64; 2], OutOfRange> {
        self.low.read_words(gpa as usize).or_else(|_| self.read_high_words(gpa))
    }

    fn size_bytes(&self) -> u64 {
        self.layout.memory_bytes()
    }

    fn discard(&mut self, gpa: u64, bytes: u64) {
        if let (Some(pieces), Some(offset)) = (self.pieces, self.layout.offset(gpa, bytes)) {
            pieces.give(offset, bytes);
            *self = self.with_low();
        }
    }

    fn is_resident(&self, gpa: u64) -> bool {
        let offset = self.layout.offset(gpa, 1);
        self.pieces.zip(offset).is_none_or(|(pieces, offset)| !pieces.is_missing(offset, 1))
    }

    fn restore(&mut self, gpa: u64) -> bool {
        let (Some(pieces), Some(offset)) = (self.pieces, self.layout.offset(gpa, 1)) else {
            return false;
        };
        let is_back = pieces.is_missing(offset, 1) && pieces.fetch(offset, 1);
        *self = self.with_low();
        is_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(bytes: u64) -> GuestRam {
        GuestRam::new(Window::leak(bytes as usize), Layout::new(bytes))
    }

    #[test]
    fn an_access_is_all_in_memory_or_nothing() {
        let mut ram = ram(1 << 20);
        assert_eq!(ram.write_u64((1 << 20) - 8, 7), Ok(()));
        assert_eq!(ram.read_u64((1 << 20) - 8), Ok(7));
        assert!(ram.has_u64((1 << 20) - 8, 0xf, 7) && !ram.has_u64((1 << 20) - 8, 8, 7));
        assert!(!ram.has_u64((1 << 20) - 7, 0, 0));
        assert_eq!(ram.write_u64((1 << 20) - 4, 9), Err(OutOfRange { gpa: (1 << 20) - 4, len: 8 }));
        assert_eq!(ram.read_u64((1 << 20) - 8), Ok(7));
        assert!(ram.read_u8(0xfee0_0000).is_err());
        assert!(ram.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(ram.read(1 << 20, &mut []).is_ok());
    }
}
