//! A VMM's network card on the channel to its switch.

use crate::{End, Signal};
use vdev::net::{Checksum, IpVersions, Link, Long};
use vdev::tso::Cut;
use vmm_protocol::net::{Header, MAX_FRAME};

const _: () =
    assert!(MAX_FRAME == vdev::net::MAX_FRAME && vmm_protocol::net::MIN_FRAME == vdev::net::MIN_FRAME);

impl<S: Signal> Link for End<S> {
    fn send(&mut self, frame: &[u8], missing: Option<Checksum>) {
        let missing = missing.map(|Checksum { start, offset }| (start, offset));
        // What is lost is lost, as on a wire.
        let _ = self.put(Header { len: frame.len() as u16, missing }, frame);
    }

    fn send_long(&mut self, frame: &[u8], long: Long) {
        if self.peer_takes(long.version()) {
            let _ = self.put_long(long, frame);
        } else if let Some(cut) = Cut::new(frame, long) {
            let read = |at: usize, into: &mut [u8]| into.copy_from_slice(&frame[at..at + into.len()]);
            cut.pieces(&mut [0; MAX_FRAME], read, |piece, missing| self.send(piece, Some(missing)));
        }
    }

    fn flush(&mut self) {
        // Who only sends follows a switch that began anew here.
        self.is_up();
        End::flush(self);
    }

    fn has_news(&mut self) -> bool {
        self.notice()
    }

    fn restart(&mut self) {
        self.begin();
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<(usize, Option<Checksum>)> {
        let frame = match self.peek() {
            Some(frame) => frame,
            None if self.peek_long().is_some() || self.prepare_to_wait() => return None,
            // One came meanwhile.
            None => self.peek()?,
        };
        let header = frame.header;
        frame.read(into);
        self.release();
        let missing = header.missing.map(|(start, offset)| Checksum { start, offset });
        Some((header.len.into(), missing))
    }

    fn take_long(&mut self, versions: IpVersions) {
        End::take_long(self, versions);
    }

    fn receive_long(&mut self, into: &mut [u8]) -> Option<Long> {
        let frame = self.peek_long()?;
        frame.read(0, into);
        self.release_long();
        Some(frame.long)
    }
}
