//! Segment registers between the vCPU page (VMX layout) and the VMCB.

use super::vmcb::{SaveArea, VmcbSegment};
use hypercall_abi::exit::EntryRule;
use hypercall_abi::vcpu::{DescriptorTable, Segment};

/// [`VmcbSegment::attributes`] and [`Segment::access`]: P.
const PRESENT: u16 = 1 << 7;
/// [`Segment::access`] bits that the VMCB holds four bits lower: AVL, L, D/B, G.
const HIGH: u32 = 0xf000;
/// [`Segment::access`]: D/B.
const DEFAULT_BIG: u32 = 1 << 14;
/// [`Segment::access`]: G.
const GRANULARITY: u32 = 1 << 15;

/// The segment in the VMCB's form. SVM has no unusable bit: such a segment is one that is not present.
///
/// # Errors
/// [`EntryRule::Segment`] if reserved bits are set.
pub fn to_vmcb(segment: &Segment) -> Result<VmcbSegment, EntryRule> {
    if segment.access & !(0xff | HIGH | Segment::UNUSABLE) != 0 {
        return Err(EntryRule::Segment);
    }
    let mut attributes = (segment.access & 0xff | (segment.access & HIGH) >> 4) as u16;
    if segment.access & Segment::UNUSABLE != 0 {
        attributes &= !PRESENT;
    }
    Ok(VmcbSegment { selector: segment.selector, attributes, limit: segment.limit, base: segment.base })
}

/// The segment in the page's form.
///
/// CPUs differ in what they keep of G and of a null segment's bits, so G follows the limit and D/B goes with the
/// segment: the result passes the VMX entry checks on the other vendor's CPUs as well.
pub fn from_vmcb(segment: &VmcbSegment) -> Segment {
    let attributes = segment.attributes as u32;
    let mut access = attributes & 0xff | attributes << 4 & HIGH;
    if segment.limit > 0xf_ffff {
        access |= GRANULARITY;
    }
    if segment.attributes & PRESENT == 0 {
        access = access & !DEFAULT_BIG | Segment::UNUSABLE;
    }
    Segment::new(segment.selector, segment.base, segment.limit, access)
}

/// TR: SVM may save it without the busy bit, which a loaded TR always has.
pub fn tr_from_vmcb(segment: &VmcbSegment) -> Segment {
    let mut tr = from_vmcb(segment);
    tr.access |= 2;
    tr
}

/// SS: its DPL is the CPL, which SVM keeps apart.
pub fn ss_from_vmcb(save: &SaveArea) -> Segment {
    let mut ss = from_vmcb(&save.ss);
    ss.access = ss.access & !(3 << 5) | ((save.cpl & 3) as u32) << 5;
    ss
}

/// A descriptor-table register in the VMCB's form.
///
/// # Errors
/// [`EntryRule::Segment`] if the limit has more than 16 bits.
pub fn table_to_vmcb(table: &DescriptorTable) -> Result<VmcbSegment, EntryRule> {
    if table.limit > 0xffff {
        return Err(EntryRule::Segment);
    }
    Ok(VmcbSegment { selector: 0, attributes: 0, limit: table.limit, base: table.base })
}

/// A descriptor-table register in the page's form.
pub fn table_from_vmcb(table: &VmcbSegment) -> DescriptorTable {
    DescriptorTable { base: table.base, limit: table.limit & 0xffff, reserved: 0 }
}

/// Whether the guest executes 64-bit code.
#[inline]
pub fn is_64_bit(save: &SaveArea) -> bool {
    const EFER_LMA: u64 = 1 << 10;
    const CS_LONG: u16 = 1 << 9;
    save.efer & EFER_LMA != 0 && save.cs.attributes & CS_LONG != 0
}

/// CR3, if the guest executes 64-bit code.
#[inline]
pub fn code_root(save: &SaveArea) -> Option<u64> {
    is_64_bit(save).then_some(save.cr3)
}

/// CPL as the mode, or else the DPL of SS, says (APM 15.5.1: VMRUN takes it from the VMCB, QEMU from SS).
pub fn cpl(save: &SaveArea) -> u8 {
    const CR0_PE: u64 = 1;
    const RFLAGS_VM: u64 = 1 << 17;
    if save.cr0 & CR0_PE == 0 {
        0
    } else if save.rflags & RFLAGS_VM != 0 {
        3
    } else {
        (save.ss.attributes >> 5) as u8 & 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virt::svm::vmcb::Vmcb;
    use proptest::prelude::*;

    #[test]
    fn a_64_bit_code_segment_keeps_its_attributes() {
        let code = Segment::new(0x10, 0, 0xffff_ffff, 0xa09b);
        let vmcb = to_vmcb(&code).unwrap();
        assert_eq!(vmcb.attributes, 0xa9b);
        assert_eq!(from_vmcb(&vmcb), code);
    }

    #[test]
    fn an_unusable_segment_is_not_present_and_comes_back_unusable() {
        let null = Segment::new(0, 0, 0, Segment::UNUSABLE | 0xc093);
        let vmcb = to_vmcb(&null).unwrap();
        assert_eq!(vmcb.attributes & PRESENT, 0);
        assert_eq!(from_vmcb(&vmcb).access & (Segment::UNUSABLE | DEFAULT_BIG), Segment::UNUSABLE);
    }

    #[test]
    fn reserved_access_bits_are_refused() {
        for bit in [8, 11, 17, 31] {
            assert_eq!(to_vmcb(&Segment::new(0, 0, 0, 0x93 | 1 << bit)), Err(EntryRule::Segment));
        }
    }

    #[test]
    fn a_task_register_without_the_busy_bit_reads_as_busy() {
        let tr = VmcbSegment { selector: 8, attributes: 0x89, limit: 0x67, base: 0 };
        assert_eq!(tr_from_vmcb(&tr).access, 0x8b);
    }

    #[test]
    fn the_dpl_of_a_null_stack_segment_is_the_cpl() {
        let mut vmcb = Vmcb::after_reset();
        (vmcb.save.ss.attributes, vmcb.save.cpl) = (0, 3);
        assert_eq!(ss_from_vmcb(&vmcb.save).access >> 5 & 3, 3);
    }

    #[test]
    fn cpl_is_zero_in_real_mode_and_three_in_virtual_8086_mode() {
        let mut vmcb = Vmcb::after_reset();
        vmcb.save.ss.attributes = 0xf3;
        assert_eq!(cpl(&vmcb.save), 0);
        vmcb.save.cr0 |= 1;
        assert_eq!(cpl(&vmcb.save), 3);
        vmcb.save.ss.attributes = 0x93;
        assert_eq!(cpl(&vmcb.save), 0);
        vmcb.save.rflags |= 1 << 17;
        assert_eq!(cpl(&vmcb.save), 3);
    }

    #[test]
    fn a_table_limit_of_more_than_16_bits_is_refused() {
        let table = DescriptorTable { base: 0, limit: 0x1_0000, reserved: 0 };
        assert_eq!(table_to_vmcb(&table), Err(EntryRule::Segment));
    }

    proptest! {
        #[test]
        fn a_usable_segment_with_consistent_granularity_survives_the_round_trip(
            selector: u16, base: u64, limit: u32, low in 0u32..0x80, high in 0u32..8,
        ) {
            let granularity = if limit > 0xf_ffff { GRANULARITY } else { 0 };
            let segment = Segment::new(selector, base, limit, low | 0x80 | high << 12 | granularity);
            prop_assert_eq!(from_vmcb(&to_vmcb(&segment).unwrap()), segment);
        }
    }
}
