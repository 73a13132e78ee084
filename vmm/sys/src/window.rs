//! Memory that others can change at any moment: copied in and out, never borrowed.

use crate::shared;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An access would leave the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfWindow;

impl fmt::Display for OutOfWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outside the shared region")
    }
}

impl core::error::Error for OutOfWindow {}

/// A region of shared memory.
///
/// It may be unmapped under its user (a peer that goes away revokes it): an access then faults and ends the
/// process. It can never show the process's own memory, because addresses of windows are used for nothing else.
#[derive(Clone, Copy)]
pub struct Window {
    base: *mut u8,
    len: usize,
}

// SAFETY: every access is a copy by assembly or an atomic; there is no state to race on but the bytes, which are
// shared with strangers anyway.
unsafe impl Send for Window {}
// SAFETY: as for `Send`.
unsafe impl Sync for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:p}, {:#x} bytes)", self.base, self.len)
    }
}

impl Window {
    /// A window over `len` bytes at `base`, a multiple of 8.
    ///
    /// # Safety
    ///
    /// No Rust reference to these addresses exists or is made while a copy of the window is in use; they are mapped,
    /// or an access faults.
    pub const unsafe fn from_raw(base: *mut u8, len: usize) -> Self {
        Window { base, len }
    }

    /// A window over fresh zeroed memory of this process, never freed.
    pub fn leak(len: usize) -> Self {
        let words = alloc::vec![0u64; len.div_ceil(8)].leak();
        // SAFETY: the leaked memory is reachable through this window alone.
        unsafe { Window::from_raw(words.as_mut_ptr().cast(), len) }
    }

    /// Bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of `len` bytes at `offset`, a multiple of 8.
    pub fn slice(&self, offset: usize, len: usize) -> Result<Window, OutOfWindow> {
        if !offset.is_multiple_of(8) {
            return Err(OutOfWindow);
        }
        let base = self.at(offset, len)?;
        Ok(Window { base, len })
    }

    /// Copies `into.len()` bytes from `offset`; all or nothing.
    #[inline]
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfWindow> {
        let from = self.at(offset, into.len())?;
        // SAFETY: both sides are `into.len()` bytes; they cannot overlap, since windows are no Rust memory.
        unsafe { shared::copy(into.as_mut_ptr(), from, into.len()) };
        Ok(())
    }

    /// The 64-bit value at `offset`, which need not be aligned.
    #[inline]
    pub fn read_u64(&self, offset: usize) -> Result<u64, OutOfWindow> {
        let from = self.at(offset, 8)?;
        // SAFETY: the eight bytes are inside the window.
        Ok(unsafe { shared::read_u64(from) })
    }

    /// The two 64-bit values at `offset`, which need not be aligned, the first one first.
    #[inline]
    pub fn read_words(&self, offset: usize) -> Result<[u64; 2], OutOfWindow> {
        let from = self.at(offset, 16)?;
        // SAFETY: the sixteen bytes are inside the window.
        Ok(unsafe { shared::read_words(from) })
    }

    /// Its 64-bit values.
    pub const fn words(&self) -> Words {
        Words { base: self.base, end: (self.len + 1).saturating_sub(8) }
    }

