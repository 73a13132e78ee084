//! TCP segmentation: a frame that is longer than a link carries, cut into some that are not, as a card does it for its driver.
//!
//! Ethernet, one VLAN tag perhaps, IPv4 or IPv6, TCP. Each piece has the headers of the whole, with its own lengths, sequence
//! number and flags; its TCP checksum stays to be done ([`Checksum`]), as the driver left that of the whole.

use crate::net::{Checksum, IpVersion, Long, MAX_FRAME};
use hypercall_abi::guest::channel::MIN_TCP;
use hypercall_abi::guest::channel::checksum::internet_sum;
pub use hypercall_abi::guest::channel::{MAX_HEADERS, MAX_LONG};

const ETHERNET: usize = 14;
const VLAN: [u8; 2] = [0x81, 0x00];
const IPV6: usize = 40;
const TCP: u8 = 6;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: u16 = 16;
/// TCP flags: those of the last piece alone (FIN, PSH), and the one of the first (CWR).
const LAST: u8 = 0x01 | 0x08;
const FIRST: u8 = 0x80;

/// Offsets of the IP header, of the TCP header, and of the payload of the long frame that begins with `start`: all of it, or
/// [`MAX_HEADERS`] bytes. `None` if its headers do not bear out what is said about it, or pieces of it would be longer than a link carries.
fn headers(start: &[u8], long: Long) -> Option<[usize; 3]> {
    let ethernet = if start.get(12..14)? == VLAN { ETHERNET + 4 } else { ETHERNET };
    let (tcp, payload) = (usize::from(long.tcp()), usize::from(long.payload()));
    let ip = start.get(ethernet..tcp)?;
    let has_tcp = match long.version() {
        IpVersion::V4 => {
            ip.len() >= 20 && ip[0] >> 4 == 4 && usize::from(ip[0] & 0xf) * 4 == ip.len() && ip[9] == TCP
        }
        // Extension headers may lie between.
        IpVersion::V6 => ip.len() >= IPV6 && ip[0] >> 4 == 6 && (ip.len() > IPV6 || ip[6] == TCP),
    };
    let tcp_len = usize::from(*start.get(tcp + 12)? >> 4) * 4;
    let end = tcp + tcp_len;
    let is_good = has_tcp && tcp_len >= MIN_TCP && end + payload <= MAX_FRAME && end < long.bytes();
    (is_good && end <= MAX_HEADERS.min(start.len())).then_some([ethernet, tcp, end])
}

/// Bytes of headers of the long frame that begins with `start`: all of it, or [`MAX_HEADERS`] bytes. `None` if it cannot be cut.
pub fn header_bytes(start: &[u8], long: Long) -> Option<usize> {
    headers(start, long).map(|[.., end]| end)
}

/// How a long frame is cut.
#[derive(Clone, Debug)]
pub struct Cut {
    long: Long,
    headers: [u8; MAX_HEADERS],
    len: usize,
    /// Offsets of the IP and the TCP header.
    ip: usize,
    tcp: usize,
}

impl Cut {
    /// A cut of the frame that begins with `start`: all of it, or [`MAX_HEADERS`] bytes. `None` if this is no frame that can be cut
    /// so.
    pub fn new(start: &[u8], long: Long) -> Option<Self> {
        let [ip, tcp, len] = headers(start, long)?;
        let mut headers = [0; MAX_HEADERS];
        headers.get_mut(..len)?.copy_from_slice(start.get(..len)?);
        Some(Cut { long, headers, len, ip, tcp })
    }

