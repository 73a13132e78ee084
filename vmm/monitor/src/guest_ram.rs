//! The guest's memory: in the VMM's address space, and in the guest's.

use usys::abi::cap::MapFlags;
use usys::abi::{PAGE_SIZE, Rights};
use usys::cap::{Cap, GuestSpace, Memory, Narrow};
use usys::{Window, memory, selector};
use vdev::guest_mem::{GuestMemory, OutOfRange};
use vmm_core::layout::{HIGH_RAM, Layout};

/// A VM's memory by guest-physical address. The ranges of RAM lie one behind the other in the window.
#[derive(Clone, Copy, Debug)]
pub struct GuestRam {
    window: Window,
    /// What of it is below 4 GiB, where offset and address are the same.
    low: Window,
    layout: Layout,
}

impl GuestRam {
    /// Guest memory of this layout in `window`, which is as long as all RAM.
    pub fn new(window: Window, layout: Layout) -> Self {
        // A shorter window is itself its lower part.
        let low = window.slice(0, layout.low_end() as usize).unwrap_or(window);
        GuestRam { window, low, layout }
    }

    /// Maps the memory into this process and into the guest's space.
    pub fn map(source: Cap<Memory>, space: Cap<GuestSpace>, layout: Layout) -> usys::Result<Self> {
        let mut offset = 0;
        for range in layout.ram() {
            let pages = (range.end - range.start) / PAGE_SIZE;
            // Each range needs a capability: below and above 4 GiB, address and offset differ by different amounts.
            let rights = Rights::READ | Rights::WRITE | Rights::EXECUTE;
            let part = source.derive(selector::allocate()?, Narrow::rights(rights).range(offset, pages))?;
            part.map(space, range.start, 0, pages, MapFlags::READ | MapFlags::WRITE | MapFlags::EXECUTE)?;
            offset += pages;
        }
        let own = source.derive(selector::allocate()?, Narrow::rights(Rights::READ | Rights::WRITE))?;
        Ok(Self::new(memory::map_guest_memory(own, offset)?, layout))
    }

    /// Zeroes all of it.
    pub fn clear(&mut self) {
        // The range is the whole window, so this cannot fail.
        let _ = self.window.zero(0, self.window.len());
    }

    /// Where in the window `len` bytes from `gpa` are, if all of them are RAM above 4 GiB.
    #[cold]
    fn high_offset(&self, gpa: u64, len: usize) -> Result<usize, OutOfRange> {
        let end = self.layout.high_end();
        if (HIGH_RAM..=end).contains(&gpa) && len as u64 <= end - gpa {
            Ok((gpa - HIGH_RAM + self.layout.low_end()) as usize)
        } else {
            Err(OutOfRange { gpa, len })
        }
    }

    #[cold]
    #[inline(never)]
    fn read_high_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        self.window.read_u64(self.high_offset(gpa, 8)?).map_err(|_| OutOfRange { gpa, len: 8 })
    }
}

impl GuestMemory for GuestRam {
    #[inline]
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        if self.low.read(gpa as usize, into).is_ok() {
            return Ok(());
        }
        let len = into.len();
        self.window.read(self.high_offset(gpa, len)?, into).map_err(|_| OutOfRange { gpa, len })
    }

    #[inline]
    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), OutOfRange> {
        if self.low.write(gpa as usize, from).is_ok() {
            return Ok(());
        }
        let len = from.len();
        self.window.write(self.high_offset(gpa, len)?, from).map_err(|_| OutOfRange { gpa, len })
    }

    /// As the default, without memory between: page walks read with this.
    #[inline]
    fn read_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        self.low.read_u64(gpa as usize).or_else(|_| self.read_high_u64(gpa))
    }

    fn size_bytes(&self) -> u64 {
        self.layout.memory_bytes()
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
        assert_eq!(ram.write_u64((1 << 20) - 4, 9), Err(OutOfRange { gpa: (1 << 20) - 4, len: 8 }));
        assert_eq!(ram.read_u64((1 << 20) - 8), Ok(7));
        assert!(ram.read_u8(0xfee0_0000).is_err());
        assert!(ram.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(ram.read(1 << 20, &mut []).is_ok());
    }

    #[test]
    fn memory_above_the_devices_follows_that_below_in_the_window() {
        // Only addresses are looked at, so that no gigabytes are needed.
        let ram = GuestRam::new(Window::leak(8), Layout::new(5 << 30));
        assert!(ram.high_offset(0xbfff_ffff, 1).is_err());
        assert_eq!(ram.high_offset(1 << 32, 8), Ok(0xc000_0000));
        assert_eq!(ram.high_offset((1 << 32) + (2 << 30) - 1, 1), Ok((5 << 30) - 1));
        assert!(ram.high_offset((1 << 32) + (2 << 30), 1).is_err());
    }
}
