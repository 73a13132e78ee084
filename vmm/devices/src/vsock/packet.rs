//! Packets (virtio 1.2, 5.10.6): a header, and for [`op::RW`] bytes behind it.

/// Bytes of a header.
pub const HEADER: usize = 44;
/// Context id of the hypervisor: for a guest, what it runs on.
pub const HOST: u64 = 2;
/// The least context id that a VM can have: those below are the host's, and reserved.
pub const FIRST: u32 = 3;
/// The greatest context id that a VM can have: the one above stands for any.
pub const LAST: u32 = u32::MAX - 1;

/// Kinds of sockets.
pub mod kind {
    /// A stream of bytes, SOCK_STREAM.
    pub const STREAM: u16 = 1;
    /// Messages in order, SOCK_SEQPACKET.
    pub const SEQPACKET: u16 = 2;
}

/// Operations.
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts it.
    pub const RESPONSE: u16 = 2;
    /// Ends it at once; the answer to what belongs to none.
    pub const RST: u16 = 3;
    /// Says what its sender does no more: flags [`super::NO_RECEIVE`] and [`super::NO_SEND`].
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Says how much room its sender has.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks the other for that.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flag of a shutdown: its sender takes no more data.
pub const NO_RECEIVE: u32 = 1 << 0;
/// Flag of a shutdown: its sender sends no more data.
pub const NO_SEND: u32 = 1 << 1;

/// A packet's header.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data.
    pub len: u32,
    /// One of [`kind`].
    pub kind: u16,
    /// One of [`op`].
    pub op: u16,
    /// By the operation: of a shutdown, or of a message's last piece.
    pub flags: u32,
    /// Bytes that the sender has room for in all.
    pub buf_alloc: u32,
    /// Bytes that it has taken so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// From its bytes.
    pub fn decode(bytes: &[u8; HEADER]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let [kind, op] = [u32_at(28) as u16, (u32_at(28) >> 16) as u16];
        Header {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind,
            op,
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        let words = [
            self.src_port,
            self.dst_port,
            self.len,
            u32::from(self.kind) | u32::from(self.op) << 16,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ];
        for (place, word) in bytes[16..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A packet without data that goes back to where this one came from.
    pub fn answer(&self, op: u16) -> Self {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op,
            ..Header::default()
        }
    }

    /// Whether the kind and the operation are known, and data comes with the only operation that has any.
    pub fn is_sound(&self) -> bool {
        matches!(self.kind, kind::STREAM | kind::SEQPACKET)
            && (op::REQUEST..=op::CREDIT_REQUEST).contains(&self.op)
            && (self.len == 0 || self.op == op::RW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_lies_in_memory_as_the_specification_says() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x31,
            kind: 1,
            op: 5,
            flags: 3,
            buf_alloc: 0x4142_4344,
            fwd_cnt: 0x5152_5354,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..16], [8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            bytes[16..32],
            [0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21, 0x31, 0, 0, 0, 1, 0, 5, 0]
        );
        assert_eq!(bytes[32..], [3, 0, 0, 0, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51]);
        assert_eq!(Header::decode(&bytes), header);
    }
}
