//! Running vCPUs.

use super::{Call, Outcome, Result};
use crate::object::ec::Ec;
use crate::object::vcpu::{Next, Vcpu};
use hypercall_abi::vcpu::{FpuOperation, Groups};
use hypercall_abi::{Rights, Selector, Status};
use kcore::addr::PhysAddr;

/// Runs a vCPU until an exit for its VMM.
pub(super) fn run(call: &Call) -> Result {
    let next = start(call.ec, call.selector());
    if next == Next::RESCHEDULE {
        return Ok(Outcome::Block);
    }
    let frame = call.ec.frame();
    (frame.rax, frame.rdi, frame.rsi, frame.rdx) = (next.status, next.exit_kind, 0, 0);
    Ok(Outcome::Switch)
}

/// Runs the vCPU at `selector` on behalf of `ec`.
#[inline]
pub(crate) fn start(ec: &'static Ec, selector: Selector) -> Next {
    match own_vcpu(ec, selector) {
        Ok(vcpu) if vcpu.is_busy() => Next::complete(Status::Busy, 0),
        Ok(vcpu) => vcpu.run(ec),
        Err(status) => Next::complete(status, 0),
    }
}

/// Makes a run return.
pub(super) fn poke(call: &Call) -> Result {
    call.capability()?.cast::<Vcpu>(Rights::VCPU_POKE)?.poke();
    Ok(Outcome::OK)
}

/// Fills groups of the vCPU page.
pub(super) fn read(call: &Call) -> Result {
    let bits = u32::try_from(call.args[0]).map_err(|_| Status::BadArgument)?;
    let groups = Groups::from_bits(bits).ok_or(Status::BadArgument)?;
    own_vcpu(call.ec, call.selector())?.read(groups)?;
    Ok(Outcome::OK)
}

/// Moves FPU state between a vCPU and a page of a memory capability, or resets it.
pub(super) fn fpu(call: &Call) -> Result {
    let operation = FpuOperation::from_raw(call.args[0]).ok_or(Status::BadArgument)?;
    let memory = call.selector_at(1)?;
    let vcpu = own_vcpu(call.ec, call.selector())?;
    let page = match operation {
        FpuOperation::Read => call.ec.pd.look_up(memory)?.ram_page(Rights::WRITE, call.args[2])?,
        FpuOperation::Write => call.ec.pd.look_up(memory)?.ram_page(Rights::READ, call.args[2])?,
        FpuOperation::Reset => PhysAddr(0),
    };
    vcpu.move_fpu(operation, page)?;
    Ok(Outcome::OK)
}

/// A vCPU of the caller's CPU.
fn own_vcpu(ec: &'static Ec, selector: Selector) -> core::result::Result<&'static Vcpu, Status> {
    let vcpu = ec.pd.find::<Vcpu>(selector, Rights::VCPU_RUN)?;
    if vcpu.cpu != ec.cpu { Err(Status::WrongCpu) } else { Ok(vcpu) }
}
