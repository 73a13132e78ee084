//! Images of FPU state: the standard format of XSAVE (SDM 1 13.4).

/// Whether XRSTOR takes an image with this MXCSR and header (SDM 1 13.8, APM 4 XRSTOR). `mxcsr_mask` are the bits of MXCSR that the CPU
/// has, `supported` the components that the kernel switches. More than XRSTOR looks at is demanded of the header: all that is reserved is 0.
pub fn is_restorable(mxcsr: u32, header: &[u64; 8], mxcsr_mask: u32, supported: u64) -> bool {
    let [xstate_bv, reserved @ ..] = header;
    // The first reserved word is XCOMP_BV: not 0 for the compacted format.
    mxcsr & !mxcsr_mask == 0 && xstate_bv & !supported == 0 && *reserved == [0; 7]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_make_xrstor_fault_is_found() {
        let check = |mxcsr, header| is_restorable(mxcsr, &header, 0xffff, 7);
        for xstate_bv in 0..8 {
            assert!(check(0x1f80, [xstate_bv, 0, 0, 0, 0, 0, 0, 0]));
        }
        assert!(check(0xffff, [0; 8]));
        for bit in 16..32 {
            assert!(!check(1 << bit, [0; 8]), "MXCSR bit {bit}");
        }
        for bit in 3..64 {
            assert!(!check(0x1f80, [1 << bit, 0, 0, 0, 0, 0, 0, 0]), "component {bit}");
        }
        for word in 1..8 {
            let mut header = [0; 8];
            header[word] = 1 << (word * 9);
            assert!(!check(0x1f80, header), "word {word}");
        }
    }

    #[test]
    fn without_xsave_the_header_is_empty() {
        assert!(is_restorable(0x1f80, &[0; 8], 0xffbf, 0));
        assert!(!is_restorable(0x1f80, &[1, 0, 0, 0, 0, 0, 0, 0], 0xffbf, 0));
        assert!(!is_restorable(0x40, &[0; 8], 0xffbf, 0), "denormals are zeros");
    }
}
