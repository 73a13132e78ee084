//! The Internet checksum (RFC 1071), which a frame may lack.

use super::MIN_FRAME;

/// The sum of RFC 1071, of these bytes and of `more`, which is one already or a number of 16 bits to be added.
pub fn internet_sum(bytes: &[u8], more: u64) -> u16 {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum = words.map(u64::from).sum::<u64>() + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether a checksum of all bytes from `start` on, `offset` bytes behind that, lies in a frame of `len` bytes and behind Ethernet's
/// header: a switch looks at that before somebody fills it in.
#[inline]
pub const fn fits(start: u16, offset: u16, len: usize) -> bool {
    start as usize >= MIN_FRAME && start as usize + offset as usize + 2 <= len
}

/// Computes the checksum of all bytes from `start` on and writes it `offset` bytes behind that, where the sum of the pseudo header is
/// already; does nothing unless it [`fits`].
pub fn fill_in(frame: &mut [u8], start: u16, offset: u16) {
    if !fits(start, offset, frame.len()) {
        return;
    }
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    // UDP takes a checksum of zero for none (RFC 768), and for the others both zeroes are the same.
    let checksum = match !internet_sum(&frame[start..], 0) {
        0 => 0xffff,
        checksum => checksum,
    };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}