    /// Makes one piece after the other at the beginning of `scratch`. `read` copies bytes of the frame, from this offset on; `each`
    /// gets the piece, and what is missing in it.
    pub fn pieces(
        &self,
        scratch: &mut [u8; MAX_FRAME],
        mut read: impl FnMut(usize, &mut [u8]),
        mut each: impl FnMut(&mut [u8], Checksum),
    ) {
        let missing = Checksum { start: self.long.tcp(), offset: TCP_CHECKSUM };
        let (total, most) = (self.long.bytes().saturating_sub(self.len), self.long.payload().into());
        for done in (0..total).step_by(most) {
            let len = most.min(total - done);
            let piece = &mut scratch[..self.len + len];
            read(self.len + done, &mut piece[self.len..]);
            self.write_headers(piece, done, len, total);
            each(piece, missing);
        }
    }

    /// Writes the headers of the piece with `len` bytes of payload from byte `done` of all `total` to the beginning of `piece`.
    fn write_headers(&self, piece: &mut [u8], done: usize, len: usize, total: usize) {
        let Some(piece) = piece.get_mut(..self.len) else { return };
        piece.copy_from_slice(&self.headers[..self.len]);
        let (before, tcp) = piece.split_at_mut(self.tcp);
        let ip = &mut before[self.ip..];
        // A piece is a frame, of at most so many bytes.
        let tcp_bytes = (tcp.len() + len) as u16;
        let addresses = match self.long.version() {
            IpVersion::V4 => {
                let index = (done / usize::from(self.long.payload())) as u16;
                let bytes = ip.len() as u16 + tcp_bytes;
                ip[2..4].copy_from_slice(&bytes.to_be_bytes());
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index);
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                ip[10..12].fill(0);
                let checksum = !internet_sum(ip, 0);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                12..20
            }
            IpVersion::V6 => {
                let bytes = (ip.len() - IPV6) as u16 + tcp_bytes;
                ip[4..6].copy_from_slice(&bytes.to_be_bytes());
                8..40
            }
        };
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(done as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if done > 0 {
            tcp[13] &= !FIRST;
        }
        if done + len < total {
            tcp[13] &= !LAST;
        }
        let pseudo = internet_sum(&ip[addresses], u64::from(tcp_bytes) + u64::from(TCP));
        let at = usize::from(TCP_CHECKSUM);
        tcp[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    }
}

#[cfg(any(test, feature = "fake"))]
pub mod fake {
    //! Long frames for tests.

    use super::{TCP, VLAN};
    use crate::net::{IpVersion, Long};
    use alloc::vec;
    use alloc::vec::Vec;

    /// TCP flags: PSH and ACK.
    pub const PUSH: u8 = 0x18;

