//! Long frames: of a TCP segment that is longer than a link carries, with a note of how it is to be cut.
//!
//! It is one frame of Ethernet, with one VLAN tag perhaps, IP and TCP. Its headers say what they would if it could be sent so, and its TCP
//! checksum is missing. Whoever gives it to somebody that does not take such frames cuts it.

use super::{FRAME, MIN_FRAME, SLOT_BYTES};

/// Longest frame: what an IP header can say, behind Ethernet's and one VLAN tag.
pub const MAX_LONG: usize = 65_535 + 18;
/// Most bytes of headers.
pub const MAX_HEADERS: usize = 256;
/// Least payload of a piece but the last: TCP's least segment in Linux. A frame makes no more pieces than that allows.
pub const MIN_PAYLOAD: u16 = 48;
/// Bytes of a TCP header without options.
pub const MIN_TCP: usize = 20;

/// Which IP it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpVersion {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// The versions of IP of which somebody takes long frames.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IpVersions {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl IpVersions {
    /// None.
    pub const NONE: Self = IpVersions { v4: false, v6: false };
    /// All.
    pub const ALL: Self = IpVersions { v4: true, v6: true };

    /// As a word.
    pub const fn encode(self) -> u32 {
        self.v4 as u32 | (self.v6 as u32) << 1
    }

    /// From a word; its other bits mean nothing.
    pub const fn decode(word: u32) -> Self {
        IpVersions { v4: word & 1 << 0 != 0, v6: word & 1 << 1 != 0 }
    }

    /// Whether this one is among them.
    pub const fn has(self, version: IpVersion) -> bool {
        match version {
            IpVersion::V4 => self.v4,
            IpVersion::V6 => self.v6,
        }
    }

    /// Whether all of `others` are among them.
    pub const fn has_all(self, others: Self) -> bool {
        self.encode() & others.encode() == others.encode()
    }
}

/// What is before a long frame, in place of a [`super::Header`]. Nothing is said in it that the frame's own headers have to bear out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Long {
    version: IpVersion,
    payload: u16,
    tcp: u16,
    /// Bytes from the TCP header on.
    tcp_bytes: u16,
}

impl Long {
    /// A frame of so many bytes, with a TCP header at offset `tcp` and pieces of `payload` bytes behind their headers. `None` if there
    /// is no such frame.
    pub fn new(version: IpVersion, payload: u16, tcp: u16, bytes: usize) -> Option<Self> {
        let tcp_bytes = bytes.checked_sub(tcp.into())?.try_into().ok()?;
        Long { version, payload, tcp, tcp_bytes }.checked()
    }

    fn checked(self) -> Option<Self> {
        let has_headers = (MIN_FRAME..=MAX_HEADERS - MIN_TCP).contains(&self.tcp.into())
            && usize::from(self.tcp_bytes) >= MIN_TCP;
        (has_headers && self.payload >= MIN_PAYLOAD && self.bytes() <= MAX_LONG).then_some(self)
    }

    /// As a word. In place of a frame's length it has the version, which is the length of none.
    pub const fn encode(self) -> u64 {
        self.version as u64
            | (self.payload as u64) << 16
            | (self.tcp as u64) << 32
            | (self.tcp_bytes as u64) << 48
    }

    /// From a word, if that is the header of a long frame.
    pub fn decode(word: u64) -> Option<Self> {
        let version = match word as u16 {
            4 => IpVersion::V4,
            6 => IpVersion::V6,
            _ => return None,
        };
        let [_, payload, tcp, tcp_bytes] = [0, 16, 32, 48].map(|shift| (word >> shift) as u16);
        Long { version, payload, tcp, tcp_bytes }.checked()
    }

    /// Which IP it is.
    pub const fn version(self) -> IpVersion {
        self.version
    }

    /// Bytes of payload in each piece but the last.
    pub const fn payload(self) -> u16 {
        self.payload
    }

    /// Offset of the TCP header, from which on the checksum is missing.
    pub const fn tcp(self) -> u16 {
        self.tcp
    }

    /// Bytes of the frame.
    pub const fn bytes(self) -> usize {
        self.tcp as usize + self.tcp_bytes as usize
    }

    /// Slots that it takes: the second one and those behind it are the frame's bytes alone.
    pub const fn slots(self) -> u32 {
        (FRAME + self.bytes()).div_ceil(SLOT_BYTES) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::channel::{Header, SLOTS};

    #[test]
    fn words_survive_encoding() {
        for version in [IpVersion::V4, IpVersion::V6] {
            let long = Long::new(version, 1448, 34, 65_000).unwrap();
            assert_eq!(Long::decode(long.encode()), Some(long));
            assert_eq!((long.bytes(), long.slots()), (65_000, 32));
            assert_eq!(Header::decode(long.encode()), None, "it is no frame of the usual length");
        }
        for versions in [IpVersions::NONE, IpVersions::ALL, IpVersions { v4: true, v6: false }] {
            assert_eq!(IpVersions::decode(versions.encode() | 1 << 7), versions);
            assert!(IpVersions::ALL.has_all(versions) && versions.has_all(IpVersions::NONE));
        }
    }

    #[test]
    fn a_frame_takes_the_slots_that_its_bytes_and_one_header_need() {
        let slots = |bytes| Long::new(IpVersion::V4, 1000, 34, bytes).unwrap().slots();
        assert_eq!((slots(SLOT_BYTES - FRAME), slots(SLOT_BYTES - FRAME + 1)), (1, 2));
        let longest = Long::new(IpVersion::V6, 1000, 58, MAX_LONG).unwrap();
        assert!((longest.slots() as usize) < SLOTS / 3);
    }

    #[test]
    fn what_is_no_long_frame_is_refused() {
        let new = |payload, tcp, bytes| Long::new(IpVersion::V4, payload, tcp, bytes);
        assert!(new(48, 34, 54).is_some() && new(1448, 34, MAX_LONG).is_some());
        for refused in [
            new(47, 34, 3000),
            new(1448, 13, 3000),
            new(1448, 237, 3000),
            new(1448, 34, 53),
            new(1448, 34, 33),
            new(1448, 34, MAX_LONG + 1),
            new(1448, 14, MAX_LONG),
            new(1448, 34, usize::MAX),
        ] {
            assert_eq!(refused, None);
        }
        let good = new(1448, 34, 3000).unwrap().encode();
        for version in (0..14).filter(|version| ![4, 6].contains(version)) {
            assert_eq!(Long::decode(good & !0xffff | version), None);
        }
        assert_eq!(Long::decode(good | 0xffff << 48), None);
        assert_eq!(Long::decode(good & !(0xffff << 16)), None);
    }
}
