//! Long frames: TCP segments that are cut behind the device, or not at all, and such that come uncut (5.1.6.2.1, 5.1.6.4).

use super::{HEADER, NEEDS_CSUM, Net, feature, gso};
use crate::guest_mem::GuestMemory;
use crate::net::{IpVersion, IpVersions, Long};
use crate::segment::{Cursor, total_bytes};
use crate::tso::{TCP_CHECKSUM, header_bytes};
use crate::virtio::DriverError;

impl Net {
    /// Of which versions the driver takes long frames: it has to take such whose checksums are missing, too (5.1.3.1).
    pub(super) fn takes_long(&self) -> IpVersions {
        if !self.has(feature::GUEST_CSUM) {
            return IpVersions::NONE;
        }
        IpVersions { v4: self.has(feature::GUEST_TSO4), v6: self.has(feature::GUEST_TSO6) }
    }

    /// Sends the long frame in the chain, of a pair, about which the driver says this in its header. One that cannot be cut is lost.
    pub(super) fn send_long<M: GuestMemory>(
        &mut self,
        memory: &M,
        pair: usize,
        kind: u8,
        payload: u16,
        tcp: u16,
    ) -> Result<(), DriverError> {
        let version = match kind {
            gso::TCPV4 if self.has(feature::HOST_TSO4) => IpVersion::V4,
            gso::TCPV6 if self.has(feature::HOST_TSO6) => IpVersion::V6,
            _ => return Ok(()),
        };
        let bytes = usize::try_from(total_bytes(self.chain.readable())).unwrap_or(usize::MAX);
        let Some(long) = Long::new(version, payload, tcp, bytes) else {
            return Ok(());
        };
        let frame = &mut self.outgoing[..long.bytes()];
        Cursor::new(self.chain.readable()).read(memory, frame)?;
        self.steering.sent(frame, pair);
        if header_bytes(frame, long).is_some() {
            self.link.send_long(frame, long);
            self.link.flush();
        }
        Ok(())
    }

    /// Takes a long frame from the link, as [`Self::fetch`] does another.
    pub(super) fn fetch_long(&mut self) -> bool {
        let taken = self.takes_long();
        let (header, frame) = self.incoming.split_at_mut(HEADER);
        let Some(long) = self.link.receive_long(frame) else {
            return false;
        };
        let frame = &frame[..long.bytes()];
        // What comes from a stranger may be anything.
        let Some(header_bytes) = header_bytes(frame, long).filter(|_| taken.has(long.version())) else {
            return true;
        };
        let kind = match long.version() {
            IpVersion::V4 => gso::TCPV4,
            IpVersion::V6 => gso::TCPV6,
        };
        header[..2].copy_from_slice(&[NEEDS_CSUM, kind]);
        let words = [header_bytes as u16, long.payload(), long.tcp(), TCP_CHECKSUM];
        for (bytes, word) in header[2..10].chunks_exact_mut(2).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.waiting = frame.len();
        self.pair = self.steering.pair(frame);
        true
    }
}
