//! Dirty tracking of guest memory.

use super::map::GUEST_END;
use super::{Call, Outcome, Result, lock_tree};
use crate::object::guest_space::GuestSpace;
use hypercall_abi::{Rights, Status};
use kcore::paging::{PageSize, report_units};
use khw::mem::Tables;
use khw::virt::{features, nested};

/// Collects and clears what says which units of guest memory were written.
pub(super) fn collect(call: &Call) -> Result {
    let [address, count, order, ..] = call.args;
    let size = match order {
        0 => PageSize::K4,
        9 => PageSize::M2,
        _ => return Err(Status::BadArgument.into()),
    };
    let is_in_range = (1..=report_units(size)).contains(&count)
        && address.is_multiple_of(size.bytes())
        && address.checked_add(count * size.bytes()).is_some_and(|end| end <= GUEST_END);
    if !is_in_range {
        return Err(Status::BadArgument.into());
    }
    let _tree = lock_tree()?;
    let space: &GuestSpace = call.capability()?.cast(Rights::GUEST_MAP)?;
    if !features().is_ok_and(|features| features.has_dirty_flags) {
        return Err(Status::Unsupported.into());
    }
    // SAFETY: the tables of a space are paid from its pool, and only changed under the tree lock, which is held.
    let mut tables = unsafe { Tables::new(space.pool) };
    let done = nested::collect_dirty(&mut tables, space.root, address, count, size);
    if done.needs_flush {
        // A CPU sets a flag only if it has not cached that it is set.
        space.bump_generation();
        khw::smp::synchronize();
    }
    match done.error {
        None => Ok(Outcome::Done(Status::Success, done.report)),
        Some(_) => Err(Status::NoMemory.into()),
    }
}
