//! Running vCPUs.

use super::{Call, Outcome, Result};
use crate::object::ec::Ec;
use crate::object::vcpu::{Next, Vcpu};
use hypercall_abi::vcpu::Groups;
use hypercall_abi::{Rights, Selector, Status};

/// Runs a vCPU until an exit for its VMM.
pub(super) fn run(call: &Call) -> Result {
    let vcpu = start(call.ec, call.selector)?;
    Ok(match vcpu.run(call.ec) {
        Next::Complete => Outcome::Switch,
        Next::Reschedule => Outcome::Block,
    })
}

/// The vCPU that `ec` may run, attached to it.
pub(crate) fn start(ec: &'static Ec, selector: Selector) -> core::result::Result<&'static Vcpu, Status> {
    let vcpu = own_vcpu(ec, selector)?;
    vcpu.attach(ec)?;
    Ok(vcpu)
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
    own_vcpu(call.ec, call.selector)?.read(groups)?;
    Ok(Outcome::OK)
}

/// A vCPU of the caller's CPU.
fn own_vcpu(ec: &'static Ec, selector: Selector) -> core::result::Result<&'static Vcpu, Status> {
    let vcpu = ec.pd.look_up(selector)?.cast::<Vcpu>(Rights::VCPU_RUN)?;
    if vcpu.cpu != ec.cpu {
        Err(Status::WrongCpu)
    } else {
        Ok(vcpu)
    }
}
