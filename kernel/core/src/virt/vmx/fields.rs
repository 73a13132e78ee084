//! VMCS field encodings, in the groups and the order of SDM 3D appendix B; only those that the kernel uses.

use core::marker::PhantomData;

/// What fits a VMCS field: the value types of the four widths (natural width is 64 bits here).
pub trait Width: Copy {
    /// Bit n is set if fields of width code n (bits 13 and 14 of the encoding) hold this type.
    const CODES: u32;
    /// The value out of the 64 bits that VMREAD gives.
    fn from_raw(raw: u64) -> Self;
    /// The 64 bits for VMWRITE.
    fn into_raw(self) -> u64;
}

macro_rules! width {
    ($type:ty, $codes:literal) => {
        impl Width for $type {
            const CODES: u32 = $codes;
            #[inline]
            fn from_raw(raw: u64) -> Self {
                raw as $type
            }
            #[inline]
            fn into_raw(self) -> u64 {
                self as u64
            }
        }
    };
}

width!(u16, 0b0001);
width!(u64, 0b1010);
width!(u32, 0b0100);

/// A VMCS field that holds a `W`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<W> {
    encoding: u32,
    width: PhantomData<W>,
}

impl<W: Width> Field<W> {
    pub(super) const fn new(encoding: u32) -> Self {
        assert!(W::CODES >> (encoding >> 13 & 3) & 1 != 0, "the encoding has another width");
        Field { encoding, width: PhantomData }
    }

    /// The operand of VMREAD and VMWRITE.
    #[inline]
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
}

macro_rules! fields {
    ($width:ty: $($name:ident = $encoding:literal, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: Field<$width> = Field::new($encoding);)*
    };
}

// Table B-1: 16-bit control fields.
fields! { u16:
    VPID = 0x0000, "Virtual-processor identifier.";
}

// Table B-2: 16-bit guest-state fields, without those in [`SegmentFields`].
fields! { u16:
    GUEST_INTERRUPT_STATUS = 0x0810, "Guest interrupt status.";
}

// Table B-3: 16-bit host-state fields.
fields! { u16:
    HOST_ES_SELECTOR = 0x0c00, "Host ES selector.";
    HOST_CS_SELECTOR = 0x0c02, "Host CS selector.";
    HOST_SS_SELECTOR = 0x0c04, "Host SS selector.";
    HOST_DS_SELECTOR = 0x0c06, "Host DS selector.";
    HOST_FS_SELECTOR = 0x0c08, "Host FS selector.";
    HOST_GS_SELECTOR = 0x0c0a, "Host GS selector.";
    HOST_TR_SELECTOR = 0x0c0c, "Host TR selector.";
}

// Table B-4: 64-bit control fields.
fields! { u64:
    MSR_BITMAP = 0x2004, "Address of the MSR bitmap.";
    TSC_OFFSET = 0x2010, "TSC offset.";
    VIRTUAL_APIC = 0x2012, "Virtual-APIC address.";
    EPT_POINTER = 0x201a, "EPT pointer.";
    XSS_EXITING_BITMAP = 0x202c, "XSS-exiting bitmap.";
    ENCLS_EXITING_BITMAP = 0x202e, "ENCLS-exiting bitmap.";
}

/// EOI-exit bitmaps 0 to 3.
pub const EOI_EXIT_BITMAPS: [Field<u64>; 4] =
    [Field::new(0x201c), Field::new(0x201e), Field::new(0x2020), Field::new(0x2022)];

// Table B-5: 64-bit read-only data field.
fields! { u64:
    GUEST_PHYSICAL_ADDRESS = 0x2400, "Guest-physical address of an EPT violation or misconfiguration.";
}

// Table B-6: 64-bit guest-state fields.
fields! { u64:
    VMCS_LINK_POINTER = 0x2800, "VMCS link pointer.";
    GUEST_DEBUGCTL = 0x2802, "Guest IA32_DEBUGCTL.";
    GUEST_PAT = 0x2804, "Guest IA32_PAT.";
    GUEST_EFER = 0x2806, "Guest IA32_EFER.";
    GUEST_PDPTE0 = 0x280a, "Guest PDPTE0.";
    GUEST_PDPTE1 = 0x280c, "Guest PDPTE1.";
    GUEST_PDPTE2 = 0x280e, "Guest PDPTE2.";
    GUEST_PDPTE3 = 0x2810, "Guest PDPTE3.";
}

