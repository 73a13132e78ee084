//! What `poison` fills its registers with, and what `witness` and a VMM must never see.
//!
//! The pattern is in no program's image: a VMM reads its guest's kernel, and whoever looks for the pattern would find it in its
//! own code. It is made when it is needed, out of two constants.

use core::hint::black_box;

/// What makes an address of the pattern: MSRs that hold addresses get [`pattern`] & this, which is canonical.
pub const CANONICAL: u64 = 0x0000_7fff_ffff_ffff;

const PATTERN: u64 = 0x6e61_6372_6570_6f69;
const MASK: u64 = 0x5555_aaaa_3333_cccc;
const MASKED: u64 = PATTERN ^ MASK;

/// The pattern.
#[inline]
pub fn pattern() -> u64 {
    black_box(MASKED) ^ black_box(MASK)
}

/// Whether a word has the pattern, or what an address register keeps of it. The pattern is not made for this.
#[inline]
pub fn is_pattern(word: u64) -> bool {
    (word ^ black_box(MASK)) & CANONICAL == black_box(MASKED & CANONICAL)
}

/// Whether a register of 32 bits has the pattern's lower half.
#[inline]
pub fn is_low_half(word: u32) -> bool {
    word ^ black_box(MASK as u32) == black_box(MASKED as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_found_in_words_addresses_and_halves() {
        assert!(is_pattern(pattern()) && is_pattern(pattern() & CANONICAL) && is_low_half(pattern() as u32));
        assert!(!is_pattern(pattern() ^ 1) && !is_pattern(0) && !is_low_half(0));
    }
}
