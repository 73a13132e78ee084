//! Messages with the message area (SPEC.md 6): words beyond the eight in registers, capabilities, and a deadline.
//!
//! The area is memory of the user, which may change at any time: each field is read once, and the copy is checked and used. Sender
//! and receiver are on one CPU, so the kernel touches one message at a time.

use super::{Call, Outcome, Result, ipc, lock_tree};
use crate::cap::{self, Tree};
use crate::object::ec::Ec;
use crate::object::pd::Pd;
use crate::object::portal::Portal;
use core::sync::atomic::Ordering;
use hypercall_abi::utcb::{UTCB_ITEMS, UTCB_WORDS, Utcb, UtcbItem};
use hypercall_abi::{Rights, Selector, Status};
use kcore::addr::PhysAddr;
use khw::mem::phys_to_virt;

/// The message area of a context.
#[derive(Clone, Copy)]
struct Area(*mut Utcb);

/// Reads a field of an [`Area`].
macro_rules! get {
    ($area:expr, $field:ident $([$index:expr])?) => {{
        let area = $area.0;
        // SAFETY: a bound page is RAM in the direct map and stays so until the kernel entry ends; every value is valid.
        unsafe { (&raw const (*area).$field $([$index])?).read_volatile() }
    }};
}

/// Writes a field of an [`Area`].
macro_rules! put {
    ($area:expr, $field:ident $([$index:expr])?, $value:expr) => {{
        let (area, value) = ($area.0, $value);
        // SAFETY: as in `get!`.
        unsafe { (&raw mut (*area).$field $([$index])?).write_volatile(value) }
    }};
}

/// What a sender wants to send: read once, in range.
struct Message {
    words: usize,
    items: [UtcbItem; UTCB_ITEMS],
    item_count: usize,
}

impl Area {
    fn of(ec: &Ec) -> Option<Area> {
        let frame = ec.utcb.load(Ordering::Acquire);
        (frame != 0).then(|| Area(phys_to_virt(PhysAddr(frame)).cast()))
    }

    fn message(self) -> core::result::Result<Message, Status> {
        let words = get!(self, word_count) as usize;
        let item_count = get!(self, item_count) as usize;
        let items = get!(self, items);
        let is_in_range = words <= UTCB_WORDS && item_count <= UTCB_ITEMS;
        if !is_in_range || items[..item_count].iter().any(|item| item.reserved != 0) {
            return Err(Status::BadArgument);
        }
        Ok(Message { words, items, item_count })
    }

    /// Copies a message from here, where nothing is left to be sent, and says here which items arrived.
    fn send(self, message: &Message, (from, to): (&Ec, &Ec), tree: Option<&mut Tree>) {
        put!(self, word_count, 0);
        put!(self, item_count, 0);
        let (mut arrived, mut status) = (0, Status::Success);
        if let Some(target) = Area::of(to) {
            for index in 0..message.words {
                put!(target, words[index], get!(self, words[index]));
            }
            if let Some(tree) = tree {
                let window = (get!(target, window_base), get!(target, window_count));
                for item in &message.items[..message.item_count] {
                    match delegate(tree, (from.pd, to.pd), *item, window, arrived) {
                        Ok(item) => put!(target, items[arrived as usize], item),
                        Err(error) => {
                            status = error;
                            break;
                        }
                    }
                    arrived += 1;
                }
            }
            put!(target, word_count, message.words as u32);
            put!(target, item_count, arrived);
        } else if message.item_count > 0 {
            status = Status::Unbound;
        }
        put!(self, items_sent, arrived);
        put!(self, item_status, status as u32);
    }
}

/// Derives a capability into selector `index` of the receiver's window: the receiver pays for a table that it needs.
fn delegate(
    tree: &mut Tree,
    (from, to): (&Pd, &Pd),
    item: UtcbItem,
    (base, count): (u32, u32),
    index: u32,
) -> core::result::Result<UtcbItem, Status> {
    let source = from.look_up(Selector(item.selector))?;
    if !source.rights.contains(Rights::DERIVE) {
        return Err(Status::BadRights);
    }
    let selector = base.checked_add(index).filter(|_| index < count);
    let selector = selector.ok_or(Status::BadArgument)?;
    let slot = to.empty_slot(tree, Selector(selector))?;
    let rights = source.rights & Rights::from_bits_retain(item.rights);
    let named = (source.object, source.count);
    cap::insert_derived(tree, source.slot, slot, rights, named)?;
    Ok(UtcbItem { selector, rights: rights.bits(), reserved: 0 })
}

/// Calls a portal with a message from the caller's area; waits for a busy handler until the deadline that is there.
pub(super) fn call(call: &Call) -> Result {
    let portal = call.capability()?.cast::<Portal>(Rights::PT_CALL)?;
    let area = Area::of(call.ec).ok_or(Status::Unbound)?;
    let message = area.message()?;
    let is_empty = message.words == 0 && message.item_count == 0;
    if !is_empty && Area::of(portal.handler).is_none() {
        return Err(Status::Unbound.into());
    }
    // Before anything is changed: it may make the call start again.
    let mut tree = (message.item_count > 0).then(lock_tree).transpose()?;
    if !ipc::is_ready(call, portal.handler, get!(area, deadline))? {
        return Ok(Outcome::Block);
    }
    area.send(&message, (call.ec, portal.handler), tree.as_deref_mut());
    ipc::enter(call.ec, portal);
    call.local.ec.set(Some(portal.handler));
    Ok(Outcome::Switch)
}

/// Replies with a message from the handler's area.
pub(super) fn reply(call: &Call) -> Result {
    if !call.ec.is_handler {
        return Err(Status::BadType.into());
    }
    let area = Area::of(call.ec).ok_or(Status::Unbound)?;
    let message = area.message()?;
    let mut tree = (message.item_count > 0).then(lock_tree).transpose()?;
    if let Some(caller) = call.ec.caller.get() {
        area.send(&message, (call.ec, caller), tree.as_deref_mut());
    }
    ipc::finish(call);
    Ok(Outcome::Switch)
}
