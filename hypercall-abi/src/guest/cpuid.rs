//! How a guest finds its paravirtual devices: two CPUID leaves (SPEC.md 11.1).
//!
//! The leaves lie at the next multiple of 100H behind the KVM interface, so that a guest can use both.

/// EBX, ECX and EDX of leaf [`BASE`].
pub const SIGNATURE: [u8; 12] = *b"NacreGuestPv";

/// The leaf with [`SIGNATURE`]; EAX is the last leaf of the interface. Drivers look for the signature instead.
pub const BASE: u32 = 0x4000_0100;

/// Behind the leaf with the signature: version in EAX, number of device pages in EBX, guest-physical address of the first in
/// ECX (low half) and EDX.
pub const DEVICES: u32 = 1;

/// Version of the guest contract: major in the high half, minor in the low half.
pub const VERSION: u32 = 0x0000_0001;

/// Whether a driver for [`VERSION`] can work with a VMM of this version: a change of the major version breaks drivers.
pub const fn is_compatible(version: u32) -> bool {
    version >> 16 == VERSION >> 16 && version & 0xffff >= VERSION & 0xffff
}
