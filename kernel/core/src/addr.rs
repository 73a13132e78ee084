//! Addresses, one type for each address space.

use hypercall_abi::PAGE_SIZE;

/// A host-physical address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
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