    /// Copies `from` to `offset`; all or nothing.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfWindow> {
        let to = self.at(offset, from.len())?;
        // SAFETY: as in `read`.
        unsafe { shared::copy(to, from.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies `len` bytes from `offset` of another window to `to` of this one. Overlapping ranges end up with any mix of
    /// their bytes.
    pub fn copy_from(&self, to: usize, from: &Window, offset: usize, len: usize) -> Result<(), OutOfWindow> {
        let (to, from) = (self.at(to, len)?, from.at(offset, len)?);
        // SAFETY: both ranges are inside windows; the copy is by assembly, to which overlap is no matter of soundness.
        unsafe { shared::copy(to, from, len) };
        Ok(())
    }

    /// Zeroes `len` bytes from `offset`.
    pub fn zero(&self, offset: usize, len: usize) -> Result<(), OutOfWindow> {
        let to = self.at(offset, len)?;
        // SAFETY: the range is inside the window.
        unsafe { shared::zero(to, len) };
        Ok(())
    }

    /// The 32-bit word at `offset`, a multiple of 4.
    pub fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfWindow> {
        if !offset.is_multiple_of(4) {
            return Err(OutOfWindow);
        }
        let word = self.at(offset, 4)?;
        // SAFETY: inside the window and aligned, since windows begin at multiples of 8. Others change the word, which an
        // atomic allows.
        Ok(unsafe { AtomicU32::from_ptr(word.cast()) })
    }

    /// Stores a 32-bit value at `offset`, a multiple of 4, for readers who have this memory uncached: the line is written back, as two
    /// types of the same memory want it (SDM 3A 12.12.4).
    pub fn store_uncached(&self, offset: usize, value: u32) -> Result<(), OutOfWindow> {
        self.atomic_u32(offset)?.store(value, Ordering::Release);
        // SAFETY: the address is inside the window.
        unsafe { shared::flush_line(self.at(offset, 4)?) };
        Ok(())
    }

    /// The 64-bit word at `offset`, a multiple of 8.
    pub fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64, OutOfWindow> {
        if !offset.is_multiple_of(8) {
            return Err(OutOfWindow);
        }
        let word = self.at(offset, 8)?;
        // SAFETY: as in `atomic_u32`.
        Ok(unsafe { AtomicU64::from_ptr(word.cast()) })
    }

    /// The address of `offset`, if `len` bytes from there are inside.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> Result<*mut u8, OutOfWindow> {
        // One comparison for each offset: where an access of this length may not begin any more is the same for all.
        if offset < (self.len + 1).saturating_sub(len) {
            Ok(self.base.wrapping_add(offset))
        } else {
            Err(OutOfWindow)
        }
    }
}

/// The 64-bit values of a [`Window`] as it was when this was made: for who reads many.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    base: *mut u8,
    /// At this offset and above no value begins.
    end: usize,
}

// SAFETY: as for `Window`.
unsafe impl Send for Words {}
// SAFETY: as for `Window`.
unsafe impl Sync for Words {}

impl Words {
    /// As [`Window::read_u64`].
    #[inline(always)]
    pub fn read(&self, offset: usize) -> Result<u64, OutOfWindow> {
        if offset >= self.end {
            return Err(OutOfWindow);
        }
        // SAFETY: the eight bytes are inside the window.
        Ok(unsafe { shared::read_u64(self.base.wrapping_add(offset)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_at_any_offset_and_length() {
        let window = Window::leak(8192);
        for len in [0, 1, 2, 3, 4, 7, 8, 9, 100, 4096] {
            for offset in [0, 1, 5, 4090] {
                let bytes: alloc::vec::Vec<u8> =
                    (0..len).map(|index| (index * 7 + offset) as u8 | 1).collect();
                window.write(offset, &bytes).unwrap();
                let mut back = alloc::vec![0; len];
                window.read(offset, &mut back).unwrap();
                assert_eq!(back, bytes);
            }
        }
        window.zero(3, 4097).unwrap();
        window.write(5, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        assert_eq!(window.read_u64(5), Ok(0x0807_0605_0403_0201));
        assert_eq!(window.words().read(5), Ok(0x0807_0605_0403_0201));
        window.zero(5, 8).unwrap();
        let mut back = [1; 4097];
        window.read(3, &mut back).unwrap();
        assert_eq!(back, [0; 4097]);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let window = Window::leak(4096).slice(8, 16).unwrap();
        assert_eq!(window.write(9, &[0; 8]), Err(OutOfWindow));
        assert_eq!(window.read(usize::MAX, &mut [0; 2]), Err(OutOfWindow));
        assert_eq!(window.read_u64(9), Err(OutOfWindow));
        assert_eq!(window.words().read(9), Err(OutOfWindow));
        assert!(window.words().read(8).is_ok());
        assert_eq!(window.slice(0, 0).unwrap().words().read(0), Err(OutOfWindow));
        assert_eq!(window.zero(0, 17), Err(OutOfWindow));
        assert!(window.atomic_u32(14).is_err());
        assert!(window.atomic_u64(12).is_err());
        assert!(window.slice(8, 9).is_err());
        assert!(window.read(16, &mut []).is_ok());
    }
}
