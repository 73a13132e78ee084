//! TCP segmentation: a frame that is longer than a link carries, cut into some that are not, as a card does it for its driver.
//!
//! Ethernet, one VLAN tag perhaps, IPv4 or IPv6, TCP. Each piece has the headers of the whole, with its own lengths, sequence
//! number and flags; its TCP checksum stays to be done ([`Checksum`]), as the driver left that of the whole.

use crate::net::{Checksum, MAX_FRAME};
use hypercall_abi::guest::channel::checksum::internet_sum;

/// Most bytes of headers.
pub const MAX_HEADERS: usize = 256;
/// Longest frame that is cut: what an IP header can say, behind Ethernet's.
pub const MAX_LONG: usize = 65_535 + 18;
/// Least payload of a piece but the last: TCP's least segment in Linux. A frame makes no more pieces than that allows.
const MIN_PAYLOAD: usize = 48;

const ETHERNET: usize = 14;
const VLAN: [u8; 2] = [0x81, 0x00];
const IPV6: usize = 40;
const TCP: u8 = 6;
/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Bytes of a TCP header without options.
const TCP_MIN: usize = 20;
/// TCP flags: those of the last piece alone (FIN, PSH), and the one of the first (CWR).
const LAST: u8 = 0x01 | 0x08;
const FIRST: u8 = 0x80;

/// Which IP it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a driver says about a long frame. It may say anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which IP it is.
    pub version: Version,
    /// Bytes of payload in each piece but the last.
    pub payload: u16,
    /// Offset of the TCP header.
    pub tcp: u16,
}

/// How a long frame is cut.
#[derive(Clone, Debug)]
pub struct Cut {
    version: Version,
    headers: [u8; MAX_HEADERS],
    len: usize,
    /// Offsets of the IP and the TCP header.
    ip: usize,
    tcp: usize,
    payload: usize,
}

impl Cut {
    /// A cut of the frame that begins with `start`: all of it, or [`MAX_HEADERS`] bytes. `None` if this is no frame that can be cut
    /// so.
    pub fn new(start: &[u8], request: Request) -> Option<Self> {
        let ethernet = if start.get(12..14)? == VLAN { ETHERNET + 4 } else { ETHERNET };
        let (tcp, payload) = (usize::from(request.tcp), usize::from(request.payload));
        let ip = start.get(ethernet..tcp)?;
        let has_tcp = match request.version {
            Version::V4 => {
                ip.len() >= 20 && ip[0] >> 4 == 4 && usize::from(ip[0] & 0xf) * 4 == ip.len() && ip[9] == TCP
            }
            // Extension headers may lie between.
            Version::V6 => ip.len() >= IPV6 && ip[0] >> 4 == 6 && (ip.len() > IPV6 || ip[6] == TCP),
        };
        let tcp_len = usize::from(*start.get(tcp + 12)? >> 4) * 4;
        let len = tcp + tcp_len;
        if !has_tcp || tcp_len < TCP_MIN || payload < MIN_PAYLOAD || len + payload > MAX_FRAME {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers.get_mut(..len)?.copy_from_slice(start.get(..len)?);
        Some(Cut { version: request.version, headers, len, ip: ethernet, tcp, payload })
    }

    /// Bytes of headers, of the frame and of each piece.
    pub fn headers(&self) -> usize {
        self.len
    }

    /// Bytes of payload in each piece but the last.
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// What is missing in each piece.
    pub fn missing(&self) -> Checksum {
        Checksum { start: self.tcp as u16, offset: TCP_CHECKSUM as u16 }
    }

    /// Writes the headers of the piece with `len` bytes of payload from byte `done` of all `total` to the beginning of `piece`.
    pub fn write_headers(&self, piece: &mut [u8], done: usize, len: usize, total: usize) {
        let Some(piece) = piece.get_mut(..self.len) else { return };
        piece.copy_from_slice(&self.headers[..self.len]);
        let (before, tcp) = piece.split_at_mut(self.tcp);
        let ip = &mut before[self.ip..];
        // A piece is a frame, of at most so many bytes.
        let tcp_bytes = (tcp.len() + len) as u16;
        let addresses = match self.version {
            Version::V4 => {
                let index = (done / self.payload) as u16;
                let bytes = ip.len() as u16 + tcp_bytes;
                ip[2..4].copy_from_slice(&bytes.to_be_bytes());
                let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index);
                ip[4..6].copy_from_slice(&id.to_be_bytes());
                ip[10..12].fill(0);
                let checksum = !internet_sum(ip, 0);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                12..20
            }
            Version::V6 => {
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
        tcp[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// The pieces, with their checksums.
    fn cut(frame: &[u8], request: Request) -> Option<Vec<Vec<u8>>> {
        let cut = Cut::new(&frame[..frame.len().min(MAX_HEADERS)], request)?;
        let payload = frame.get(cut.headers()..)?;
        let mut done = 0;
        let pieces = payload.chunks(cut.payload()).map(|part| {
            let mut piece = vec![0; cut.headers()];
            cut.write_headers(&mut piece, done, part.len(), payload.len());
            piece.extend(part);
            done += part.len();
            cut.missing().fill_in(&mut piece);
            piece
        });
        Some(pieces.collect())
    }

    /// A frame of TCP whose headers have what a driver writes.
    fn frame(version: Version, vlan: bool, options: usize, flags: u8, payload: &[u8]) -> (Vec<u8>, u16) {
        let mut frame = vec![2; 12];
        if vlan {
            frame.extend([0x81, 0, 0, 7]);
        }
        match version {
            Version::V4 => {
                frame.extend([0x08, 0, 0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, TCP, 0, 0]);
                frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            }
            Version::V6 => {
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

    proptest! {
        #[test]
        fn the_pieces_are_the_whole_with_right_headers(
            is_v4: bool, vlan: bool, options in 0usize..11, flags: u8, size in 48u16..1400,
            payload in prop::collection::vec(any::<u8>(), 1..9000),
        ) {
            let version = if is_v4 { Version::V4 } else { Version::V6 };
            let (whole, tcp) = frame(version, vlan, options, flags, &payload);
            let pieces = cut(&whole, Request { version, payload: size, tcp }).unwrap();
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
                    Version::V4 => {
                        prop_assert_eq!(internet_sum(&piece[ip..tcp], 0), 0xffff);
                        let id = u16::from_be_bytes([piece[ip + 4], piece[ip + 5]]);
                        prop_assert_eq!(id, 0xfffeu16.wrapping_add(index as u16));
                        (ip + 12..ip + 20, u16::from_be_bytes([piece[ip + 2], piece[ip + 3]]) - 20)
                    }
                    Version::V6 => (ip + 8..ip + 40, u16::from_be_bytes([piece[ip + 4], piece[ip + 5]])),
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
            let version = if is_v4 { Version::V4 } else { Version::V6 };
            for piece in cut(&frame, Request { version, payload, tcp }).unwrap_or_default() {
                prop_assert!(piece.len() <= MAX_FRAME);
            }
        }
    }

    #[test]
    fn pieces_that_a_link_does_not_carry_or_that_are_too_many_are_refused() {
        let (whole, tcp) = frame(Version::V4, false, 0, 0, &[0; 3000]);
        let cut = |payload| Cut::new(&whole[..MAX_HEADERS], Request { version: Version::V4, payload, tcp });
        assert!(cut(47).is_none());
        assert!(cut(48).is_some() && cut(1464).is_some());
        assert!(cut(1465).is_none());
        let request = Request { version: Version::V6, payload: 1000, tcp };
        assert!(Cut::new(&whole[..MAX_HEADERS], request).is_none(), "it is IPv4");
    }
}
