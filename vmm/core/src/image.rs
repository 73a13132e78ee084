//! Where kernels and modules come from.

/// A file in memory that may be mapped only in part.
pub trait Image {
    /// Bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads `into.len()` bytes at `offset`; `false` (and `into` in any state) if not all of them are there.
    fn read(&self, offset: u64, into: &mut [u8]) -> bool;
}

impl Image for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let bytes =
            usize::try_from(offset).ok().and_then(|start| self.get(start..start.checked_add(into.len())?));
        bytes.map(|bytes| into.copy_from_slice(bytes)).is_some()
    }
}

/// A boot module of the guest.
#[derive(Clone, Copy)]
pub struct BootModule<'a> {
    /// Its command line, which only Multiboot kernels see; by convention it starts with the module's name.
    pub command_line: &'a str,
    /// Its bytes.
    pub image: &'a dyn Image,
}

/// What a VM boots from.
#[derive(Clone, Copy)]
pub struct BootImages<'a> {
    /// The kernel.
    pub kernel: &'a dyn Image,
    /// Modules: for Linux and PVH the pieces of the initrd.
    pub modules: &'a [BootModule<'a>],
}

impl Image for alloc::vec::Vec<u8> {
    fn len(&self) -> u64 {
        Image::len(self.as_slice())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        self.as_slice().read(offset, into)
    }
}
