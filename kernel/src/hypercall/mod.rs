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
use crate::{reclaim, sched};
use hypercall_abi::regs::Head;
use hypercall_abi::{Hypercall, Selector, Status};
use khw::entry::Frame;
use khw::sync::Guard;

/// Length of SYSCALL.
pub const SYSCALL_BYTES: u64 = 2;

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

    /// Does what may end the caller, or leave it without a scheduling context; then it gives nothing, and the caller, if it ever goes on,
    /// makes its call again.
    fn outlive<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        self.ec.frame().rip -= SYSCALL_BYTES;
        let result = act();
        // Otherwise its frame may be somebody else's memory by now.
        let goes_on = self.local.ec.get().is_some_and(|current| core::ptr::eq(current, self.ec));
        goes_on.then(|| {
            self.ec.frame().rip += SYSCALL_BYTES;
            result
        })
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
    /// The caller waits, and its registers will be written when it is woken; or it is not current any more.
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
    let head = Head(ec.frame().rax);
    let result = match head.call() {
        None => Err(Status::BadHypercall.into()),
        Some(number) => {
            let r = ec.frame();
            let args = [r.rdi, r.rsi, r.rdx, r.r8, r.r9, r.r10];
            let call = Call { head, local, ec, args };
            loop {
                let result = handler(number)(&call);
                if !matches!(result, Err(Failure::Restart)) {
                    break result;
                }
                match call.outlive(|| let_others_on(local)) {
                    Some(true) => {}
                    Some(false) => break result,
                    None => break Ok(Outcome::Block),
                }
            }
        }
    };
    match result {
        Ok(Outcome::Done(status, values)) => {
            let registers = ec.frame();
            registers.rax = status as u64;
            [registers.rdi, registers.rsi, registers.rdx] = values;
        }
        Err(Failure::Status(status)) => ec.frame().rax = status as u64,
        Ok(Outcome::Switch) => {}
        // Another CPU may have woken, and queued, it already: only the queues tell.
        Ok(Outcome::Block) => return sched::schedule(local),
        Ok(Outcome::Restart) | Err(Failure::Restart) => {
            // The caller executes it again, with its registers untouched.
            ec.frame().rip -= SYSCALL_BYTES;
            khw::cpu::interrupt_window();
            local.attention.add(Attention::SWITCH);
        }
    }
    sched::resume(local)
}

/// The tree lock is taken: serves what its holder may wait for, and interrupts. Whether the caller may try again at once, so that it finds
/// the lock free where the holder takes it again and again.
fn let_others_on(local: &'static Local) -> bool {
    khw::smp::serve(|| reclaim::let_go(local));
    sched::preemption_point(local)
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
