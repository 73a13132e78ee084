//! Segment registers of the guest (SDM 3C 26.3.1.2). Each register is checked when its group is loaded, against the mode that the
//! guest has then: with another mode later it may not go together, so that all of these are about combinations.

use super::super::fields::{self, SegmentFields};
use super::guest::Guest;
use super::{Broken, Fields, fits, is_canonical};
use hypercall_abi::vcpu::{CS, DS, ES, FS, GS, SS};

const SEGMENTS: &str = "26.3.1.2";
const UNUSABLE: u32 = 1 << 16;
const LONG: u32 = 1 << 13;
const DEFAULT: u32 = 1 << 14;

/// One register.
struct Register {
    selector: u16,
    base: u64,
    limit: u32,
    access: u32,
}

impl Register {
    fn read(vmcs: &impl Fields, fields: &SegmentFields) -> Self {
        Register {
            selector: vmcs.read(fields.selector),
            base: vmcs.read(fields.base),
            limit: vmcs.read(fields.limit),
            access: vmcs.read(fields.access),
        }
    }

    fn is_usable(&self) -> bool {
        self.access & UNUSABLE == 0
    }

    fn kind(&self) -> u32 {
        self.access & 15
    }

    fn dpl(&self) -> u32 {
        self.access >> 5 & 3
    }

    fn rpl(&self) -> u32 {
        self.selector as u32 & 3
    }

    fn is_local(&self) -> bool {
        self.selector & 4 != 0
    }

    /// S is `is_code_or_data`, P is set, the reserved bits are 0.
    fn has_rights(&self, is_code_or_data: bool) -> bool {
        (self.access >> 4 & 1 != 0) == is_code_or_data
            && self.access >> 7 & 1 != 0
            && self.access & 0xfffe_0f00 == 0
    }

    /// If any of the low 12 bits of the limit is 0, G is 0; if any of the high 12 is 1, G is 1.
    fn has_granularity(&self) -> bool {
        if self.access >> 15 & 1 != 0 { self.limit & 0xfff == 0xfff } else { self.limit & 0xfff0_0000 == 0 }
    }

    fn is_v86(&self) -> bool {
        self.base == (self.selector as u64) << 4 && self.limit == 0xffff && self.access == 0xf3
    }
}

/// CS.L.
pub(super) fn long_code(vmcs: &impl Fields) -> bool {
    vmcs.read(fields::GUEST_SEGMENTS[CS].access) & LONG != 0
}

pub(super) fn check(vmcs: &impl Fields, guest: &Guest) -> Result<(), Broken> {
    let segments = fields::GUEST_SEGMENTS.map(|fields| Register::read(vmcs, &fields));
    check_system(vmcs, guest)?;
    if guest.is_v86 {
        return fits(segments.iter().all(Register::is_v86), SEGMENTS, "segments in virtual-8086 mode");
    }
    fits(
        guest.is_unrestricted || segments[SS].rpl() == segments[CS].rpl(),
        SEGMENTS,
        "RPL of SS is that of CS",
    )?;
    check_bases(&segments)?;
    check_code(&segments[CS], &segments[SS], guest)?;
    check_stack(&segments[SS], &segments[CS], guest)?;
    [ES, DS, FS, GS].into_iter().try_for_each(|index| check_data(&segments[index], guest))
}

fn check_bases(segments: &[Register; 6]) -> Result<(), Broken> {
    fits(
        is_canonical(segments[FS].base) && is_canonical(segments[GS].base),
        SEGMENTS,
        "bases of FS and GS are canonical",
    )?;
    fits(segments[CS].base >> 32 == 0, SEGMENTS, "base of CS has 32 bits")?;
    fits(
        [ES, SS, DS].into_iter().all(|index| !segments[index].is_usable() || segments[index].base >> 32 == 0),
        SEGMENTS,
        "bases of SS, DS and ES have 32 bits",
    )
}

fn check_code(cs: &Register, ss: &Register, guest: &Guest) -> Result<(), Broken> {
    let is_kind = matches!(cs.kind(), 9 | 11 | 13 | 15) || guest.is_unrestricted && cs.kind() == 3;
    fits(is_kind, SEGMENTS, "type of CS")?;
    let is_dpl = match cs.kind() {
        3 => cs.dpl() == 0,
        9 | 11 => cs.dpl() == ss.dpl(),
        _ => cs.dpl() <= ss.dpl(),
    };
    fits(is_dpl, SEGMENTS, "DPL of CS")?;
    fits(cs.is_usable() && cs.has_rights(true), SEGMENTS, "access rights of CS")?;
    fits(
        !guest.is_long || cs.access & LONG == 0 || cs.access & DEFAULT == 0,
        SEGMENTS,
        "CS is not of 64 and 32 bits",
    )?;
    fits(cs.has_granularity(), SEGMENTS, "granularity of CS")
}

fn check_stack(ss: &Register, cs: &Register, guest: &Guest) -> Result<(), Broken> {
    fits(!ss.is_usable() || matches!(ss.kind(), 3 | 7), SEGMENTS, "type of SS")?;
    fits(guest.is_unrestricted || ss.dpl() == ss.rpl(), SEGMENTS, "DPL of SS is its RPL")?;
    fits(cs.kind() != 3 && guest.is_protected || ss.dpl() == 0, SEGMENTS, "DPL of SS is 0 in real mode")?;
    fits(!ss.is_usable() || ss.has_rights(true), SEGMENTS, "access rights of SS")?;
    fits(!ss.is_usable() || ss.has_granularity(), SEGMENTS, "granularity of SS")
}

fn check_data(data: &Register, guest: &Guest) -> Result<(), Broken> {
    if !data.is_usable() {
        return Ok(());
    }
    let (is_accessed, is_code, is_readable) =
        (data.kind() & 1 != 0, data.kind() & 8 != 0, data.kind() & 2 != 0);
    fits(is_accessed && (!is_code || is_readable), SEGMENTS, "type of a data segment")?;
    fits(
        guest.is_unrestricted || data.kind() > 11 || data.dpl() >= data.rpl(),
        SEGMENTS,
        "DPL of a data segment",
    )?;
    fits(data.has_rights(true), SEGMENTS, "access rights of a data segment")?;
    fits(data.has_granularity(), SEGMENTS, "granularity of a data segment")
}

/// TR and LDTR.
fn check_system(vmcs: &impl Fields, guest: &Guest) -> Result<(), Broken> {
    const LDT: u32 = 2;
    const TSS_16: u32 = 3;
    const TSS: u32 = 11;
    let tr = Register::read(vmcs, &fields::GUEST_TR);
    let ldtr = Register::read(vmcs, &fields::GUEST_LDTR);
    fits(!tr.is_local(), SEGMENTS, "TI of TR is 0")?;
    fits(is_canonical(tr.base), SEGMENTS, "base of TR is canonical")?;
    fits(
        tr.kind() == TSS || tr.kind() == TSS_16 && !guest.is_long,
        SEGMENTS,
        "TR is a busy TSS of the guest's mode",
    )?;
    fits(
        tr.is_usable() && tr.has_rights(false) && tr.has_granularity(),
        SEGMENTS,
        "access rights and granularity of TR",
    )?;
    if !ldtr.is_usable() {
        return Ok(());
    }
    fits(!ldtr.is_local(), SEGMENTS, "TI of LDTR is 0")?;
    fits(is_canonical(ldtr.base), SEGMENTS, "base of LDTR is canonical")?;
    fits(
        ldtr.kind() == LDT && ldtr.has_rights(false) && ldtr.has_granularity(),
        SEGMENTS,
        "type, access rights and granularity of LDTR",
    )
}
