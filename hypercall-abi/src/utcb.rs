//! The message area of an execution context (SPEC.md 6).

/// Words of a message that can travel through the message area, beyond those in registers.
pub const UTCB_WORDS: usize = 480;

/// Typed items in one message: capabilities that the sender delegates to the receiver.
pub const UTCB_ITEMS: usize = 8;

/// One page, bound to an execution context with `Bind(Utcb)`. Without one, messages are the eight registers.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct Utcb {
    /// First selector of the receive window: where delegated capabilities may be put.
    pub window_base: u32,
    /// Selectors in the receive window; 0 accepts nothing.
    pub window_count: u32,
    /// Words of [`Self::words`] to transfer (0 to [`UTCB_WORDS`]).
    pub word_count: u32,
    /// Items of [`Self::items`] to transfer (0 to [`UTCB_ITEMS`]).
    pub item_count: u32,
    /// Items: selector of the source, and the rights to keep.
    pub items: [UtcbItem; UTCB_ITEMS],
    /// Until when `CallMessage` waits for a busy handler, TSC; `u64::MAX` for ever.
    pub deadline: u64,
    /// Written by the kernel: items of the last message sent from here that arrived.
    pub items_sent: u32,
    /// Written by the kernel: [`crate::Status`] of the first that did not.
    pub item_status: u32,
    /// Reserved, zero.
    pub reserved: [u64; 20],
    /// Message words.
    pub words: [u64; UTCB_WORDS],
}

/// A capability in a message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UtcbItem {
    /// Sender: the selector delegated. Receiver: the selector it arrived at.
    pub selector: u32,
    /// Rights kept, [`crate::Rights`] bits.
    pub rights: u16,
    /// Reserved, zero.
    pub reserved: u16,
}
