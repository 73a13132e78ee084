//! Interrupt vectors.

/// First of sixteen vectors the disabled 8259s could raise spuriously.
pub const PIC: u8 = 0x20;
/// First vector of global system interrupts: GSI n is `GSI + n`.
pub const GSI: u8 = 0x30;
/// Global system interrupts that have vectors.
pub const GSI_COUNT: u8 = 0x90;
/// Local APIC timer.
pub const TIMER: u8 = 0xf0;
/// Another CPU wants something: look at the request words.
pub const REQUEST: u8 = 0xf1;
/// An IOMMU recorded a fault.
pub const DMA_FAULT: u8 = 0xf2;
/// Spurious interrupt.
pub const SPURIOUS: u8 = 0xff;
