//! Signal, wait, yield.

use super::{Call, Outcome, Result};
use crate::cpu::Attention;
use crate::sched;
use hypercall_abi::{Rights, Status};
use khw::cpu::tsc;

/// Signals a semaphore or notification, or raises an interrupt.
pub(super) fn signal(call: &Call) -> Result {
    call.capability()?.raise()?;
    Ok(Outcome::OK)
}

/// Waits on a semaphore or notification until a deadline; 0 only looks.
pub(super) fn wait(call: &Call) -> Result {
    let deadline = call.args[0];
    let signal = call.capability()?.signal(Rights::WAIT)?;
    if deadline != u64::MAX && deadline <= tsc::read() {
        return signal.try_take().map(Outcome::value).ok_or(Status::Timeout.into());
    }
    // From here on the caller may be woken, maybe before the next line.
    sched::block(call.ec, deadline);
    let taken = match signal.take_or_enqueue(call.ec) {
        Ok(None) => return Ok(Outcome::Block),
        Ok(Some(value)) => Ok(Outcome::value(value)),
        Err(status) => Err(status.into()),
    };
    sched::unblock_current(call.ec);
    taken
}

/// Gives up what is left of the budget, or of the slice if there is no budget.
pub(super) fn yield_now(call: &Call) -> Result {
    if let Some(sc) = call.local.sc.get() {
        sc.budget().forfeit(tsc::read());
    }
    call.local.slice_end.set(0);
    call.local.attention.add(Attention::SWITCH);
    Ok(Outcome::OK)
}
