//! Segmentation: from an offset in a segment to a linear address (SDM 3A 5.3 to 5.5, SDM 1 3.3.4).
//!
//! What the CPU reported as an access to memory has passed these checks there; what it reported as port I/O, and the
//! later iterations of a string instruction, have not.

use hypercall_abi::vcpu::{CS, DS, ES, FS, GS, Groups, SS, Segment, VcpuPage};
use iced_x86::Register;

use super::walk::Access;
use crate::fault::Fault;
use crate::msr::is_canonical;
use crate::vcpu::{ACCESS_BIG, CR0_PE, RFLAGS_VM, Vcpu, code_bits};

/// Segment access rights, type: a code segment.
const CODE: u32 = 1 << 3;
/// Segment access rights, type of a data segment: offsets are above the limit.
const EXPAND_DOWN: u32 = 1 << 2;
/// Segment access rights, type: writable data, or readable code.
const ALSO: u32 = 1 << 1;

/// The linear address of `size` bytes (at least 1) at `offset` of a segment. Needs [`crate::vcpu::MODE`], and asks for more
/// where the segment register matters.
///
/// # Errors
/// The fault that the access raises: #SS for the stack segment, else #GP.
pub(super) fn linear(
    vcpu: &mut impl Vcpu,
    register: Register,
    offset: u64,
    size: usize,
    access: Access,
) -> Result<u64, Fault> {
    let to_last = size as u64 - 1;
    let is_long = code_bits(vcpu.page()) == 64;
    let (linear, is_valid) = if is_long {
        // Only FS and GS have a base.
        let base = match register {
            Register::FS | Register::GS => vcpu.state(Groups::DATA_SEGMENTS).segments[index(register)].base,
            _ => 0,
        };
        let linear = base.wrapping_add(offset);
        (linear, is_canonical(linear) && is_canonical(linear.wrapping_add(to_last)))
    } else {
        let page = vcpu.state(Groups::DATA_SEGMENTS);
        let segment = &page.segments[index(register)];
        let is_valid = permits(page, segment, access) && contains(segment, offset, to_last);
        (segment.base.wrapping_add(offset) & 0xffff_ffff, is_valid)
    };
    if is_valid {
        Ok(linear)
    } else if register == Register::SS {
        Err(Fault::STACK)
    } else {
        Err(Fault::PROTECTION)
    }
}

fn index(register: Register) -> usize {
    match register {
        Register::ES => ES,
        Register::CS => CS,
        Register::SS => SS,
        Register::FS => FS,
        Register::GS => GS,
        _ => DS,
    }
}

/// The segment's type allows the access. Real mode and virtual-8086 mode do not look at it.
fn permits(page: &VcpuPage, segment: &Segment, access: Access) -> bool {
    if page.cr0 & CR0_PE == 0 || page.rflags & RFLAGS_VM != 0 {
        return true;
    }
    let is_code = segment.access & CODE != 0;
    let is_usable = segment.access & Segment::UNUSABLE == 0;
    is_usable
        && match access {
            Access::Write => !is_code && segment.access & ALSO != 0,
            Access::Read | Access::Fetch => !is_code || segment.access & ALSO != 0,
        }
}

fn contains(segment: &Segment, offset: u64, to_last: u64) -> bool {
    let limit = segment.limit.into();
    let last = offset.saturating_add(to_last);
    if segment.access & (CODE | EXPAND_DOWN) == EXPAND_DOWN {
        let top = if segment.access & ACCESS_BIG != 0 { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::FakeVcpu;

    fn protected(segment: Segment) -> FakeVcpu {
        let mut vcpu = FakeVcpu::new();
        vcpu.page.cr0 |= CR0_PE;
        vcpu.page.segments = [segment; 6];
        vcpu.page.segments[CS] = Segment::new(8, 0, 0xffff_ffff, 0xc09b);
        vcpu
    }

    #[test]
    fn an_access_ends_at_the_limit() {
        let mut vcpu = protected(Segment::new(0x10, 0x1000, 0xff, 0x4093));
        let mut at = |register, offset| linear(&mut vcpu, register, offset, 4, Access::Read);
        assert_eq!(at(Register::DS, 0xfc), Ok(0x10fc));
        assert_eq!(at(Register::DS, 0xfd), Err(Fault::PROTECTION));
        assert_eq!(at(Register::SS, 0xfd), Err(Fault::STACK));
        assert_eq!(at(Register::DS, u64::MAX), Err(Fault::PROTECTION));
    }

    #[test]
    fn an_expand_down_segment_begins_behind_its_limit() {
        for (access, top) in [(0x97, 0xffff), (0x4097, 0xffff_ffff)] {
            let mut vcpu = protected(Segment::new(0x10, 0, 0xff, access));
            let mut at = |offset| linear(&mut vcpu, Register::DS, offset, 2, Access::Write);
            assert_eq!(at(0x100), Ok(0x100));
            assert_eq!(at(0xff), Err(Fault::PROTECTION));
            assert_eq!(at(top - 1), Ok(top - 1));
            assert_eq!(at(top), Err(Fault::PROTECTION));
        }
    }

    #[test]
    fn the_type_says_what_is_allowed_in_protected_mode_only() {
        let cases = [
            (0x91, true, false),
            (0x93, true, true),
            (0x99, false, false),
            (0x9b, true, false),
            (0x93 | Segment::UNUSABLE, false, false),
        ];
        for (access, reads, writes) in cases {
            let mut vcpu = protected(Segment::new(0x10, 0, 0xffff, access));
            let may = |vcpu: &mut FakeVcpu, access| linear(vcpu, Register::ES, 0, 1, access).is_ok();
            assert_eq!(may(&mut vcpu, Access::Read), reads, "{access:#x}");
            assert_eq!(may(&mut vcpu, Access::Write), writes, "{access:#x}");
            vcpu.page.cr0 &= !CR0_PE;
            assert!(may(&mut vcpu, Access::Write), "{access:#x} in real mode");
        }
    }

    #[test]
    fn in_64_bit_mode_addresses_are_canonical_and_most_bases_zero() {
        let mut vcpu = FakeVcpu::long_mode(0, 0);
        vcpu.page.segments[DS].base = 0x5000;
        vcpu.page.segments[GS].base = 0x5000;
        let mut at = |register, offset| linear(&mut vcpu, register, offset, 8, Access::Read);
        assert_eq!(at(Register::DS, 0x10), Ok(0x10));
        assert_eq!(at(Register::GS, 0x10), Ok(0x5010));
        assert_eq!(at(Register::DS, (1 << 47) - 8), Ok((1 << 47) - 8));
        assert_eq!(at(Register::DS, (1 << 47) - 7), Err(Fault::PROTECTION));
        assert_eq!(at(Register::SS, 1 << 47), Err(Fault::STACK));
    }

    #[test]
    fn addresses_wrap_at_4_gib_outside_64_bit_mode() {
        let mut vcpu = protected(Segment::new(0x10, 0xffff_f000, 0xffff_ffff, 0xc093));
        assert_eq!(linear(&mut vcpu, Register::DS, 0x1800, 4, Access::Read), Ok(0x800));
    }
}
