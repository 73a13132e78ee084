//! The connections of a guest with other VMs: which there are, so that each can be ended.

use super::packet::{Header, op};
use alloc::collections::{BTreeMap, VecDeque};

/// Most connections of a guest with other VMs.
pub(super) const MAX_CONNECTIONS: usize = 512;

/// Context id and port of the peer, and the guest's port.
type Key = (u32, u32, u32);

/// Connections, from the request on, with the kind of their sockets.
#[derive(Debug, Default)]
pub(super) struct Connections(BTreeMap<Key, u16>);

impl Connections {
    /// Notes what this packet, of either end, does. Whether it belongs to a connection; a request, whether there is room for one.
    pub(super) fn admit(&mut self, port: u32, peer: (u32, u32), header: &Header) -> bool {
        let key = (peer.0, peer.1, port);
        match header.op {
            op::REQUEST => {
                let has_room = self.0.len() < MAX_CONNECTIONS || self.0.contains_key(&key);
                if has_room {
                    self.0.insert(key, header.kind);
                }
                has_room
            }
            // It may answer what belongs to none.
            op::RST => {
                self.0.remove(&key);
                true
            }
            _ => self.0.contains_key(&key),
        }
    }

    /// Forgets a connection.
    pub(super) fn remove(&mut self, port: u32, peer: (u32, u32)) {
        self.0.remove(&(peer.0, peer.1, port));
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Ends those with the VM `cid`: `resets` gets a packet for each, as if that VM had sent it.
    pub(super) fn end_with(&mut self, cid: u32, own_cid: u32, resets: &mut VecDeque<Header>) {
        self.0.retain(|key, kind| {
            let is_other = key.0 != cid;
            if !is_other {
                resets.push_back(reset(*key, *kind, own_cid));
            }
            is_other
        });
    }

    /// Ends all of them, as [`Self::end_with`].
    pub(super) fn end_all(&mut self, own_cid: u32, resets: &mut VecDeque<Header>) {
        let all = core::mem::take(&mut self.0);
        resets.extend(all.into_iter().map(|(key, kind)| reset(key, kind, own_cid)));
    }
}

fn reset((cid, peer_port, port): Key, kind: u16, own_cid: u32) -> Header {
    Header {
        src_cid: cid.into(),
        dst_cid: own_cid.into(),
        src_port: peer_port,
        dst_port: port,
        kind,
        op: op::RST,
        ..Header::default()
    }
}