    /// A frame of TCP, with headers as a driver writes them, so many words of options, these flags, and the rest zero; and the offset of
    /// the TCP header.
    pub fn frame(
        version: IpVersion,
        vlan: bool,
        options: usize,
        flags: u8,
        payload: &[u8],
    ) -> (Vec<u8>, u16) {
        let mut frame = vec![2; 12];
        if vlan {
            frame.extend(VLAN);
            frame.extend([0, 7]);
        }
        match version {
            IpVersion::V4 => {
                frame.extend([0x08, 0, 0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, TCP, 0, 0]);
                frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            }
            IpVersion::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, TCP, 64]);
                frame.extend(1..33);
            }
        }
        let tcp = frame.len() as u16;
        frame.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4]);
        frame.extend([((20 + 4 * options) << 2) as u8, flags, 1, 0, 0, 0, 0, 0]);
        frame.extend(core::iter::repeat_n(1, 4 * options));
        frame.extend(payload);
        (frame, tcp)
    }

    /// A long frame with so many bytes of payload, to be cut into pieces of 1000, and what is said about it. Each number gives another.
    pub fn long(version: IpVersion, number: u32, payload: usize) -> (Vec<u8>, Long) {
        let payload: Vec<u8> =
            (0..payload).map(|at| (at as u32 * 31 + at as u32 / 256 + number * 7) as u8).collect();
        let (frame, tcp) = frame(version, false, 0, PUSH, &payload);
        let long = Long::new(version, 1000, tcp, frame.len()).expect("it is one that can be");
        (frame, long)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::frame;
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// The pieces, with their checksums.
    fn cut(frame: &[u8], version: IpVersion, payload: u16, tcp: u16) -> Option<Vec<Vec<u8>>> {
        let long = Long::new(version, payload, tcp, frame.len())?;
        let cut = Cut::new(&frame[..frame.len().min(MAX_HEADERS)], long)?;
        let mut pieces = Vec::new();
        let read = |at: usize, into: &mut [u8]| into.copy_from_slice(&frame[at..at + into.len()]);
        cut.pieces(&mut [0; MAX_FRAME], read, |piece, missing| {
            missing.fill_in(piece);
            pieces.push(piece.to_vec());
        });
        Some(pieces)
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_whole_with_right_headers(
            is_v4: bool, vlan: bool, options in 0usize..11, flags: u8, size in 48u16..1400,
            payload in prop::collection::vec(any::<u8>(), 1..9000),
        ) {
            let version = if is_v4 { IpVersion::V4 } else { IpVersion::V6 };
            let (whole, tcp) = frame(version, vlan, options, flags, &payload);
            let pieces = cut(&whole, version, size, tcp).unwrap();
            let (ip, tcp) = (if vlan { 18 } else { 14 }, usize::from(tcp));
            let headers = tcp + 20 + 4 * options;
            let mut joined: Vec<u8> = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= MAX_FRAME);
                prop_assert_eq!(&piece[..ip], &whole[..ip]);
                let sequence = u32::from_be_bytes(piece[tcp + 4..tcp + 8].try_into().unwrap());
                prop_assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(joined.len() as u32));
                let tcp_bytes = (piece.len() - tcp) as u64;
                let (addresses, length) = match version {
                    IpVersion::V4 => {
                        prop_assert_eq!(internet_sum(&piece[ip..tcp], 0), 0xffff);
                        let id = u16::from_be_bytes([piece[ip + 4], piece[ip + 5]]);
                        prop_assert_eq!(id, 0xfffeu16.wrapping_add(index as u16));
                        (ip + 12..ip + 20, u16::from_be_bytes([piece[ip + 2], piece[ip + 3]]) - 20)
                    }
                    IpVersion::V6 => (ip + 8..ip + 40, u16::from_be_bytes([piece[ip + 4], piece[ip + 5]])),
                };
                prop_assert_eq!(u64::from(length), tcp_bytes);
                let pseudo = internet_sum(&piece[addresses], tcp_bytes + 6);
                prop_assert_eq!(internet_sum(&piece[tcp..], pseudo.into()), 0xffff);
                let mut expected = flags;
                if index > 0 {
                    expected &= !FIRST;
                }
                if index + 1 < pieces.len() {
                    expected &= !LAST;
                }
                prop_assert_eq!(piece[tcp + 13], expected);
                joined.extend(&piece[headers..]);
            }
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn any_frame_is_cut_or_refused(
            frame in prop::collection::vec(any::<u8>(), 0..400), is_v4: bool, payload: u16, tcp in 0u16..300,
        ) {
            let version = if is_v4 { IpVersion::V4 } else { IpVersion::V6 };
            for piece in cut(&frame, version, payload, tcp).unwrap_or_default() {
                prop_assert!(piece.len() <= MAX_FRAME);
            }
        }
    }

    #[test]
    fn pieces_that_a_link_does_not_carry_or_that_are_too_many_are_refused() {
        let (whole, tcp) = frame(IpVersion::V4, false, 0, 0, &[0; 3000]);
        let refused = |payload| cut(&whole, IpVersion::V4, payload, tcp).is_none();
        assert!(refused(47) && !refused(48));
        assert!(!refused(1464) && refused(1465));
        assert!(cut(&whole, IpVersion::V6, 1000, tcp).is_none(), "it is IPv4");
        assert!(cut(&whole[..54], IpVersion::V4, 1000, tcp).is_none(), "nothing is behind the headers");
    }
}
