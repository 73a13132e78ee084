//! What the kernel tells the root task (SPEC.md 9).

use crate::AbiVersion;

/// First field of [`BootInfo`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"NACREBI\0");

/// Where the kernel maps [`BootInfo`], read-only, in the root task.
pub const BOOT_INFO_ADDR: u64 = 0x0000_7fff_0000_0000;
/// Where the kernel maps the root task's UTCB.
pub const ROOT_UTCB_ADDR: u64 = 0x0000_7fff_0010_0000;
/// One past the root task's initial stack of [`ROOT_STACK_PAGES`] pages.
pub const ROOT_STACK_TOP: u64 = 0x0000_7fff_0020_0000;
/// Pages of the root task's initial stack.
pub const ROOT_STACK_PAGES: u64 = 16;

/// Selectors of the root task's initial capabilities.
pub mod root {
    use crate::Selector;
    /// Its own protection domain.
    pub const PD: Selector = Selector(1);
    /// Its pool: all kernel memory that is left.
    pub const POOL: Selector = Selector(2);
    /// Its execution context.
    pub const EC: Selector = Selector(3);
    /// Its scheduling context.
    pub const SC: Selector = Selector(4);
    /// The kernel's log.
    pub const LOG: Selector = Selector(5);
    /// Every I/O port but those the kernel keeps.
    pub const PORTS: Selector = Selector(6);
    /// Every global system interrupt.
    pub const IRQS: Selector = Selector(7);
    /// Every device.
    pub const DEVICES: Selector = Selector(14);
    /// The trace of every CPU.
    pub const TRACE: Selector = Selector(15);
    /// First of the memory capabilities: one for each [`super::MemoryRegion`], in order.
    pub const MEMORY: Selector = Selector(16);
    /// First selector that the root task may use as it likes.
    pub const FREE: Selector = Selector(128);
}

/// Largest number of memory regions.
pub const MAX_REGIONS: usize = 64;
/// Largest number of boot modules.
pub const MAX_MODULES: usize = 32;
/// Largest number of CPUs.
pub const MAX_CPUS: usize = 64;

bitflags::bitflags! {
    /// What the machine has.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Machine: u64 {
        /// Virtualization by VMX (SVM if clear).
        const VMX = 1 << 0;
        /// Virtualization by SVM.
        const SVM = 1 << 1;
        /// An exit says how long its instruction is (VMX, and SVM with nRIP).
        const INSTRUCTION_LENGTH = 1 << 2;
        /// The guest may have real mode and unpaged mode without emulation.
        const UNRESTRICTED = 1 << 3;
        /// The host has TSC-deadline.
        const TSC_DEADLINE = 1 << 4;
        /// XSAVE is there and guests may have it.
        const XSAVE = 1 << 5;
        /// The TSC has the same rate in every power state.
        const INVARIANT_TSC = 1 << 6;
        /// The local APICs are in x2APIC mode.
        const X2APIC = 1 << 7;
        /// Guest TSC_AUX and RDTSCP may be offered.
        const RDTSCP = 1 << 8;
        /// INVPCID may be offered to guests.
        const INVPCID = 1 << 9;
        /// XSAVEC and XSAVES may be offered to guests.
        const XSAVES = 1 << 10;
        /// Devices reach the memory of their DMA spaces only.
        const DMA_SPACES = 1 << 11;
        /// Virtual-APIC pages are used by the hardware.
        const APIC_VIRTUALIZATION = 1 << 12;
    }
}

/// The page that the root task finds at [`BOOT_INFO_ADDR`].
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// Version of the contract.
    pub version: AbiVersion,
    /// CPUs that run; they are numbered from 0.
    pub cpu_count: u16,
    /// Reserved, zero.
    pub reserved: u16,
    /// TSC ticks in a second.
    pub tsc_hz: u64,
    /// [`Machine`] bits.
    pub machine: u64,
    /// XCR0 bits that guests may set.
    pub guest_xcr0: u64,
    /// Physical address of the ACPI RSDP, 0 if none was found.
    pub rsdp: u64,
    /// TSC when the kernel's first instruction ran.
    pub entry_tsc: u64,
    /// Entries of [`Self::regions`].
    pub region_count: u32,
    /// Entries of [`Self::modules`].
    pub module_count: u32,
    /// Memory, with a capability for each.
    pub regions: [MemoryRegion; MAX_REGIONS],
    /// Boot modules; the memory of each is one of the regions.
    pub modules: [Module; MAX_MODULES],
    /// The kernel's command line, zero-terminated.
    pub command_line: [u8; 512],
    /// TSC ticks since [`Self::entry_tsc`] that the kernel waited for timers (to measure the TSC) and for other CPUs.
    pub boot_wait: u64,
}

/// Kinds of [`MemoryRegion`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Free RAM.
    Free = 0,
    /// A boot module.
    Module = 1,
    /// Neither RAM nor the kernel's: devices.
    Device = 2,
}

/// A range of physical memory that the root task has a capability for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Physical address of its first byte, page-aligned.
    pub base: u64,
    /// Pages.
    pub pages: u64,
    /// [`RegionKind`].
    pub kind: u32,
    /// Selector of its capability.
    pub selector: u32,
}

/// A boot module.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Its name: what its command line says, zero-padded.
    pub name: [u8; 32],
    /// Bytes.
    pub size: u64,
    /// Index of its region.
    pub region: u32,
    /// Reserved, zero.
    pub reserved: u32,
}
