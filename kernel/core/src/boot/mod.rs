//! What the machine and its boot loader say at boot.
//!
//! Everything here parses bytes that firmware or a loader wrote: nothing panics on them, every loop is bounded by what
//! can be read, and what does not fit a fixed capacity is counted rather than forgotten.

pub mod acpi;
pub mod cmdline;
pub mod elf;
pub mod fixed;
pub mod iommu;
pub mod multiboot;
pub mod regions;

use crate::addr::PhysAddr;

/// Reads physical memory.
pub trait PhysRead {
    /// The `len` bytes from `addr`, or `None` if they cannot all be read.
    fn bytes(&self, addr: PhysAddr, len: usize) -> Option<&[u8]>;
}

/// Little-endian integers out of byte slices; `None` past the end.
pub(crate) mod le {
    pub(crate) fn u16(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    pub(crate) fn u32(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    pub(crate) fn u64(bytes: &[u8], at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
    }
}

#[cfg(test)]
pub(crate) mod fake {
    use super::PhysRead;
    use crate::addr::PhysAddr;

    /// Physical memory that begins at `base`.
    #[derive(Clone, Debug)]
    pub(crate) struct FakePhys {
        pub(crate) base: u64,
        pub(crate) memory: std::vec::Vec<u8>,
    }

    impl FakePhys {
        pub(crate) fn new(base: u64, len: usize) -> Self {
            FakePhys { base, memory: std::vec![0; len] }
        }

        pub(crate) fn put(&mut self, addr: u64, bytes: &[u8]) {
            let at = (addr - self.base) as usize;
            self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    impl PhysRead for FakePhys {
        fn bytes(&self, addr: PhysAddr, len: usize) -> Option<&[u8]> {
            let at = usize::try_from(addr.0.checked_sub(self.base)?).ok()?;
            self.memory.get(at..at.checked_add(len)?)
        }
    }
}
