//! Packets of sockets between VMs: the channel of [`crate::net`] between the socket device of a VM and the switch, where nothing
//! may be lost.
//!
//! A frame is a packet, with its header as virtio lays it out (virtio 1.2, 5.10.6), or a [`Notice`].
//!
//! 1. Who finds the ring full waits. Each end signals the other when it takes the last packet of half a ring ([`HALF`]); so one
//!    that found the ring full is signalled, whatever the threshold says.
//! 2. A device says [`Notice::Open`] in each session in which its guest takes packets. When the guest takes none any more, the device
//!    begins anew; so does the root task for a VMM that ended, by a session of 0.
//! 3. The switch says [`Notice::Gone`] where packets of a VM may be missing: to everybody when that one's session ended, and to who
//!    sends to one that is not there. It does so in the order of the packets: what it says is about those before.
//! 4. When a session ends, every connection over the channel has ended.

use crate::net::SLOTS;

/// Half a ring, in packets.
pub const HALF: usize = SLOTS / 2;
/// Bytes of a notice. No packet is so short.
pub const NOTICE_BYTES: usize = 16;
/// Bytes of a packet's header.
pub const HEADER_BYTES: usize = 44;

/// What is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The guest takes packets (device to switch).
    Open,
    /// Every connection with this context id has ended (switch to device).
    Gone(u32),
}

impl Notice {
    /// As a frame.
    pub fn encode(self) -> [u8; NOTICE_BYTES] {
        let [kind, cid]: [u64; 2] = match self {
            Notice::Open => [1, 0],
            Notice::Gone(cid) => [2, cid.into()],
        };
        let mut bytes = [0; NOTICE_BYTES];
        bytes[..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&cid.to_le_bytes());
        bytes
    }

    /// From the two words of a frame, if they are a notice.
    pub const fn decode(words: [u64; 2]) -> Option<Self> {
        match words {
            [1, _] => Some(Notice::Open),
            [2, cid] if cid <= u32::MAX as u64 => Some(Notice::Gone(cid as u32)),
            _ => None,
        }
    }
}
