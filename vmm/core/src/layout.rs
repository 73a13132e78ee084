//! The guest-physical map of the board `reduced`.
//!
//! ```text
//!          0 ..   0x9_fc00  RAM; the loader's tables are here, see the constants
//!   0x9_fc00 ..  0x10_0000  RAM, reserved: the ACPI tables
//!  0x10_0000 .. 0xc000_0000 RAM as far as there is memory: kernel, modules
//! 0xc000_0000 .. 1_0000_0000 devices: virtio from 0xd000_0000, paravirtual ones from 0xd100_0000, channels of network
//!                          cards from 0xd200_0000, I/O APIC at 0xfec0_0000, local APIC at 0xfee0_0000
//! 1_0000_0000 ..            the rest of RAM
//! ```

use alloc::vec::Vec;
use core::ops::Range;

/// Physical address of the GDT that the entry states refer to.
pub const GDT: u64 = 0x500;
/// PVH: physical address of `hvm_start_info`, its memory map and its module list (one page).
pub const START_INFO: u64 = 0x6000;
/// Linux: physical address of the zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Linux: physical address of the identity page tables (PML4, PDPT, four page directories).
pub const PAGE_TABLES: u64 = 0x9000;
/// Multiboot: physical address of the information structure and all that it refers to.
pub const MULTIBOOT_INFO: u64 = 0x1_0000;
/// One past the room for the Multiboot information.
pub const MULTIBOOT_INFO_END: u64 = 0x2_0000;
/// Physical address of the kernel's command line, zero-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its terminator, in bytes.
pub const COMMAND_LINE_MAX: u64 = 0x1_0000;
/// End of the RAM below 1 MiB that the guest may use: where a PC has its extended BIOS data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Physical address of the RSDP and the other ACPI tables.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// One past the room for ACPI tables.
pub const ACPI_TABLES_END: u64 = RESET_STUB;
/// Where software that resets a PC through its BIOS jumps (F000:FFF0): real-mode code that resets through the keyboard
/// controller. Linux ends there when ACPI and EFI did not help.
pub const RESET_STUB: u64 = 0xf_fff0;
/// `mov al, 0xfe; out 0x64, al; hlt; jmp` back to the HLT.
pub const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// Kernels and modules are loaded here and above.
pub const KERNEL_MIN: u64 = 0x10_0000;
/// End of the RAM below 4 GiB; devices follow.
pub const DEVICE_HOLE: u64 = 0xc000_0000;
/// Physical address of the I/O APIC.
pub const IO_APIC: u64 = 0xfec0_0000;
/// Physical address of the local APIC out of reset.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Physical address of the first virtio device's registers; each has a page.
pub const VIRTIO: u64 = 0xd000_0000;
/// Most virtio devices.
pub const VIRTIO_DEVICES: usize = vmm_protocol::manifest::MAX_VIRTIO_DEVICES;
/// Input of the I/O APIC of the first virtio device; the others follow.
pub const VIRTIO_GSI: u8 = 16;
/// Physical address of the first paravirtual device's page; each has one.
pub const PV: u64 = 0xd100_0000;
/// Most paravirtual devices.
pub const PV_DEVICES: usize = 16;
/// Physical address of the first paravirtual network card's channel to its switch; the others follow.
pub const PV_CHANNELS: u64 = 0xd200_0000;
/// Bytes from one channel to the next.
pub const PV_CHANNEL_STRIDE: u64 = 1 << 20;
/// Where RAM goes on above the devices.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

/// A range of the memory map given to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Physical address of its first byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it is RAM for the guest to use; reserved otherwise.
    pub usable: bool,
}

impl MapEntry {
    /// The type that E820, PVH and Multiboot agree on: 1 RAM, 2 reserved.
    pub const fn kind(&self) -> u32 {
        if self.usable { 1 } else { 2 }
    }
}

/// Where a guest's RAM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    memory_bytes: u64,
}

impl Layout {
    /// The map for this much memory.
    pub const fn new(memory_bytes: u64) -> Self {
        Layout { memory_bytes }
    }

    /// All RAM, in bytes.
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// One past the last byte of RAM below 4 GiB.
    pub const fn low_end(&self) -> u64 {
        if self.memory_bytes < DEVICE_HOLE { self.memory_bytes } else { DEVICE_HOLE }
    }

