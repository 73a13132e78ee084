//! Hypercalls: decode, range, capability, rights, act.
//!
//! A handler gets its arguments decoded, changes nothing before its last check, and returns what to write into the caller's
//! registers. It may be called again from the start ([`Outcome::Restart`]) after interrupts were let in.

mod bind;
mod capability;
mod create;
mod dirty;
mod info;
pub mod ipc;
mod map;
mod message;
pub mod vcpu;
mod wait;

use crate::cap::{self, Restart, Tree};
use crate::cpu::{self, Attention, Local};
use crate::object::ec::Ec;
use crate::sched;
use hypercall_abi::regs::Head;
use hypercall_abi::{Hypercall, Selector, Status};
use khw::entry::Frame;
use khw::sync::Guard;

/// The arguments of a hypercall, and who makes it. [`crate::fast`] builds one on the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// RAX.
    pub head: Head,
    /// The caller's CPU.
    pub local: &'static Local,
    /// The caller.
    pub ec: &'static Ec,
    /// Arguments 0 to 5.
    pub args: [u64; 6],
}

impl Call {
    /// The selector in the head.
    pub fn selector(&self) -> Selector {
        self.head.selector()
    }

    /// An argument that is a selector: its upper half is zero.
    pub fn selector_at(&self, index: usize) -> core::result::Result<Selector, Status> {
        u32::try_from(self.args[index]).map(Selector).map_err(|_| Status::BadArgument)
    }

    /// The first capability of the call.
    pub fn capability(&self) -> core::result::Result<cap::Found, Status> {
        self.ec.pd.look_up(self.selector())
    }
}

/// What a handler came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Status and results 0 to 2.
    Done(Status, [u64; 3]),
    /// Registers are written already: go on with whoever should run.
    Switch,
    /// The caller waits; its registers will be written when it is woken.
    Block,
    /// Start again after serving requests and interrupts.
    Restart,
}

impl Outcome {
    /// Success without results.
    pub const OK: Outcome = Outcome::Done(Status::Success, [0; 3]);

    /// Success with one result.
    pub const fn value(value: u64) -> Outcome {
        Outcome::Done(Status::Success, [value, 0, 0])
    }
}

/// A handler's result: an error is written as the status.
pub type Result = core::result::Result<Outcome, Failure>;

/// Why a handler did not act.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// The status to return.
    Status(Status),
    /// The tree lock is taken by somebody who waits for this CPU.
    Restart,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure::Status(status)
    }
}

impl From<Restart> for Failure {
    fn from(_: Restart) -> Self {
        Failure::Restart
    }
}

/// The tree lock, for handlers.
pub fn lock_tree() -> core::result::Result<Guard<'static, Tree>, Failure> {
    cap::lock_tree().map_err(Failure::from)
}

/// Handles the hypercall whose registers entry code saved in the current context's frame, and returns the frame to leave
/// with.
pub fn dispatch() -> *mut Frame {
    let local = cpu::local();
    let Some(ec) = local.ec.get() else {
        return sched::schedule(local);
    };
    let registers = ec.frame();
    let head = Head(registers.rax);
    let result = match head.call() {
        None => Err(Status::BadHypercall.into()),
        Some(number) => {
            let r = &*registers;
            let args = [r.rdi, r.rsi, r.rdx, r.r8, r.r9, r.r10];
            handler(number)(&Call { head, local, ec, args })
        }
    };
    if local.ec.get().is_none_or(|current| !core::ptr::eq(current, ec))
        && !matches!(result, Ok(Outcome::Switch))
    {
        // The caller ended itself: its frame may be somebody else's memory by now.
        return sched::schedule(local);
    }
    match result {
        Ok(Outcome::Done(status, values)) => {
            registers.rax = status as u64;
            [registers.rdi, registers.rsi, registers.rdx] = values;
        }
        Err(Failure::Status(status)) => registers.rax = status as u64,
        Ok(Outcome::Switch) => {}
        // Another CPU may have woken, and queued, it already: only the queues tell.
        Ok(Outcome::Block) => return sched::schedule(local),
        Ok(Outcome::Restart) | Err(Failure::Restart) => {
            // SYSCALL is two bytes long: the caller executes it again, with its registers untouched.
            registers.rip -= 2;
            khw::cpu::interrupt_window();
            local.attention.add(Attention::SWITCH);
        }
    }
    sched::resume(local)
}

/// What handles a hypercall.
#[inline]
pub fn handler(number: Hypercall) -> fn(&Call) -> Result {
    match number {
        Hypercall::Call => ipc::call,
        Hypercall::Reply => ipc::reply,
        Hypercall::Signal => wait::signal,
        Hypercall::Wait => wait::wait,
        Hypercall::VcpuRun => vcpu::run,
        Hypercall::VcpuPoke => vcpu::poke,
        Hypercall::VcpuRead => vcpu::read,
        Hypercall::CapInfo => info::capability,
        Hypercall::Map => map::map,
        Hypercall::Unmap => map::unmap,
        Hypercall::Derive => capability::derive,
        Hypercall::Revoke => capability::revoke,
        Hypercall::Bind => bind::bind,
        Hypercall::Yield => wait::yield_now,
        Hypercall::CallMessage => message::call,
        Hypercall::ReplyMessage => message::reply,
        Hypercall::CreatePool => create::pool,
        Hypercall::CreatePd => create::pd,
        Hypercall::CreateEc => create::ec,
        Hypercall::CreateSc => create::sc,
        Hypercall::CreatePt => create::portal,
        Hypercall::CreateSm => create::semaphore,
        Hypercall::CreateNtfn => create::notification,
        Hypercall::CreateGuestSpace => create::guest_space,
        Hypercall::CreateVcpu => create::vcpu,
        Hypercall::CreateDmaSpace => create::dma_space,
        Hypercall::EcInfo => info::ec,
        Hypercall::ScInfo => info::sc,
        Hypercall::PoolInfo => info::pool,
        Hypercall::IrqBind => bind::irq,
        Hypercall::IrqAck => bind::irq_ack,
        Hypercall::CollectDirty => dirty::collect,
        Hypercall::VcpuFpu => vcpu::fpu,
        Hypercall::LogWrite => info::log,
    }
}
