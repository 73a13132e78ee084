//! Portals: where a call enters a protection domain.

use super::ec::Ec;
use super::{Header, Linked, ListLink, Object};
use hypercall_abi::ObjectType;

/// A portal: calling it starts its handler at `ip` with `id` in RAX.
#[repr(C)]
#[derive(Debug)]
pub struct Portal {
    header: Header,
    /// The execution context that handles calls: a portal ends with its handler.
    pub handler: &'static Ec,
    /// Where the handler starts (a user address).
    pub ip: u64,
    /// What the handler gets in RAX.
    pub id: u64,
    /// Neighbours in the handler's list of portals. Under the tree lock.
    pub of_handler: ListLink,
}

/// The handler's list of portals.
#[derive(Debug)]
pub enum OfHandler {}
// SAFETY: always the same field.
unsafe impl Linked<OfHandler> for Portal {
    fn link(&self) -> &ListLink {
        &self.of_handler
    }
}

// SAFETY: constant but for the header, which is used under the tree lock.
unsafe impl Sync for Portal {}
// SAFETY: first field is the header.
unsafe impl Object for Portal {
    const KIND: ObjectType = ObjectType::Pt;
}

impl Portal {
    /// A portal of `handler`, paid from the header's pool.
    pub const fn new(header: Header, handler: &'static Ec, ip: u64, id: u64) -> Self {
        Portal { header, handler, ip, id, of_handler: ListLink::new() }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }
}
