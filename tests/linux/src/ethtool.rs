//! How many pairs of queues a network card uses, and what each carried (Linux, include/uapi/linux/ethtool.h).

use std::ffi::{CStr, c_int, c_ulong};
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const SIOCETHTOOL: c_ulong = 0x8946;
const GSTRINGS: u32 = 0x1b;
const GSTATS: u32 = 0x1d;
const GCHANNELS: u32 = 0x3c;
const SCHANNELS: u32 = 0x3d;
/// The set of strings that names what [`GSTATS`] counts.
const STATISTICS: u32 = 1;
/// Bytes of such a name.
const NAME: usize = 32;
/// Counters that there is room for.
const MAX: usize = 256;

// SAFETY: as in libc, which a program with `std` is linked to.
unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut Request) -> c_int;
}

/// `struct ifreq`: a card's name, and where the command is.
#[repr(C)]
struct Request {
    name: [u8; 16],
    command: *mut u8,
    unused: [u64; 2],
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    most: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_gstrings`.
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; NAME]; MAX],
}

/// `struct ethtool_stats`.
#[repr(C)]
struct Statistics {
    command: u32,
    count: u32,
    values: [u64; MAX],
}

/// Commands of which the kernel reads and writes no more than the structure has.
///
/// # Safety
/// The structure begins with the number of the command, and holds all that Linux writes for it.
unsafe trait Command {}

// SAFETY: of a fixed size.
unsafe impl Command for Channels {}
// SAFETY: Linux writes as many names as the card has counters, which virtio_net has 17 of for a pair, for at most two pairs.
unsafe impl Command for Strings {}
// SAFETY: as for the names.
unsafe impl Command for Statistics {}

/// Packets that a pair of queues carried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Packets {
    pub(crate) sent: u64,
    pub(crate) came: u64,
}

/// A network card.
pub(crate) struct Card {
    name: [u8; 16],
    /// Any socket does.
    socket: UdpSocket,
}

impl Card {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Card { name: bytes, socket: UdpSocket::bind("0.0.0.0:0")? })
    }

    fn execute<C: Command>(&self, command: &mut C) -> Result<()> {
        let mut request =
            Request { name: self.name, command: (&raw mut *command).cast(), unused: Default::default() };
        // SAFETY: the request and the command live, and the command's type promises that it is as Linux wants it.
        match unsafe { ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
            0.. => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }

    /// Has the card use so many pairs.
    pub(crate) fn set_pairs(&self, pairs: u32) -> Result<()> {
        let mut channels = Channels { command: GCHANNELS, ..Default::default() };
        self.execute(&mut channels)?;
        self.execute(&mut Channels { command: SCHANNELS, combined: pairs, ..channels })
    }

    /// What the first pairs have carried.
    pub(crate) fn packets(&self, pairs: u32) -> Result<Vec<Packets>> {
        let mut strings =
            Box::new(Strings { command: GSTRINGS, set: STATISTICS, count: 0, names: [[0; NAME]; MAX] });
        self.execute(&mut *strings)?;
        let mut statistics = Box::new(Statistics { command: GSTATS, count: 0, values: [0; MAX] });
        self.execute(&mut *statistics)?;
        let count = |name: String| -> Result<u64> {
            let is_named = |bytes: &[u8; NAME]| {
                CStr::from_bytes_until_nul(bytes).is_ok_and(|text| text.to_bytes() == name.as_bytes())
            };
            let at = strings.names.iter().position(is_named);
            let at = at.ok_or_else(|| Error::other(format!("the card does not count {name}")))?;
            Ok(statistics.values[at])
        };
        let of_pair = |pair| {
            Ok(Packets {
                sent: count(format!("tx_queue_{pair}_packets"))?,
                came: count(format!("rx_queue_{pair}_packets"))?,
            })
        };
        (0..pairs).map(of_pair).collect()
    }
}