/// The four guest PDPTEs.
pub const GUEST_PDPTES: [Field<u64>; 4] = [GUEST_PDPTE0, GUEST_PDPTE1, GUEST_PDPTE2, GUEST_PDPTE3];

// Table B-7: 64-bit host-state fields.
fields! { u64:
    HOST_PAT = 0x2c00, "Host IA32_PAT.";
    HOST_EFER = 0x2c02, "Host IA32_EFER.";
}

// Table B-8: 32-bit control fields.
fields! { u32:
    PIN_CONTROLS = 0x4000, "Pin-based VM-execution controls.";
    PRIMARY_CONTROLS = 0x4002, "Primary processor-based VM-execution controls.";
    EXCEPTION_BITMAP = 0x4004, "Exception bitmap.";
    PAGE_FAULT_ERROR_MASK = 0x4006, "Page-fault error-code mask.";
    PAGE_FAULT_ERROR_MATCH = 0x4008, "Page-fault error-code match.";
    CR3_TARGET_COUNT = 0x400a, "CR3-target count.";
    EXIT_CONTROLS = 0x400c, "VM-exit controls.";
    EXIT_MSR_STORE_COUNT = 0x400e, "VM-exit MSR-store count.";
    EXIT_MSR_LOAD_COUNT = 0x4010, "VM-exit MSR-load count.";
    ENTRY_CONTROLS = 0x4012, "VM-entry controls.";
    ENTRY_MSR_LOAD_COUNT = 0x4014, "VM-entry MSR-load count.";
    ENTRY_INTERRUPTION_INFO = 0x4016, "VM-entry interruption-information field.";
    ENTRY_ERROR_CODE = 0x4018, "VM-entry exception error code.";
    ENTRY_INSTRUCTION_LENGTH = 0x401a, "VM-entry instruction length.";
    SECONDARY_CONTROLS = 0x401e, "Secondary processor-based VM-execution controls.";
}

// Table B-9: 32-bit read-only data fields.
fields! { u32:
    INSTRUCTION_ERROR = 0x4400, "VM-instruction error.";
    EXIT_REASON = 0x4402, "Exit reason.";
    EXIT_INTERRUPTION_INFO = 0x4404, "VM-exit interruption information.";
    EXIT_ERROR_CODE = 0x4406, "VM-exit interruption error code.";
    IDT_VECTORING_INFO = 0x4408, "IDT-vectoring information.";
    IDT_VECTORING_ERROR_CODE = 0x440a, "IDT-vectoring error code.";
    EXIT_INSTRUCTION_LENGTH = 0x440c, "VM-exit instruction length.";
    EXIT_INSTRUCTION_INFO = 0x440e, "VM-exit instruction information.";
}

// Table B-10: 32-bit guest-state fields.
fields! { u32:
    GUEST_GDTR_LIMIT = 0x4810, "Guest GDTR limit.";
    GUEST_IDTR_LIMIT = 0x4812, "Guest IDTR limit.";
    GUEST_INTERRUPTIBILITY = 0x4824, "Guest interruptibility state.";
    GUEST_ACTIVITY = 0x4826, "Guest activity state.";
    GUEST_SMBASE = 0x4828, "Guest SMBASE.";
    GUEST_SYSENTER_CS = 0x482a, "Guest IA32_SYSENTER_CS.";
    PREEMPTION_TIMER = 0x482e, "VMX-preemption timer value.";
}

// Table B-11: 32-bit host-state field.
fields! { u32:
    HOST_SYSENTER_CS = 0x4c00, "Host IA32_SYSENTER_CS.";
}

// Table B-12: natural-width control fields.
fields! { u64:
    CR0_MASK = 0x6000, "CR0 guest/host mask.";
    CR4_MASK = 0x6002, "CR4 guest/host mask.";
    CR0_SHADOW = 0x6004, "CR0 read shadow.";
    CR4_SHADOW = 0x6006, "CR4 read shadow.";
}

// Table B-13: natural-width read-only data fields.
fields! { u64:
    EXIT_QUALIFICATION = 0x6400, "Exit qualification.";
    GUEST_LINEAR_ADDRESS = 0x640a, "Guest-linear address.";
}

