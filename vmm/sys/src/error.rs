//! What a refused hypercall says.

use core::fmt;
use hypercall_abi::{Hypercall, Status};

/// A hypercall that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Which hypercall.
    pub call: Hypercall,
    /// What the kernel said.
    pub status: Status,
}

/// The result of what may make hypercalls.
pub type Result<T> = core::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.status {
            Status::Success => "it succeeded",
            Status::BadHypercall => "the kernel has no such call",
            Status::BadSelector => "the selector names nothing",
            Status::BadType => "the capability is of another type",
            Status::BadRights => "the capability lacks a right",
            Status::BadArgument => "an argument is out of range",
            Status::NoMemory => "the pool that pays is empty",
            Status::Occupied => "the destination is in use",
            Status::WrongCpu => "the object belongs to another CPU",
            Status::Timeout => "the deadline passed",
            Status::Aborted => "the object went away",
            Status::Busy => "the object is in use",
            Status::Unbound => "something it needs is not bound",
            Status::Unsupported => "this machine cannot do it",
            Status::Partial => "it was done in part",
        };
        write!(f, "{:?}: {reason}", self.call)
    }
}

impl core::error::Error for Error {}

/// Makes a `Result` of RAX. A status of a later kernel is one that this code cannot act on: `Unsupported`.
#[inline]
pub(crate) fn check(call: Hypercall, raw: u32) -> Result<()> {
    if raw == Status::Success as u32 { Ok(()) } else { Err(refused(call, raw)) }
}

#[cold]
fn refused(call: Hypercall, raw: u32) -> Error {
    let status = Status::from_raw(raw).unwrap_or(Status::Unsupported);
    Error { call, status }
}
