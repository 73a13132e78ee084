//! Deriving and revoking capabilities.

use super::{Call, Outcome, Result, lock_tree};
use crate::cap;
use crate::object::pd::Pd;
use hypercall_abi::{ObjectType, Rights, Selector, Status};
use kcore::cap::{Slots, range};
use kcore::virt::vapic;

const FIRST_VECTOR: u64 = vapic::FIRST_VECTOR as u64;

/// Derives a narrowed capability into a protection domain.
pub(super) fn derive(call: &Call) -> Result {
    let [_, _, rights, offset, count, badge] = call.args;
    let (target, destination) = (call.selector_at(0)?, call.selector_at(1)?);
    let rights = u16::try_from(rights).map(Rights::from_bits_retain).map_err(|_| Status::BadArgument)?;
    let mut tree = lock_tree()?;
    let source = call.capability()?;
    let pd = match target {
        Selector::NULL => call.ec.pd,
        selector => call.ec.pd.look_up(selector)?.cast::<Pd>(Rights::PD_GRANT)?,
    };
    if !source.rights.contains(Rights::DERIVE) {
        return Err(Status::BadRights.into());
    }
    let named = match source.kind {
        ObjectType::Memory
        | ObjectType::Ports
        | ObjectType::Irqs
        | ObjectType::Trace
        | ObjectType::Devices => {
            let count = if count == 0 { source.count.saturating_sub(offset) } else { count };
            range::sub_range(source.object, source.count, offset, count).ok_or(Status::BadArgument)?
        }
        ObjectType::Ntfn => (source.object, narrow_badge(source.count, badge)?),
        ObjectType::Vcpu => (source.object, choose_vector(source.count, badge)?),
        _ => (source.object, source.count),
    };
    let slot = pd.empty_slot(&tree, destination)?;
    cap::insert_derived(&mut tree, source.slot, slot, source.rights & rights, named)?;
    Ok(Outcome::OK)
}

/// A notification's first capability has no badge and may be given any; a badge may only lose bits. 0 keeps it.
fn narrow_badge(own: u64, wanted: u64) -> core::result::Result<u64, Status> {
    match (own, wanted) {
        (_, 0) => Ok(own),
        (0, _) => Ok(wanted),
        _ if wanted & !own == 0 => Ok(wanted),
        _ => Err(Status::BadRights),
    }
}

/// A vCPU's first capability raises no interrupt. A derived one may be for one, for good; 0 keeps it.
fn choose_vector(own: u64, wanted: u64) -> core::result::Result<u64, Status> {
    match (own, wanted) {
        (_, 0) => Ok(own),
        (0, FIRST_VECTOR..=255) => Ok(wanted),
        (0, _) => Err(Status::BadArgument),
        _ if own == wanted => Ok(own),
        _ => Err(Status::BadRights),
    }
}

/// Revokes what was derived from a capability, and the capability itself if argument 0 is 1.
pub(super) fn revoke(call: &Call) -> Result {
    let with_self = match call.args[0] {
        0 => false,
        1 => true,
        _ => return Err(Status::BadArgument.into()),
    };
    let mut tree = lock_tree()?;
    let slot = call.ec.pd.slot(call.selector())?;
    match call.ec.revokes.take() {
        // Made again: others may have finished it, and put another capability there.
        Some((begun, stamp)) if begun == slot => {
            if tree.slot(slot).stamp != stamp {
                return Ok(Outcome::OK);
            }
        }
        _ => _ = call.capability()?,
    }
    call.ec.revokes.set(Some((slot, tree.stamp(slot))));
    Ok(match call.outlive(|| tree.revoke(slot, with_self)) {
        Some(true) => {
            call.ec.revokes.set(None);
            Outcome::OK
        }
        Some(false) => Outcome::Restart,
        None => Outcome::Block,
    })
}