// Table B-14: natural-width guest-state fields.
fields! { u64:
    GUEST_CR0 = 0x6800, "Guest CR0.";
    GUEST_CR3 = 0x6802, "Guest CR3.";
    GUEST_CR4 = 0x6804, "Guest CR4.";
    GUEST_GDTR_BASE = 0x6816, "Guest GDTR base.";
    GUEST_IDTR_BASE = 0x6818, "Guest IDTR base.";
    GUEST_DR7 = 0x681a, "Guest DR7.";
    GUEST_RSP = 0x681c, "Guest RSP.";
    GUEST_RIP = 0x681e, "Guest RIP.";
    GUEST_RFLAGS = 0x6820, "Guest RFLAGS.";
    GUEST_PENDING_DEBUG = 0x6822, "Guest pending debug exceptions.";
    GUEST_SYSENTER_ESP = 0x6824, "Guest IA32_SYSENTER_ESP.";
    GUEST_SYSENTER_EIP = 0x6826, "Guest IA32_SYSENTER_EIP.";
}

// Table B-15: natural-width host-state fields.
fields! { u64:
    HOST_CR0 = 0x6c00, "Host CR0.";
    HOST_CR3 = 0x6c02, "Host CR3.";
    HOST_CR4 = 0x6c04, "Host CR4.";
    HOST_FS_BASE = 0x6c06, "Host FS base.";
    HOST_GS_BASE = 0x6c08, "Host GS base.";
    HOST_TR_BASE = 0x6c0a, "Host TR base.";
    HOST_GDTR_BASE = 0x6c0c, "Host GDTR base.";
    HOST_IDTR_BASE = 0x6c0e, "Host IDTR base.";
    HOST_SYSENTER_ESP = 0x6c10, "Host IA32_SYSENTER_ESP.";
    HOST_SYSENTER_EIP = 0x6c12, "Host IA32_SYSENTER_EIP.";
    HOST_RSP = 0x6c14, "Host RSP.";
    HOST_RIP = 0x6c16, "Host RIP.";
}

/// The four guest-state fields of a segment register (tables B-2, B-10 and B-14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFields {
    /// Selector.
    pub selector: Field<u16>,
    /// Limit.
    pub limit: Field<u32>,
    /// Access rights.
    pub access: Field<u32>,
    /// Base.
    pub base: Field<u64>,
}

impl SegmentFields {
    /// In each of the four tables the registers follow one another in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
    const fn new(index: u32) -> Self {
        SegmentFields {
            selector: Field::new(0x0800 + 2 * index),
            limit: Field::new(0x4800 + 2 * index),
            access: Field::new(0x4814 + 2 * index),
            base: Field::new(0x6806 + 2 * index),
        }
    }
}

/// ES, CS, SS, DS, FS, GS, as in [`hypercall_abi::vcpu::VcpuPage::segments`].
pub const GUEST_SEGMENTS: [SegmentFields; 6] = [
    SegmentFields::new(0),
    SegmentFields::new(1),
    SegmentFields::new(2),
    SegmentFields::new(3),
    SegmentFields::new(4),
    SegmentFields::new(5),
];
/// LDTR.
pub const GUEST_LDTR: SegmentFields = SegmentFields::new(6);
/// TR.
pub const GUEST_TR: SegmentFields = SegmentFields::new(7);

#[cfg(test)]
mod tests {
    use super::*;
    use hypercall_abi::vcpu::{CS, GS};

    #[test]
    fn segment_fields_have_the_encodings_of_the_manual() {
        assert_eq!(GUEST_SEGMENTS[CS].selector.encoding(), 0x0802);
        assert_eq!(GUEST_SEGMENTS[CS].base.encoding(), 0x6808);
        assert_eq!(GUEST_SEGMENTS[GS].access.encoding(), 0x481e);
        assert_eq!(GUEST_LDTR.limit.encoding(), 0x480c);
        assert_eq!(GUEST_TR.selector.encoding(), 0x080e);
        assert_eq!(GUEST_TR.access.encoding(), 0x4822);
        assert_eq!(GUEST_TR.base.encoding(), 0x6814);
    }

    #[test]
    fn values_keep_their_low_bits_only() {
        assert_eq!(u16::from_raw(0x1_2345), 0x2345);
        assert_eq!(u32::from_raw(0x1_0000_0002).into_raw(), 2);
        assert_eq!(u64::from_raw(u64::MAX), u64::MAX);
    }
}
