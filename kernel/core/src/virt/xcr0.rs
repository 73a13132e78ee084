//! XCR0.

use hypercall_abi::exit::EntryRule;

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const MPX: u64 = 3 << 3;
const AVX512: u64 = 7 << 5;
const AMX: u64 = 3 << 17;

/// Refuses what XSETBV faults on (SDM 1 13.3, APM 2 11.5.2). `supported` are the bits that the kernel switches.
///
/// # Errors
/// [`EntryRule::Msr`].
pub const fn check(xcr0: u64, supported: u64) -> Result<(), EntryRule> {
    let is_valid = xcr0 & !supported == 0
        && has_all(xcr0, X87)
        && (xcr0 & AVX == 0 || has_all(xcr0, SSE))
        && (xcr0 & AVX512 == 0 || has_all(xcr0, AVX512 | AVX))
        && (xcr0 & MPX == 0 || has_all(xcr0, MPX))
        && (xcr0 & AMX == 0 || has_all(xcr0, AMX));
    if is_valid { Ok(()) } else { Err(EntryRule::Msr) }
}

const fn has_all(value: u64, bits: u64) -> bool {
    value & bits == bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_come_with_those_they_build_on() {
        const ALL: u64 = 0x6_02ff;
        for xcr0 in [1, 3, 7, 0xe7, 0x1b, 0x2e7, 0x6_0003] {
            assert_eq!(check(xcr0, ALL), Ok(()), "{xcr0:#x}");
        }
        for xcr0 in [0, 2, 5, 0x27, 0xe3, 0xb, 0x2_0003] {
            assert_eq!(check(xcr0, ALL), Err(EntryRule::Msr), "{xcr0:#x}");
        }
        assert_eq!(check(7, 3), Err(EntryRule::Msr), "not supported");
    }
}
