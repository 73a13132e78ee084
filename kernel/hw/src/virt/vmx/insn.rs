//! The VMX instructions (SDM 3C chapter 30). Each captures the flags that tell success in its own `asm!` block.

use crate::flush_checker;
use core::arch::asm;
use hypercall_abi::vcpu::Segment;
use kcore::addr::PhysAddr;
use kcore::virt::vmx::fields::{Field, SegmentFields, Width};

/// A VMX instruction failed (VMfailInvalid or VMfailValid).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VmFail;

const fn result(failed: u8) -> Result<(), VmFail> {
    if failed == 0 { Ok(()) } else { Err(VmFail) }
}

/// An instruction with one operand: a physical address in memory.
macro_rules! with_address {
    ($mnemonic:literal, $address:expr) => {{
        let failed: u8;
        asm!(concat!($mnemonic, " qword ptr [{}]"), "setna {}", in(reg) &$address.0, out(reg_byte) failed,
            options(nostack));
        result(failed)
    }};
}

/// VMXON.
///
/// # Safety
/// The region is a frame with the revision identifier, exclusive until VMXOFF. CR4.VMXE is set.
pub(super) unsafe fn vmxon(region: PhysAddr) -> Result<(), VmFail> {
    // SAFETY: the caller gives the CPU a region of its own; the operand is a valid reference.
    unsafe { with_address!("vmxon", region) }
}

/// VMCLEAR: writes the VMCS back to memory and makes its launch state clear.
///
/// # Safety
/// VMX is on. The frame is a VMCS that this kernel owns.
pub(super) unsafe fn vmclear(vmcs: PhysAddr) -> Result<(), VmFail> {
    // SAFETY: the hardware writes to that frame only.
    unsafe { with_address!("vmclear", vmcs) }
}

/// VMPTRLD: makes the VMCS current on this CPU.
///
/// # Safety
/// VMX is on. The frame is a VMCS that this kernel owns, was cleared once, and is not active on another CPU.
pub(super) unsafe fn vmptrld(vmcs: PhysAddr) -> Result<(), VmFail> {
    // SAFETY: from now on the hardware keeps guest and host state in that frame, which the caller owns.
    unsafe { with_address!("vmptrld", vmcs) }
}

/// What INVEPT invalidates (SDM 3C 30.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InvEpt {
    /// Everything cached under one EPT pointer.
    Single(u64),
    /// Everything cached under any.
    All,
}

/// INVEPT.
///
/// # Safety
/// VMX is on, and the machine has this type of INVEPT.
pub(super) unsafe fn invept(what: InvEpt) -> Result<(), VmFail> {
    let (kind, descriptor): (u64, [u64; 2]) = match what {
        InvEpt::Single(pointer) => (1, [pointer, 0]),
        InvEpt::All => (2, [0, 0]),
    };
    match what {
        InvEpt::Single(pointer) => flush_checker::flush_tag(pointer),
        InvEpt::All => flush_checker::flush_all_tags(),
    }
    let failed: u8;
    // SAFETY: invalidating cached translations is always correct; the descriptor is 16 valid bytes.
    unsafe {
        asm!("invept {}, xmmword ptr [{}]", "setna {}", in(reg) kind, in(reg) &descriptor, out(reg_byte) failed,
            options(nostack));
    }
    result(failed)
}

/// INVVPID for everything cached under one identifier but for global translations of others.
///
/// # Safety
/// VMX is on, and the machine has single-context INVVPID.
pub(super) unsafe fn invvpid_single(vpid: u16) -> Result<(), VmFail> {
    const SINGLE_CONTEXT: u64 = 1;
    let descriptor = [vpid as u64, 0];
    flush_checker::flush_tag(vpid as u64);
    let failed: u8;
    // SAFETY: as in `invept`.
    unsafe {
        asm!("invvpid {}, xmmword ptr [{}]", "setna {}", in(reg) SINGLE_CONTEXT, in(reg) &descriptor,
            out(reg_byte) failed, options(nostack));
    }
    result(failed)
}

/// The current VMCS of this CPU: whoever has one may read and write its fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct CurrentVmcs(());

impl CurrentVmcs {
    /// # Safety
    /// While the value is used, VMX is on and the VMCS that its user means is current on this CPU. This folder alone
    /// makes such values; whatever it writes through them leaves host state and controls such that every exit comes
    /// back to [`super::entry`] with the kernel's own state.
    #[inline]
    pub(super) unsafe fn assume() -> Self {
        CurrentVmcs(())
    }

    /// VMREAD of a field that this CPU has.
    #[inline]
    pub(super) fn read<W: Width>(self, field: Field<W>) -> W {
        let encoding = field.encoding() as u64;
        let raw: u64;
        if cfg!(debug_assertions) {
            let failed: u8;
            // SAFETY: VMX is on (`assume`), so the instruction exists; it changes nothing.
            unsafe {
                asm!("vmread {}, {}", "setna {}", out(reg) raw, in(reg) encoding, lateout(reg_byte) failed,
                    options(nomem, nostack));
            }
            debug_assert!(failed == 0, "VMREAD {encoding:#x}");
        } else {
            // SAFETY: as above.
            unsafe { asm!("vmread {}, {}", out(reg) raw, in(reg) encoding, options(nomem, nostack)) }
        }
        W::from_raw(raw)
    }

    /// VMWRITE to a field that this CPU has.
    #[inline]
    pub(super) fn write<W: Width>(self, field: Field<W>, value: W) {
        let (encoding, raw) = (field.encoding() as u64, value.into_raw());
        if cfg!(debug_assertions) {
            let failed: u8;
            // SAFETY: VMX is on (`assume`), so the instruction exists; what may be written is `assume`'s promise.
            unsafe {
                asm!("vmwrite {}, {}", "setna {}", in(reg) encoding, in(reg) raw, lateout(reg_byte) failed,
                    options(nomem, nostack));
            }
            debug_assert!(failed == 0, "VMWRITE {encoding:#x}");
        } else {
            // SAFETY: as above.
            unsafe { asm!("vmwrite {}, {}", in(reg) encoding, in(reg) raw, options(nomem, nostack)) }
        }
    }

    /// Reads the four fields of a segment register.
    pub(super) fn read_segment(self, fields: &SegmentFields) -> Segment {
        Segment::new(
            self.read(fields.selector),
            self.read(fields.base),
            self.read(fields.limit),
            self.read(fields.access),
        )
    }

    /// Writes the four fields of a segment register.
    pub(super) fn write_segment(self, fields: &SegmentFields, segment: &Segment) {
        self.write(fields.selector, segment.selector);
        self.write(fields.base, segment.base);
        self.write(fields.limit, segment.limit);
        self.write(fields.access, segment.access);
    }
}
