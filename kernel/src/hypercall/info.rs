//! Questions, and the log.

use super::{Call, Outcome, Result};
use crate::object::ec::{Ec, State};
use crate::object::pool::Pool;
use crate::object::sc::Sc;
use hypercall_abi::regs::LOG_BYTES;
use hypercall_abi::{ObjectType, Rights, Status};

/// What a selector names: type and rights, first unit of a range or 0, length of a range or badge.
pub(super) fn capability(call: &Call) -> Result {
    Ok(Outcome::Done(Status::Success, call.capability()?.describe()))
}

/// Whether a context stopped on a fault, and where; else its number.
pub(super) fn ec(call: &Call) -> Result {
    let ec = call.capability()?.cast::<Ec>(Rights::EC_INFO)?;
    if ec.state.get() != State::Faulted {
        return Ok(Outcome::Done(Status::Success, [0, 0, ec.number as u64]));
    }
    let (vector, address) = ec.fault.get();
    Ok(Outcome::Done(Status::Success, [1 << 63 | vector, ec.frame().rip, address]))
}

/// TSC ticks a scheduling context has used, and for which it waited for the processor.
pub(super) fn sc(call: &Call) -> Result {
    let sc = call.capability()?.cast::<Sc>(Rights::SC_INFO)?;
    Ok(Outcome::Done(Status::Success, [sc.consumed.get(), sc.waited.get(), 0]))
}

/// Free and total frames of a pool.
pub(super) fn pool(call: &Call) -> Result {
    let (free, total) = call.capability()?.cast::<Pool>(Rights::empty())?.usage();
    Ok(Outcome::Done(Status::Success, [free, total, 0]))
}

/// Writes up to 40 bytes to the kernel's log.
pub(super) fn log(call: &Call) -> Result {
    let len = call.args[0] as usize;
    if call.args[0] > LOG_BYTES as u64 {
        return Err(Status::BadArgument.into());
    }
    call.capability()?.range(ObjectType::Log, Rights::USE)?;
    let mut bytes = [0; LOG_BYTES];
    for (chunk, word) in bytes.chunks_mut(8).zip(&call.args[1..]) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    khw::console::write(&bytes[..len]);
    Ok(Outcome::OK)
}
