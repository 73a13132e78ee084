//! Addresses, one type for each address space.

use hypercall_abi::PAGE_SIZE;

/// A host-physical address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// Largest physical address any x86-64 CPU has (52 bits).
    pub const LIMIT: u64 = 1 << 52;

    /// The address rounded down to a page.
    pub const fn page_floor(self) -> Self {
        PhysAddr(self.0 & !(PAGE_SIZE - 1))
    }

    /// Whether it is the first byte of a page.
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }

    /// This address plus `bytes`.
    ///
    /// Physical addresses are below 2^52 and offsets come from checked ranges: the sum cannot wrap.
    pub const fn offset(self, bytes: u64) -> Self {
        PhysAddr(self.0.wrapping_add(bytes))
    }
}