    /// One past the last byte of RAM above 4 GiB; [`HIGH_RAM`] if there is none there.
    pub const fn high_end(&self) -> u64 {
        HIGH_RAM.saturating_add(self.memory_bytes - self.low_end())
    }

    /// The ranges of RAM: what the monitor maps, in the order in which it takes them out of the VM's memory.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        [0..self.low_end(), HIGH_RAM..self.high_end()].into_iter().filter(|range| !range.is_empty())
    }

    /// The address of the byte at `offset` in all RAM, its ranges one behind the other.
    pub const fn address(&self, offset: u64) -> u64 {
        if offset < self.low_end() { offset } else { HIGH_RAM + (offset - self.low_end()) }
    }

    /// Where in all RAM `bytes` bytes from `address` are, if all of them are in one range of it.
    pub const fn offset(&self, address: u64, bytes: u64) -> Option<u64> {
        let (start, end, before) = if address < HIGH_RAM {
            (0, self.low_end(), 0)
        } else {
            (HIGH_RAM, self.high_end(), self.low_end())
        };
        if address > end || bytes > end - address { None } else { Some(address - start + before) }
    }

    /// Whether this is the address of a byte of RAM.
    pub const fn is_ram(&self, address: u64) -> bool {
        address < self.low_end() || address >= HIGH_RAM && address < self.high_end()
    }

    /// The memory map that the guest is told.
    pub fn memory_map(&self) -> Vec<MapEntry> {
        let low_end = self.low_end();
        let usable = LOW_RAM_END.min(low_end);
        let reserved = KERNEL_MIN.min(low_end);
        [
            (0..usable, true),
            (usable..reserved, false),
            (reserved..low_end, true),
            (HIGH_RAM..self.high_end(), true),
        ]
        .into_iter()
        .filter(|(range, _)| !range.is_empty())
        .map(|(range, usable)| MapEntry { base: range.start, size: range.end - range.start, usable })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_has_all_its_memory_below_the_devices() {
        let layout = Layout::new(64 << 20);
        assert!(layout.ram().eq(core::iter::once(0..64 << 20)));
        assert_eq!(
            layout.memory_map(),
            [
                MapEntry { base: 0, size: 0x9_fc00, usable: true },
                MapEntry { base: 0x9_fc00, size: 0x6_0400, usable: false },
                MapEntry { base: 0x10_0000, size: 63 << 20, usable: true },
            ]
        );
    }

    #[test]
    fn memory_beyond_three_gib_appears_above_four() {
        let layout = Layout::new(5 << 30);
        assert_eq!(layout.ram().collect::<Vec<_>>(), [0..DEVICE_HOLE, HIGH_RAM..HIGH_RAM + (2 << 30)]);
        assert!(layout.is_ram(HIGH_RAM + (2 << 30) - 1));
        assert!(!layout.is_ram(LOCAL_APIC));
        assert_eq!(layout.memory_map().last().map(|entry| entry.size), Some(2 << 30));
    }

    #[test]
    fn ram_is_one_range_by_offset() {
        let layout = Layout::new(5 << 30);
        assert_eq!(layout.address(DEVICE_HOLE - 1), DEVICE_HOLE - 1);
        assert_eq!(layout.address(DEVICE_HOLE), HIGH_RAM);
        assert_eq!(layout.offset(DEVICE_HOLE - 8, 8), Some(DEVICE_HOLE - 8));
        assert_eq!(layout.offset(DEVICE_HOLE - 8, 9), None);
        assert_eq!(layout.offset(LOCAL_APIC, 1), None);
        assert_eq!(layout.offset(HIGH_RAM, 2 << 30), Some(DEVICE_HOLE));
        assert_eq!(layout.offset(HIGH_RAM + (2 << 30), 1), None);
        assert_eq!(layout.offset(u64::MAX, 1), None);
        assert_eq!(Layout::new(1 << 20).offset(HIGH_RAM, 1), None);
    }

    #[test]
    fn ranges_of_the_memory_map_add_up_to_the_memory() {
        for mib in [1, 2, 640, 3071, 3072, 3073, 1 << 20] {
            let layout = Layout::new(mib << 20);
            assert_eq!(layout.memory_map().iter().map(|entry| entry.size).sum::<u64>(), mib << 20);
        }
    }
}
