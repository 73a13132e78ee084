//! Guest memory as a device sees it: bytes copied in and out, never borrowed.
//!
//! A guest can change its memory at any moment from another vCPU. With a copy, what was checked is what is
//! used.

use core::fmt;

/// The guest gave an address range that is not all memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRange {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Bytes that were to be copied.
    pub len: usize,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no guest memory at {:#x}, {} bytes", self.gpa, self.len)
    }
}

impl core::error::Error for OutOfRange {}

/// A VM's memory by guest-physical address.
///
/// An access is all or nothing: one that is [`OutOfRange`] changes neither side. Reads happen, and writes become
/// visible to the guest's other vCPUs, in the order of the calls; versioned structures and rings rely on it. An access may cross from
/// one of the implementation's ranges into the next where they touch.
pub trait GuestMemory {
    /// Copies `into.len()` bytes from `gpa`.
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange>;

    /// Copies `from` to `gpa`.
    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange>;

    /// Bytes of memory in all, holes not counted.
    fn size_bytes(&self) -> u64;

    /// Nobody needs what is in this memory any more: its owner may take it away. Where it did, memory comes back zeroed at
    /// the next access.
    fn discard(&mut self, _gpa: u64, _bytes: u64) {}

    /// Whether the memory at `gpa`, which is RAM, was not taken away.
    fn is_resident(&self, _gpa: u64) -> bool {
        true
    }

    /// The guest touched RAM at `gpa` where there is none: whether it is there now.
    fn restore(&mut self, _gpa: u64) -> bool {
        false
    }

    /// Reads a byte.
    fn read_u8(&self, gpa: u64) -> Result<u8, OutOfRange> {
        let mut bytes = [0; 1];
        self.read(gpa, &mut bytes)?;
        Ok(bytes[0])
    }

    /// Reads a little-endian 16-bit value; `gpa` need not be aligned.
    fn read_u16(&self, gpa: u64) -> Result<u16, OutOfRange> {
        let mut bytes = [0; 2];
        self.read(gpa, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a little-endian 32-bit value; `gpa` need not be aligned.
    fn read_u32(&self, gpa: u64) -> Result<u32, OutOfRange> {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian 64-bit value; `gpa` need not be aligned.
    fn read_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads two little-endian 64-bit values, the first one first; `gpa` need not be aligned.
    fn read_words(&self, gpa: u64) -> Result<[u64; 2], OutOfRange> {
        let mut bytes = [0; 16];
        self.read(gpa, &mut bytes)?;
        let words = u128::from_le_bytes(bytes);
        Ok([words as u64, (words >> 64) as u64])
    }

    /// Whether the masked bits of a little-endian 64-bit value are these.
    fn has_u64(&self, gpa: u64, mask: u64, bits: u64) -> bool {
        self.read_u64(gpa).is_ok_and(|value| value & mask == bits)
    }

    /// Writes a byte.
    fn write_u8(&mut self, gpa: u64, value: u8) -> Result<(), OutOfRange> {
        self.write(gpa, &[value])
    }

    /// Writes a little-endian 16-bit value; `gpa` need not be aligned.
    fn write_u16(&mut self, gpa: u64, value: u16) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Writes a little-endian 32-bit value; `gpa` need not be aligned.
    fn write_u32(&mut self, gpa: u64, value: u32) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Writes a little-endian 64-bit value; `gpa` need not be aligned.
    fn write_u64(&mut self, gpa: u64, value: u64) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }
}

#[cfg(any(test, feature = "fake"))]
pub use fake::VecMemory;

#[cfg(any(test, feature = "fake"))]
mod fake {
    use super::{GuestMemory, OutOfRange};
    use alloc::{vec, vec::Vec};
    use core::ops::Range;

    /// Guest memory for tests: one range of zeroed bytes.
    #[derive(Clone, Debug)]
    pub struct VecMemory {
        base: u64,
        bytes: Vec<u8>,
    }

    impl VecMemory {
        /// `size_bytes` of memory from address 0.
        pub fn new(size_bytes: usize) -> Self {
            Self::at(0, size_bytes)
        }

        /// `size_bytes` of memory from `base`.
        pub fn at(base: u64, size_bytes: usize) -> Self {
            Self { base, bytes: vec![0; size_bytes] }
        }

        fn range(&self, gpa: u64, len: usize) -> Result<Range<usize>, OutOfRange> {
            let start = gpa.checked_sub(self.base).and_then(|offset| usize::try_from(offset).ok());
            start
                .and_then(|start| Some(start..start.checked_add(len)?))
                .filter(|range| range.end <= self.bytes.len())
                .ok_or(OutOfRange { gpa, len })
        }
    }

    impl GuestMemory for VecMemory {
        fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
            let range = self.range(gpa, into.len())?;
            into.copy_from_slice(&self.bytes[range]);
            Ok(())
        }

        fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
            let range = self.range(gpa, from.len())?;
            self.bytes[range].copy_from_slice(from);
            Ok(())
        }

        fn size_bytes(&self) -> u64 {
            self.bytes.len() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_little_endian_and_need_no_alignment() {
        let mut memory = VecMemory::new(64);
        memory.write_u64(3, 0x0807_0605_0403_0201).unwrap();
        assert_eq!(memory.read_u8(3), Ok(1));
        assert_eq!(memory.read_u16(4), Ok(0x0302));
        assert_eq!(memory.read_u32(5), Ok(0x0605_0403));
    }

    #[test]
    fn an_access_that_leaves_memory_fails_and_changes_nothing() {
        let mut memory = VecMemory::at(0x1000, 16);
        assert_eq!(memory.write_u64(0x100c, u64::MAX), Err(OutOfRange { gpa: 0x100c, len: 8 }));
        assert_eq!(memory.read_u32(0x100c), Ok(0));
        assert!(memory.read_u8(0xfff).is_err());
        assert!(memory.read_u32(u64::MAX - 1).is_err());
        assert!(memory.read(0x1010, &mut []).is_ok());
    }
}
