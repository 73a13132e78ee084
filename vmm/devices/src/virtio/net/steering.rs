//! Which of several receive queues a frame goes to (5.1.6.5.6): the one beside the queue on which the driver sent for that flow last.

use alloc::boxed::Box;

/// Flows that are told apart.
const FLOWS: usize = 256;
const VLAN: [u8; 2] = [0x81, 0x00];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// More fragments, and the fragment's offset, in the word of an IPv4 header that has them.
const FRAGMENT: u16 = 0x3fff;

/// The queue pairs in use, and what is known of flows.
#[derive(Debug)]
pub(super) struct Steering {
    pairs: u16,
    /// For each flow the pair on which the driver sent, from 1 on; 0 if it did not.
    sent: Box<[u8; FLOWS]>,
}

impl Steering {
    /// One pair, which a driver has by itself.
    pub(super) fn new() -> Self {
        Steering { pairs: 1, sent: Box::new([0; FLOWS]) }
    }

    /// Pairs in use.
    pub(super) fn pairs(&self) -> u16 {
        self.pairs
    }

    /// The driver uses so many from now on. What was known of flows is forgotten.
    pub(super) fn set_pairs(&mut self, pairs: u16) {
        self.pairs = pairs;
        self.sent.fill(0);
    }

    /// The driver sent this frame, or the beginning of one, on a pair.
    #[inline]
    pub(super) fn sent(&mut self, frame: &[u8], pair: usize) {
        if self.pairs > 1 && pair < self.pairs.into() {
            self.sent[flow(frame)] = pair as u8 + 1;
        }
    }

    /// The pair for a frame that came.
    #[inline]
    pub(super) fn pair(&self, frame: &[u8]) -> usize {
        if self.pairs == 1 {
            return 0;
        }
        let flow = flow(frame);
        match self.sent[flow] {
            // Nobody knows better: spread them.
            0 => flow % usize::from(self.pairs),
            pair => usize::from(pair) - 1,
        }
    }
}

/// The flow that a frame belongs to, the same both ways: IP's addresses, and the ports where they are in every packet of the flow. What is
/// no IP is one flow.
fn flow(frame: &[u8]) -> usize {
    // The sum of words is the same both ways, and depends on each bit.
    let sum = words(frame).map_or(0, |(words, more)| {
        let words = words.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        words.chain(more.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))).sum()
    });
    // Knuth, volume 3, 6.4.
    (sum.wrapping_mul(0x9e37_79b1) >> 24) as usize % FLOWS
}

/// Addresses and ports.
fn words(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let has_vlan = frame.get(12..14)? == VLAN;
    let (kind, packet) = frame.get(if has_vlan { 16 } else { 12 }..)?.split_first_chunk::<2>()?;
    let (addresses, protocol, ports) = match *kind {
        IPV4 => {
            let is_fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & FRAGMENT != 0;
            let header = usize::from(*packet.first()? & 0xf) * 4;
            (packet.get(12..20)?, packet[9], packet.get(header..header + 4).filter(|_| !is_fragment))
        }
        IPV6 => (packet.get(8..40)?, packet[6], packet.get(40..44)),
        _ => return None,
    };
    let has_ports = protocol == TCP || protocol == UDP;
    Some((addresses, ports.filter(|_| has_ports).unwrap_or(&[])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, UDP, 0, 0]);
        frame.extend([from.0, to.0].concat());
        frame.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
        frame
    }

    proptest! {
        #[test]
        fn an_answer_comes_where_the_driver_sent(
            flows in prop::collection::vec((any::<([u8; 4], u16)>(), any::<([u8; 4], u16)>(), 0..4usize), 1..20),
        ) {
            let mut steering = Steering::new();
            steering.set_pairs(4);
            for (from, to, pair) in flows {
                steering.sent(&udp(from, to), pair);
                prop_assert_eq!(steering.pair(&udp(to, from)), pair);
            }
        }

        #[test]
        fn no_frame_goes_to_a_pair_that_is_not_in_use(frame in prop::collection::vec(any::<u8>(), 0..100), pairs in 1..9u16) {
            let mut steering = Steering::new();
            steering.set_pairs(pairs);
            steering.sent(&frame, 7);
            prop_assert!(steering.pair(&frame) < pairs.into());
        }
    }

    #[test]
    fn flows_are_spread() {
        let mut steering = Steering::new();
        steering.set_pairs(2);
        let on_first = (0..100)
            .filter(|port| steering.pair(&udp(([10, 0, 0, 1], 1000 + port), ([10, 0, 0, 2], 80))) == 0);
        assert!((30..70).contains(&on_first.count()));
    }
}
