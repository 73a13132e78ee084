//! Running vCPUs.

use super::{Call, Outcome, Result};
use crate::object::vcpu::{Next, Vcpu};
use hypercall_abi::vcpu::Groups;
use hypercall_abi::{Rights, Status};

/// Runs a vCPU until an exit for its VMM.
pub(super) fn run(call: &Call) -> Result {
    let vcpu = own_vcpu(call, Rights::VCPU_RUN)?;
    vcpu.attach(call.ec)?;
    Ok(match vcpu.run(call.ec) {
        Next::Complete => Outcome::Switch,
        Next::Reschedule => Outcome::Block,
    })
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
    own_vcpu(call, Rights::VCPU_RUN)?.read(groups)?;
    Ok(Outcome::OK)
}

/// A vCPU of the caller's CPU.
fn own_vcpu(call: &Call, rights: Rights) -> core::result::Result<&'static Vcpu, Status> {
    let vcpu = call.capability()?.cast::<Vcpu>(rights)?;
    if vcpu.cpu != call.ec.cpu {
        Err(Status::WrongCpu)
    } else {
        Ok(vcpu)
    }
}
